"""What a result table is made of, ready to be printed in any format."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pipeline.rounding import fixed
from pipeline.tables.collect import StageResult
from pipeline.tables.paper import Metric

Status = Literal["result", "missing", "absent"]


@dataclass(frozen=True)
class Cell:
    """One method's number under one metric: the paper's, ours, the difference."""

    metric: Metric
    paper: float | str | None = None
    """As text where the paper prints no plain number: ~1.5x."""
    runs: tuple[StageResult, ...] = ()
    """The stage runs that the suite asks for, one for each pre-training seed."""
    values: tuple[float | None, ...] = ()
    """What each of them measured; None where it left no number."""
    undefined: tuple[bool, ...] = ()
    """Whether the data of each of them do not give the number."""
    errors: tuple[float | None, ...] = ()
    """Standard error of each over the choice of test images; None where it is not known."""
    based_on: tuple[StageResult, ...] = ()
    """Runs whose numbers ours is a multiple of."""
    replicates: int = 1
    """Experiments in the row; more than runs where the task is not asked of all."""
    detail: str = ""
    """What stands behind the number, for a tooltip."""
    floor: "Cell | None" = None
    """A random encoder's number under the same evaluation; of several the highest."""
    chance: float | None = None
    """What guessing would have given our runs; None where that is not known or not one number."""
    other_data: str = ""
    """What our data are and what the paper's, where these differ: then there is no delta."""

    @property
    def measured(self) -> tuple[float, ...]:
        """The numbers that exist."""
        return tuple(value for value in self.values if value is not None)

    @property
    def status(self) -> Status:
        """result; missing: the suite asks for it and no run left it; absent: not asked for."""
        if self.measured:
            return "result"
        return "missing" if self.missing else "absent"

    @property
    def ours(self) -> float | None:
        """The mean over the runs."""
        return fmean(self.measured) if self.measured else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the runs; None for one run, or where nothing varies."""
        if len(self.measured) < 2 or self.metric.exact:
            return None
        return stdev(self.measured)

    @property
    def deviation(self) -> float | None:
        """That over the runs; of a single one, its standard error over the choice of images."""
        if len(self.measured) > 1:
            return self.spread
        known = [error for error in self.errors if error is not None]
        return known[0] if known else None

    @property
    def decimals(self) -> int:
        """Of our number: one more than the paper prints where there is a spread to read."""
        return self.metric.decimals + (self.spread is not None)

    @property
    def delta(self) -> float | None:
        """Ours minus the paper's, both as printed, so that the row adds up for a reader."""
        if self.ours is None or self.other_data or not isinstance(self.paper, float):
            return None
        return float(fixed(float(fixed(self.ours, self.decimals)) - self.paper, self.decimals))

    @property
    def counted(self) -> tuple[StageResult, ...]:
        """The runs whose numbers are in ours."""
        return tuple(run for run, value in self._pairs() if value is not None)

    @property
    def missing(self) -> tuple[StageResult, ...]:
        """The runs without a number that the suite asks for, and that could give one."""
        if self.metric.optional:
            return ()
        undefined = self.undefined or (False,) * len(self.runs)
        pairs = zip(self._pairs(), undefined, strict=True)
        return tuple(run for (run, value), never in pairs if value is None and not never)

    @property
    def reduced(self) -> bool:
        return any(run.scale == "reduced" for run in self.counted)

    @property
    def states(self) -> frozenset[str]:
        """Which of current, outdated and unrecorded the counted runs are."""
        return frozenset(run.state for run in self.counted)

    @property
    def vouched(self) -> bool:
        """Whether a counted run was made with other code than it stands for."""
        return any(run.vouched for run in self.counted)

    @property
    def differing(self) -> bool:
        """Whether a metrics file behind our number disagrees with dvc.lock."""
        return any(run.difference for run in (*self.counted, *self.based_on))

    def _pairs(self) -> Iterator[tuple[StageResult, float | None]]:
        return zip(self.runs, self.values, strict=True)


@dataclass(frozen=True)
class Heading:
    """One metric's column group."""

    metric: Metric
    header: str
    group: str = ""
    paper_table: str = ""
    """Number of the table that the paper's values come from; empty: the paper has none."""
    paper_data: str = ""
    delta: bool = True
    """Whether any of our numbers may be subtracted from the paper's."""

    @property
    def name(self) -> str:
        """The header as a sentence has it: `CIFAR-10 Finetuning`."""
        return f"{self.group} {self.header}".strip()

    @property
    def subheads(self) -> tuple[str, ...]:
        """The columns of the group: what a method costs has no delta, as if it were better."""
        if not self.paper_table:
            return ("ours",)
        if self.metric.exact or not self.delta:
            return ("paper", "ours")
        return ("paper", "ours", "delta")


@dataclass(frozen=True)
class Line:
    """One row of a result table."""

    label: str
    keys: tuple[str, ...]
    """Experiments that fill it; none for a row that this suite does not run."""
    given: tuple[str, ...]
    source: Literal["run", "quoted", "own"]
    cells: tuple[Cell, ...]
    untrained: bool = False
    """Whether it is what the other rows are measured against."""

    @property
    def quoted(self) -> bool:
        """Whether the row has nothing but what the paper takes from other work."""
        return self.source == "quoted" and not self.keys


@dataclass(frozen=True)
class ResultTable:
    """A table ready to be printed in any format."""

    title: str
    caption: str
    reduced: bool
    given: tuple[str, ...]
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...] = ()
    """What a reader must know before reading a number: a branch that has collapsed."""
    remarks: tuple[str, ...] = ()
    """What else the runs and the prepared data say about themselves."""

    def cells(self) -> Iterator[tuple[Line, Heading, Cell]]:
        """Yield every cell, row by row."""
        for line in self.lines:
            for heading, cell in zip(self.headings, line.cells, strict=True):
                yield line, heading, cell
