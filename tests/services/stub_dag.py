"""The DAG of stub stages on a scheduler that runs its jobs by itself; from within the project."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.schedulers.port import Scheduler

SEVEN_STEPS = str(5 + sum(step**2 for step in range(1, 8)))
"""What the stub's encoder is after seven undisturbed steps on the data of `icons`."""


def wait(scheduler: Scheduler, until: Callable[[], bool] | None = None) -> None:
    """Wait for something to be so; absent: until nothing runs or could run."""

    def at_rest() -> bool:
        return all(job.has_ended or job.can_never_start for job in scheduler.queue())

    give_up = time.monotonic() + 240
    while not (until or at_rest)():
        assert time.monotonic() < give_up, scheduler.queue()
        time.sleep(0.1)


def journals() -> str:
    """Return what runs have said of themselves."""
    files = Path(".asl/jobs").glob("*/journal/attempt-*.jsonl")
    return "".join(path.read_text() for path in files)


def adopt(call: Any, name: str) -> str:
    """Let `dvc repro` take a result home, and those that it needs; return the encoder.

    Nothing may run for it.
    """
    done = call("dvc", "repro", name, cwd=Path.cwd())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is cached - skipping run" in done.stdout
    assert "Running stage" not in done.stdout.replace("Running stage 'code'", "")
    return Path("runs/encoder/asl/encoder.safetensors").read_text()
