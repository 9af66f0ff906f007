"""What a run's first steps were, so that a replay can be told from it by step, tensor and size.

A run writes into its journal the loss of each of its first 50 steps, and marks of every tensor of
its model after steps 1, 10 and 50 (after its last step if it is shorter). This module reads such
records and compares them; it needs the standard library only.

Records, in the order of a journal:

    circumstances   where the steps that follow are computed
    witness         losses since the last one; where due, the tensors after its step
    resume          {"step": s}: what stands before it about steps after s is void
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LAST_STEP = 50
TENSORS_AFTER = (1, 10, LAST_STEP)


def tensor_steps(total_steps: int) -> frozenset[int]:
    """Return after which steps of a run its tensors are marked; nothing is kept after the last."""
    last = min(LAST_STEP, total_steps)
    return frozenset(step for step in (*TENSORS_AFTER, last) if 0 < step <= last)


@dataclass(frozen=True)
class Circumstances:
    """Where steps are computed: what may explain a difference.

    Attributes:
        after_step: The first of the steps is the one after this.
        total_steps: Of the whole run.
        device: cpu or cuda.
        device_name: Model of the processor.
        threads: Compute threads of a process.
        processes: Processes that share a batch.
        micro_batch_size: Images of a forward pass; None: a process's whole part of the batch.
        torch: Its version.
        precision: bf16, fp16, tf32 or fp32.
        compiled: Whether torch.compile made the code.
    """

    after_step: int
    total_steps: int
    device: str
    device_name: str
    threads: int
    processes: int
    micro_batch_size: int | None
    torch: str
    precision: str
    compiled: bool


@dataclass(frozen=True)
class TensorMark:
    """What is kept of a tensor.

    Attributes:
        sha256: First 16 hexadecimal digits of that of its bytes.
        dtype: `float32`.
        shape: Its sizes.
        norm: Its L2 norm, summed in float64.
        values: Up to four of its values, evenly spaced over the flattened tensor.
    """

    sha256: str
    dtype: str
    shape: tuple[int, ...]
    norm: float
    values: tuple[float, ...]

    @property
    def kind(self) -> str:
        """Type and shape: `float32 (3, 4)`."""
        return f"{self.dtype} {self.shape}"

    @property
    def positions(self) -> list[int]:
        """Where the values stand in the flattened tensor."""
        return value_positions(math.prod(self.shape))


def value_positions(numel: int) -> list[int]:
    """Return which values of a flattened tensor are kept."""
    return sorted({i * numel // 4 for i in range(4)}) if numel else []


@dataclass(frozen=True)
class Witness:
    """What a journal says about a run's first steps.

    Attributes:
        circumstances: Of each start whose steps count; several after a resume.
        losses: By step, from 1.
        tensors: By step, in the order of the model.
    """

    circumstances: tuple[Circumstances, ...]
    losses: dict[int, float]
    tensors: dict[int, dict[str, TensorMark]]


@dataclass(frozen=True)
class Difference:
    """The first thing in which two runs differ.

    Attributes:
        step: After this step.
        what: "loss", or the tensor's name.
        old, new: Both values; None where one run has nothing to compare.
        place: What of a tensor the values are: "norm", "element 12 of 48".
    """

    step: int
    what: str
    old: float | None
    new: float | None
    place: str = ""

    @property
    def absolute(self) -> float | None:
        """How far the values are apart; 0 where only values differ that are not kept."""
        return None if self.old is None or self.new is None else abs(self.new - self.old)

    @property
    def relative(self) -> float | None:
        """The same by the size of the old value."""
        if self.absolute is None or self.old is None:
            return None
        if self.absolute == 0:
            return 0.0
        return self.absolute / abs(self.old) if self.old else math.inf

    def __str__(self) -> str:
        where = f"step {self.step}, {self.what}" + (f", {self.place}" if self.place else "")
        if self.old is None or self.new is None:
            return f"{where}: only the {'new' if self.old is None else 'old'} run has it"
        return (
            f"{where}: {self.old!r} before, {self.new!r} now, "
            f"{self.absolute:.3g} apart, relative {self.relative:.3g}"
        )


def read_witness(records: Iterable[tuple[str, Mapping[str, Any]]]) -> Witness:
    """Assemble what all attempts of a run have left of its first steps.

    Args:
        records: Kind and body of a journal's records, in order; other kinds are passed over.
    """
    begun: list[Circumstances] = []
    losses: dict[int, float] = {}
    tensors: dict[int, dict[str, TensorMark]] = {}
    for kind, body in records:
        if kind == "resume":
            step = int(body["step"])
            begun = [each for each in begun if each.after_step < step]
            losses = {s: loss for s, loss in losses.items() if s <= step}
            tensors = {s: marks for s, marks in tensors.items() if s <= step}
        elif kind == "circumstances":
            begun.append(Circumstances(**body))
        elif kind == "witness":
            losses |= {int(step): float(loss) for step, loss in body["losses"].items()}
            if body["tensors"]:
                marks = {name: _mark(mark) for name, mark in body["tensors"].items()}
                tensors[int(body["step"])] = marks
    return Witness(tuple(begun), losses, tensors)


def first_difference(old: Witness, new: Witness) -> Difference | None:
    """Return in what two runs differ first: by step, the loss before the tensors after it.

    Circumstances are not compared: they explain, and change no number by themselves.
    """
    for step in sorted({*old.losses, *new.losses, *old.tensors, *new.tensors}):
        before, now = old.losses.get(step), new.losses.get(step)
        if not _same(before, now):
            return Difference(step, "loss", before, now)
        marks, others = old.tensors.get(step, {}), new.tensors.get(step, {})
        for name in {**marks, **others}:
            if found := _tensor_difference(step, name, marks.get(name), others.get(name)):
                return found
    return None


def _tensor_difference(
    step: int, name: str, old: TensorMark | None, new: TensorMark | None
) -> Difference | None:
    """Return how a tensor differs: by the kept value that is farthest off, or else by its norm."""
    if old is None or new is None:
        return Difference(step, name, old and old.norm, new and new.norm)
    if old.kind != new.kind:
        return Difference(step, name, old.norm, new.norm, f"{old.kind} is now {new.kind}; norm")
    if old.sha256 == new.sha256:
        return None  # all else follows, but for the order in which another machine sums the norm
    count = math.prod(old.shape)
    candidates = [
        Difference(step, name, before, now, f"element {position} of {count}")
        for position, before, now in zip(old.positions, old.values, new.values, strict=True)
        if not _same(before, now)
    ]
    if candidates:
        return max(candidates, key=_size)
    return Difference(step, name, old.norm, new.norm, "norm")


def _size(difference: Difference) -> float:
    size = difference.absolute
    return math.inf if size is None or math.isnan(size) else size


def _same(old: float | None, new: float | None) -> bool:
    """Return whether two numbers are one; a NaN is like another."""
    if old is None or new is None:
        return old is new
    return old == new or (math.isnan(old) and math.isnan(new))


def _mark(body: Mapping[str, Any]) -> TensorMark:
    return TensorMark(
        sha256=body["sha256"],
        dtype=body["dtype"],
        shape=tuple(body["shape"]),
        norm=float(body["norm"]),
        values=tuple(float(value) for value in body["values"]),
    )
