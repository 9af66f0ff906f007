"""Successive halving: a run of a sweep is stopped that is not among the best at a share of its end.

The rule is that of ASHA, in the form that stops and does not pause: a run that reaches a rung goes
on if it is in the best share of those that have reached it so far, itself included; the first
always does (L. Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020).
Nobody waits for anybody, so what is stopped depends on the order in which runs come.

Each run leaves a mark of what it had at a rung, `.asl/halving/<group>/<rung>/<run>.json`, and reads
those of the others. Results do not depend on it: a run has the one that its parameters say, or
none.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.canonical import as_dict
from pipeline.config.sweeps import Halving, Sweep
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import effective_points
from pipeline.jobs.progress import ProgressReader
from pipeline.stages.table import PRETRAIN
from pipeline.writing import write_json

FOLDER = "halving"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a run had at a rung.

    Attributes:
        run: Experiment.
        rung: Share of its length.
        step: At which it was measured.
        total_steps: Of the run.
        value: Of the metric; more is better.
        reached: How many had reached the rung, this one included.
        better: How many of them had more.
        goes_on: Whether it went on.
        time: Seconds since 1970.
        basis: Digest of the code and the data; numbers of others are not compared.
    """

    run: str
    rung: float
    step: int
    total_steps: int
    value: float
    reached: int
    better: int
    goes_on: bool
    time: float
    basis: str = ""

    def text(self, metric: str) -> str:
        """Return in one line what was decided, on what number."""
        return (
            f"stopped by halving at {100 * self.rung:g} % (step {self.step} of "
            f"{self.total_steps}): {metric} {self.value:.4g}, {self.better} of {self.reached} "
            "had more"
        )


@dataclass(frozen=True)
class Rungs:
    """The rungs of a sweep, as one of its runs sees them.

    Attributes:
        folder: Of the sweep's marks.
        run: Experiment.
        halving: Where rungs are, and how many go on.
        basis: Of the run's own marks; None, for who only looks at them: marks of any count.
    """

    folder: Path
    run: str
    halving: Halving
    basis: str | None = None

    def place(self, rung: float, run: str | None = None) -> Path:
        """Return the file of a run's mark; of this run if none is named."""
        return self.folder / f"{rung:g}" / f"{run or self.run}.json"

    def mark(self, rung: float) -> Mark | None:
        """Return what this run had at a rung; None where it has not reached it."""
        mark = _read_mark(self.place(rung))
        return mark if mark is not None and self.basis in (None, mark.basis) else None

    def stopped(self) -> Mark | None:
        """Return the mark at which this run was stopped; None where it was not."""
        marks = (self.mark(rung) for rung in self.halving.at)
        return next((mark for mark in marks if mark is not None and not mark.goes_on), None)

    def decide(self, rung: float, step: int, total_steps: int, value: float, now: float) -> Mark:
        """Leave this run's mark at a rung, compare it with the others', and say who goes on.

        The mark is there before the others are read: of two that come at once one sees the other.
        """
        mark = Mark(
            run=self.run, rung=rung, step=step, total_steps=total_steps, value=value, reached=1,
            better=0, goes_on=True, time=now, basis=self.basis or "",
        )  # fmt: skip
        path = self.place(rung)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(mark))
        others = [found.value for found in self._marks(rung) if found.run != self.run]
        better = sum(other > value for other in others)
        mark = dataclasses.replace(
            mark, reached=1 + len(others), better=better,
            goes_on=goes_on(value, others, self.halving.keep),
        )  # fmt: skip
        write_json(path, dataclasses.asdict(mark))
        return mark

    def _marks(self, rung: float) -> Iterator[Mark]:
        for path in sorted(self.place(rung).parent.glob("*.json")):
            mark = _read_mark(path)
            if mark is not None and self.basis in (None, mark.basis):
                yield mark


def goes_on(value: float, others: Sequence[float], keep: float) -> bool:
    """Say whether a run is in the best share of those that have reached a rung so far.

    Args:
        value: Its own.
        others: Of those that were there before.
        keep: The share; of a few runs at least one goes on. Equal ones go on together.
    """
    places = max(1, math.ceil(keep * (len(others) + 1) - 1e-9))
    return sum(other > value for other in others) < places


def rungs_of(
    scratch: Path, suite: str, sweeps: Mapping[str, Sweep], key: str, recipe: object
) -> Rungs | None:
    """Return the rungs of a pre-training; None where it is not in a sweep that is halved.

    Runs are compared that differ in nothing but the swept fields and the seed, whatever values are
    added to the sweep later.

    Args:
        scratch: The project's `.asl`.
        suite: Name of the suite.
        sweeps: Of params.yaml.
        key: Experiment.
        recipe: Its own.
    """
    for experiment, sweep in sweeps.items():
        if key in sweep.runs and sweep.halving is not None:
            common = _without(as_dict(recipe), [*sweep.runs[key], "seed"])
            known = [suite, experiment, sweep.halving.metric, common]
            digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
            return Rungs(scratch / FOLDER / digest[:16], key, sweep.halving)
    return None


def basis_of(code: str, inputs: Mapping[str, str]) -> str:
    """Return what tells apart marks whose numbers cannot be compared.

    Args:
        code: Of a run's `Identity`.
        inputs: Likewise; the datasets among them count.
    """
    data = sorted(item for item in inputs.items() if item[0].startswith("data/"))
    return hashlib.sha256(json.dumps([code, data]).encode()).hexdigest()[:16]


class Halver:
    """Watches one run, and says when it is to be stopped.

    Args:
        rungs: The run's.
        work: Where it works.
        pause_s: Seconds between two looks at a long journal.
    """

    def __init__(self, rungs: Rungs, work: JobFolder, pause_s: float) -> None:
        self._rungs, self._work, self._pause_s = rungs, work, pause_s
        self._progress = ProgressReader(work.journal, PRETRAIN.name)
        self._looked = -math.inf

    @property
    def metric(self) -> str:
        """What runs are compared by."""
        return self._rungs.halving.metric

    def look(self, now: float) -> Mark | None:
        """Return the mark by which the run is to stop; None while it may go on.

        What was decided once stays: a run that was started again in spite of it runs on.

        Args:
            now: Seconds since 1970.
        """
        progress = self._progress.read()
        step, total = progress.step, progress.total_steps
        if step is None or total is None:
            return None
        due = [rung for rung in self._rungs.halving.at if step >= rung * total]
        due = [rung for rung in due if self._rungs.mark(rung) is None]
        if not due or now - self._looked < self._pause_s:
            return None
        self._looked = now
        points = effective_points(self._work.journal).get(self._rungs.halving.metric, [])
        for rung in due:
            reached = [(at, value) for at, value, _ in points if rung * total <= at < total]
            if reached:
                mark = self._rungs.decide(rung, *_first(reached, total), now)
                if not mark.goes_on:
                    return mark
        return None


def _first(points: Sequence[tuple[int, float]], total: int) -> tuple[int, int, float]:
    step, value = points[0]
    return step, total, value


def _without(settings: dict[str, Any], dotted: Sequence[str]) -> dict[str, Any]:
    """Return settings without some fields; a model's size stands for all of them."""
    left = dict(settings)
    for name in dotted:
        above, dot, inside = name.partition(".")
        if dot and isinstance(left.get(above), dict) and inside in left[above]:
            left[above] = {key: value for key, value in left[above].items() if key != inside}
        else:
            left.pop(above, None)
    return left


def _read_mark(path: Path) -> Mark | None:
    """Return a mark; None where there is none, or none that can be read."""
    try:
        return Mark(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
