"""What a suite cost, stage by stage: sums over the starts of its runs. Numbers in, numbers out.

What is not known is None; a sum that lacks some of its parts says so (`whole`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config.cost_factors import CostFactors
from pipeline.jobs.usage import RunCost, Usage
from pipeline.stages.table import STAGES

HOUR_S, KWH_J = 3600.0, 3.6e6
OTHERS, TOTAL = "other runs", "all"


@dataclass(frozen=True)
class Amount:
    """A sum.

    Attributes:
        value: None where nothing of it is known.
        whole: All parts were known; else it is at least so much.
    """

    value: float | None
    whole: bool = True


@dataclass(frozen=True, kw_only=True)
class Spending:
    """One row: a stage, the runs of other settings, or all.

    Attributes:
        stage: `pretrain`, `other runs` or `all`.
        runs, starts: How many.
        waiting: Hours in the queue, of those starts that came from one.
        hours: From begin to end, summed over starts.
        lost_hours: Of these, what was done again or came to nothing.
        gpu_hours, lost_gpu_hours, cpu_hours: Hours times what a start was given.
        cpu_use: Used over given, from 0 to 1; None: not known.
        memory: Bytes used at most and bytes given, of the start that came nearest to its limit.
        gpu_use: Mean utilisation of GPUs, from 0 to 1.
        kwh: Energy.
        assumed: Some of it by `watts_per_gpu` or `watts_per_cpu`, and not measured.
        co2_kg: CO2.
        price: In the currency of the factors.
        projected_hours, measured_hours: Of the runs that have succeeded and were rehearsed.
        sources: Where the starts' hours are from -> how many starts.
    """

    stage: str
    runs: int
    starts: int
    waiting: Amount
    hours: Amount
    lost_hours: Amount
    gpu_hours: Amount
    lost_gpu_hours: Amount
    cpu_hours: Amount
    cpu_use: float | None
    memory: tuple[float, float | None] | None
    gpu_use: float | None
    kwh: Amount
    assumed: bool
    co2_kg: Amount
    price: Amount
    projected_hours: float | None
    measured_hours: float | None
    sources: Mapping[str, int]

    @property
    def ratio(self) -> float | None:
        """Measured over projected hours."""
        if not self.projected_hours or self.measured_hours is None:
            return None
        return self.measured_hours / self.projected_hours


def spending(
    current: Sequence[RunCost],
    others: Sequence[RunCost],
    factors: CostFactors,
    projected: Mapping[str, float] | None = None,
) -> list[Spending]:
    """Return a row for each stage in the DAG's order, one for other runs, and their sum.

    Args:
        current: Runs that count.
        others: Those that do not.
        factors: Prices and CO2.
        projected: Run -> hours that its rehearsal has said.
    """
    projected = projected or {}
    rows = [
        _row(stage, those, factors, projected)
        for stage in STAGES
        if (those := [cost for cost in current if cost.stage == stage])
    ]
    if others:
        rows.append(_row(OTHERS, others, factors, {}))
    if not rows:
        return []
    last = _row(TOTAL, [*current, *others], factors, {})
    known = [row for row in rows if row.projected_hours is not None]
    if not known:
        return [*rows, last]
    hours = (
        sum(row.projected_hours or 0.0 for row in known),
        sum(row.measured_hours or 0.0 for row in known),
    )
    return [*rows, replace(last, projected_hours=hours[0], measured_hours=hours[1])]


def _row(
    stage: str, costs: Sequence[RunCost], factors: CostFactors, projected: Mapping[str, float]
) -> Spending:
    starts = [start for cost in costs for start in cost.starts]
    energy = [_joules(start, factors) for start in starts]
    kwh = _sum((None if each is None else each[0] / KWH_J) for each in energy)
    grams = factors.grams_co2_per_kwh
    prices = [_price(start, factors) for start in starts]
    rehearsed = [
        cost for cost in costs if cost.name in projected and cost.status.value == "SUCCEEDED"
        and all(start.seconds is not None for start in cost.starts)
    ]  # fmt: skip
    sources: dict[str, int] = {}
    for start in starts:
        source = start.sources.get("began", "record")
        sources[source] = sources.get(source, 0) + 1
    return Spending(
        stage=stage,
        runs=len(costs),
        starts=len(starts),
        waiting=_sum(
            None if s.waited is None else s.waited / HOUR_S for s in starts if s.job_id is not None
        ),
        hours=_sum(_hours(start) for start in starts),
        lost_hours=_sum(
            None if start.seconds is None else start.lost_s / HOUR_S for start in starts
        ),
        gpu_hours=_sum(_times(start, start.gpus) for start in starts),
        lost_gpu_hours=_sum(
            None if s.seconds is None or s.gpus is None else s.lost_s * s.gpus / HOUR_S
            for s in starts
        ),
        cpu_hours=_sum(_times(start, start.cpus) for start in starts),
        cpu_use=_share(starts, lambda s: s.cpu_s, lambda s: _product(s.seconds, s.cpus)),
        memory=_memory(starts),
        gpu_use=_share(
            starts,
            lambda s: _product(_product(s.seconds, s.gpus), _over_hundred(s.gpu_use)),
            lambda s: _product(s.seconds, s.gpus) or None,
        ),
        kwh=kwh,
        assumed=any(each is not None and each[1] for each in energy),
        co2_kg=Amount(None) if grams is None or kwh.value is None else (
            Amount(kwh.value * grams / 1000, kwh.whole)
        ),
        price=_sum(each[0] for each in prices) if all(each[1] for each in prices) else (
            Amount(_sum(each[0] for each in prices).value, whole=False)
        ),
        projected_hours=sum(projected[cost.name] for cost in rehearsed) if rehearsed else None,
        measured_hours=sum(s.seconds or 0 for cost in rehearsed for s in cost.starts) / HOUR_S
        if rehearsed
        else None,
        sources=sources,
    )  # fmt: skip


def _hours(start: Usage) -> float | None:
    return None if start.seconds is None else start.seconds / HOUR_S


def _times(start: Usage, count: int | None) -> float | None:
    return 0.0 if count == 0 else _product(_hours(start), count)


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _over_hundred(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _sum(parts: Iterable[float | None]) -> Amount:
    """Return a sum of what is known; of no parts at all, nothing is known."""
    found = list(parts)
    known = [part for part in found if part is not None]
    return Amount(sum(known) if known else None, len(known) == len(found))


def _share(
    starts: Sequence[Usage],
    part: Callable[[Usage], float | None],
    of: Callable[[Usage], float | None],
) -> float | None:
    """Return a part over the whole, of those starts of which both are known."""
    pairs = [(part(start), of(start)) for start in starts]
    known = [(one, whole) for one, whole in pairs if one is not None and whole]
    return sum(one for one, _ in known) / sum(whole for _, whole in known) if known else None


def _memory(starts: Sequence[Usage]) -> tuple[float, float | None] | None:
    """Return peak and limit where they are nearest; the highest peak where there is no limit."""
    limited = [(s.memory_peak, s.memory) for s in starts if s.memory_peak and s.memory]
    if limited:
        return max(limited, key=lambda pair: pair[0] / pair[1])
    peaks = [start.memory_peak for start in starts if start.memory_peak]
    return (max(peaks), None) if peaks else None


def _joules(start: Usage, factors: CostFactors) -> tuple[float, bool] | None:
    """Return a start's energy, and whether some of it is assumed; None where nobody knows.

    That of a start without GPUs is not known as long as nobody says what a processor takes.
    """
    seconds, assumed = start.seconds, False
    gpu = start.joules
    if gpu is None and start.gpus and seconds is not None and factors.watts_per_gpu is not None:
        gpu, assumed = seconds * start.gpus * factors.watts_per_gpu, True
    if start.gpus == 0:
        gpu = 0.0
    if gpu is None:
        return None
    if factors.watts_per_cpu is None:
        return (gpu, assumed) if start.gpus else None
    cpu = _product(seconds, start.cpus)
    return None if cpu is None else (gpu + cpu * factors.watts_per_cpu, True)


def _price(start: Usage, factors: CostFactors) -> tuple[float | None, bool]:
    """Return a start's price, and whether nothing of it is missing."""
    parts = [
        (_times(start, count), rate)
        for count, rate in ((start.gpus, factors.per_gpu_hour), (start.cpus, factors.per_cpu_hour))
    ]
    known = [hours * rate for hours, rate in parts if hours is not None and rate is not None]
    # hours of what has no price count for nothing
    whole = all(hours is not None for hours, rate in parts if rate is not None)
    return (sum(known) if known else None), whole
