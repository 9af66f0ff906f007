"""A run that is only tried out: a few steps as they would be, what they took, and no more.

Nothing is different about the steps themselves; a run that is not rehearsed has nothing of this.
"""

import json
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from asl_core.engine.context import Rehearsal

Batch = TypeVar("Batch")


@dataclass
class Measured:
    """What the steps took.

    Attributes:
        step_s: Seconds of each step that counts, the wait for its batch included.
        waited_s: Of these, the wait for the batch.
        began, ended: When training began and ended, seconds since the epoch.
        images: In a step, over all processes.
        processes: How many.
        device: Its name.
        device_bytes: Of its memory.
        peak_device_bytes: Largest allocation of this process there; None on a CPU.
        peak_host_bytes: Largest resident size of this process.
        checkpoint_bytes, checkpoint_s: Of one checkpoint.
    """

    step_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    images: int = 0
    processes: int = 1
    device: str = "cpu"
    device_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_host_bytes: int = 0
    checkpoint_bytes: int = 0
    checkpoint_s: float = 0.0


class Stopwatch:
    """Times a few steps of a loop from between them.

    Args:
        rehearsal: How many.
        device: Waited for after each step.
    """

    def __init__(self, rehearsal: Rehearsal, device: torch.device) -> None:
        self.rehearsal, self.device = rehearsal, device
        self.measured = Measured(began=time.time())

    def steps(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield as many batches as there are steps; measure the caller's work on each."""
        for number in range(self.rehearsal.steps):
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            waited = time.monotonic() - began
            yield batch
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            if number >= self.rehearsal.warm_up:
                self.measured.step_s.append(time.monotonic() - began)
                self.measured.waited_s.append(waited)

    def finish(self, *, images: int, processes: int, checkpoint: Path, checkpoint_s: float) -> None:
        """Write what was measured.

        Args:
            images: Of a step, over all processes.
            processes: How many.
            checkpoint: The file that was written.
            checkpoint_s: How long that took.
        """
        found = self.measured
        found.ended = time.time()
        found.images, found.processes = images, processes
        found.checkpoint_bytes, found.checkpoint_s = checkpoint.stat().st_size, checkpoint_s
        found.peak_host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            found.device, found.device_bytes = properties.name, properties.total_memory
            found.peak_device_bytes = torch.cuda.max_memory_reserved(self.device)
        self.rehearsal.file.write_text(json.dumps(asdict(found), indent=1) + "\n")
