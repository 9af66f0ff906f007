"""Stages that train nothing, for tests of what surrounds them.

A test copies this file over stages of a project; jobs run it from their frozen code. What it does
is said by $STUB, JSON: steps, step_s; gate (a step, and the name of a file without the number of
the start: it goes on after that step when the file is there, or a signal asks it to stop); fail
(the rank that raises); full (a file that takes nothing); stop_s (how long the first process needs
to obey a signal); end_s (how long it needs before it writes its outputs); ends (a file and how one
start of a pre-training ends after the other: kill, memory, error); die_on (a node on which one
kills itself); megabytes (that one takes for a while); watched (run -> what it is watched for at
every step).
"""

import json
import os
import signal
import time
from pathlib import Path

from asl_core.engine.signals import catch_stop_signals
from asl_core.errors import InterruptedRun
from pipeline.stages.request import StageRequest

SALT = 0


def run(request: StageRequest) -> dict[str, float]:
    """Add numbers up, one a step, with checkpoints, and write the sum."""
    orders = json.loads(os.environ.get("STUB", "{}"))
    rank = int(os.environ.get("RANK", "0"))
    if orders.get("fail") == rank:
        raise ZeroDivisionError(f"the stub of rank {rank} fails")
    if request.stage == "pretrain":
        _end_early(orders)
    if request.stage == "prepare":
        (request.outputs["dataset"] / "shard").write_text(request.key)
        digests = {"train": "0123456789abcdef"}
        (request.outputs["dataset"] / "manifest.json").write_text(json.dumps({"digests": digests}))
        return {}
    imported = request.inputs.get("imported")
    file = imported / "encoder.safetensors" if imported else request.inputs["dataset"] / "shard"
    seed = len(file.read_text()) + SALT
    total, steps = seed, orders.get("steps", 3)
    watched = {"watch/probe_acc1_mean": value} if (
        value := orders.get("watched", {}).get(request.key)
    ) is not None else {}  # fmt: skip
    folder = request.work / "ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    step, (gate, opens) = 0, orders.get("gate", (None, ""))
    opens += os.environ.get("ASL_JOB_RESTARTS", "")
    if rank == 0:
        for path in sorted(folder.glob("*.json")):
            step, total = json.loads(path.read_text())
        request.journal.resume(step, steps)
    with catch_stop_signals() as stop:
        while step < steps:
            time.sleep(orders.get("step_s", 0.0))
            step, total = step + 1, total + (step + 1) ** 2
            values = {f"{request.stage}/loss": 1.0 / step, f"{request.stage}/images_per_s": 8.0}
            request.journal.metrics(step, values | watched)
            if orders.get("full") and step == 2:
                with open(orders["full"], "wb") as file:
                    while True:
                        file.write(b"x" * 4096)
            if rank == 0 and stop:
                time.sleep(orders.get("stop_s", 0.0))
            if rank == 0 and (stop or step % 5 == 0) and step < steps:
                request.before_checkpoint()
                (folder / f"{step:06d}.json").write_text(json.dumps([step, total]))
            while step == gate and not stop and not Path(opens).exists():
                time.sleep(0.02)
            if stop:
                raise InterruptedRun(f"stopped by {stop.signal_name} after step {step}")
    if rank > 0:
        return {}
    time.sleep(orders.get("end_s", 0.0))
    (request.out / f"start_{os.environ.get('ASL_JOB_RESTARTS', '')}").write_text("")
    out = request.outputs.get("encoder", request.out)
    (out / "encoder.safetensors").write_text(str(total))
    if "held_out" in request.outputs:  # DVC warns of empty folders
        (request.outputs["held_out"] / "predictions").write_text(str(total))
    return {"total": float(total), **watched}


def _end_early(orders: dict) -> None:
    """End as the orders say, each way once."""
    if orders.get("die_on") == os.environ.get("ASL_NODE", ""):
        os.kill(os.getpid(), signal.SIGKILL)
    if "megabytes" in orders:
        taken = b"x" * (orders["megabytes"] << 20)
        time.sleep(3 + 0 * len(taken))
    path, ways = orders.get("ends", (os.devnull, []))
    number = len(Path(path).read_text().splitlines()) if Path(path).is_file() else 0
    if number >= len(ways):
        return
    with open(path, "a") as file:
        file.write("started\n")
    match ways[number]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            raise MemoryError
        case "error":
            raise ZeroDivisionError("the stub crashes")
