"""What this machine has, and how long the steps of encoders take on it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

import psutil

from asl_core.recipes.models import Vit
from pipeline.errors import UserError

_MODULE = "asl_core.step_times"


@dataclass(frozen=True)
class Machine:
    """What a project may use.

    Attributes:
        cores: Of the CPU, that this process may use.
        memory: Bytes.
        load: Processes that wanted to compute, over the last minute.
        gpus: How many torch sees; one stage uses one.
        gpu: Name of the first.
        gpu_memory: Its bytes.
        capability: As NVIDIA numbers it; 8.0 and later compute in bfloat16.
        has_compiler: Whether there is one for C, which `compile` needs.
        start_s: Seconds from the start of a process until it has torch.
    """

    cores: int
    memory: int
    load: float
    gpus: int = 0
    gpu: str = ""
    gpu_memory: int = 0
    capability: float = 0.0
    has_compiler: bool = False
    start_s: float = 4.0

    @property
    def has_gpu(self) -> bool:
        return self.gpus > 0

    @property
    def words(self) -> str:
        """The machine in a sentence's part: `2 CPU cores, 15 GiB of memory, no GPU`."""
        gib = 2**30
        computing = "no GPU"
        if self.has_gpu:
            several = f"{self.gpus} x " if self.gpus > 1 else ""
            computing = f"{several}{self.gpu} with {self.gpu_memory / gib:.0f} GiB"
        cores = f"{self.cores} CPU core{'' if self.cores == 1 else 's'}"
        return f"{cores}, {self.memory / gib:.0f} GiB of memory, {computing}"


@dataclass(frozen=True)
class Pace:
    """What a training step takes.

    Attributes:
        seconds: For one image.
        images: That went through at once.
    """

    seconds: float
    images: int


class Stopwatch:
    """A process that has torch and times steps; `machine` is what it found first."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        began = time.monotonic()
        facts = self._answer()
        self.machine = Machine(
            cores=len(os.sched_getaffinity(0)),
            memory=psutil.virtual_memory().total,
            load=os.getloadavg()[0],
            gpus=facts.get("count", 0),
            gpu=facts.get("name", ""),
            gpu_memory=facts.get("bytes", 0),
            capability=facts.get("capability", 0.0),
            has_compiler=any(map(shutil.which, ("cc", "gcc", "clang"))),
            start_s=time.monotonic() - began,
        )

    def pace(self, method: str, model: Vit, batch: int, precision: str) -> Pace | None:
        """Return what a step takes; None where it cannot be done here.

        Raises:
            UserError: The process has ended.
        """
        asked = {"method": method, "model": asdict(model), "batch": batch, "precision": precision}
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]  # it is a pipe
        try:
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise _failed() from None
        answer = self._answer()
        if "problem" in answer:
            return None
        return Pace(answer["step_s"] / answer["images"], answer["images"])

    def _answer(self) -> dict[str, Any]:
        stdout: IO[str] = self._process.stdout  # type: ignore[assignment]  # it is a pipe
        line = stdout.readline()
        if not line:
            raise _failed()
        return json.loads(line)


@contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Start the process, and end it.

    Raises:
        UserError: It does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield Stopwatch(process)
    finally:
        process.kill()
        process.communicate()


def _failed() -> UserError:
    return UserError("a trial of the training step failed, see above; asl-pipe doctor looks closer")
