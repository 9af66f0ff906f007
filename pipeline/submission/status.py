"""What people ask of jobs: how far each is, and why it ended. Reads only."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.config.cluster import job_resources
from pipeline.errors import UserError
from pipeline.jobs.verdict import Verdict
from pipeline.schedulers.port import Scheduler
from pipeline.submission.history import memory_hint, starts_of
from pipeline.submission.job_reports import JobReport

DAY_S = 86400.0

HEADINGS = ("stage", "suite", "state", "job", "node", "step", "loss", "images/s", "left",
            "restarts", "what is known")  # fmt: skip


MOST_EXPLAINED = 20
"""Jobs that the scheduler is asked about one by one: the newest."""


class Explanations:
    """Why jobs ended of which their own records say nothing: what the scheduler knows of them.

    Args:
        explain: The scheduler's; asked once for each job.
    """

    def __init__(self, explain: Callable[[str], str | None]) -> None:
        self._explain = explain
        self._known: dict[str, str | None] = {}

    def added_to(self, reports: Sequence[JobReport]) -> list[JobReport]:
        """Return the reports, with what the scheduler says (OUT_OF_MEMORY, ...) in their detail."""
        silent = [report.job_id for report in reports if _ended_without_a_word(report)]
        for job_id in silent[-MOST_EXPLAINED:]:
            if job_id is not None and job_id not in self._known:
                self._known[job_id] = self._explain(job_id)
        return [self._explained(report) for report in reports]

    def _explained(self, report: JobReport) -> JobReport:
        said = self._known.get(report.job_id or "") if _ended_without_a_word(report) else None
        detail = report.finding.detail
        if said is None or said in detail:
            return report
        detail = f"{said}; {detail}" if detail else said
        return replace(report, finding=replace(report.finding, detail=detail))


def _ended_without_a_word(report: JobReport) -> bool:
    if report.verdict is Verdict.FAILED:
        return not report.finding.detail
    refused = report.attempt is not None and report.attempt.refused is not None
    succeeded = report.own_state is not None and bool(report.own_state.manifest)
    return report.verdict is Verdict.LOST and not refused and not succeeded


def with_history(reports: Sequence[JobReport], scheduler: Scheduler) -> list[JobReport]:
    """Return the reports, with what earlier starts of a run taught: nodes avoided, memory lacking.

    Args:
        reports: All jobs that are to be shown.
        scheduler: Asked about the newest of those that have ended.
    """
    ended = [r.paths.folder for r in reports if r.verdict in (Verdict.FAILED, Verdict.LOST)]
    asked_about = set(ended[-MOST_EXPLAINED:])
    found: list[JobReport] = []
    for report in reports:
        if report.attempt is None:
            found.append(report)
            continue
        terms = report.attempt.terms
        said = [f"avoids {node}: {why}" for node, why in terms.avoid.items()] + [*terms.notes]
        if report.paths.folder in asked_about:
            starts = starts_of([report.paths], scheduler, write=False)
            with contextlib.suppress(UserError):  # another version's scheduler
                said.append(memory_hint(starts, job_resources(terms.scheduler, terms.asked)))
        detail = "; ".join(text for text in (report.finding.detail, *said) if text)
        found.append(replace(report, finding=replace(report.finding, detail=detail)))
    return found


def status_rows(reports: Sequence[JobReport], now: float) -> list[tuple[str, ...]]:
    """Return a line of texts for each job, as HEADINGS names them.

    Args:
        reports: All jobs that are to be shown.
        now: Seconds since 1970.
    """
    return [_row(report, now) for report in reports]


def _row(report: JobReport, now: float) -> tuple[str, ...]:
    state = report.own_state
    steps = ""
    if state is not None and state.step is not None:
        steps = f"{state.step}/{state.total_steps}" if state.total_steps else str(state.step)
    return (
        report.job.name,
        "demo" if report.job.suite == "." else report.job.suite.removeprefix("suites/"),
        str(report.verdict),
        report.job_id or "",
        _nodes(report),
        steps,
        _number(state.loss if state is not None else None, ".4f"),
        _number(state.images_per_s if state is not None else None, ".0f"),
        _left(report, now),
        str(_restarts(report) or ""),
        report.finding.detail,
    )


def _nodes(report: JobReport) -> str:
    """Return where a job runs or ran; nothing while it waits, even if it ran before."""
    if report.queued is not None and not report.queued.has_ended:
        return report.queued.nodes
    return report.own_state.nodes if report.own_state is not None else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _restarts(report: JobReport) -> int:
    state = report.own_state
    if state is not None:
        return state.restarts
    return report.attempt.restarts if report.attempt is not None else 0


def _left(report: JobReport, now: float) -> str:
    """Return how long a running job still needs; what it said is as old as its heartbeat."""
    state = report.own_state
    if state is None or report.verdict is not Verdict.ACTIVE or state.seconds_left is None:
        return ""
    return duration(max(0.0, state.seconds_left - (now - state.heartbeat)))


def duration(seconds: float) -> str:
    """Return a time as a person reads it: `48 s`, `12 min`, `3 h 05`, `2 d 04 h`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d}" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def recent(reports: Sequence[JobReport], now: float) -> list[JobReport]:
    """Return the jobs that live, and those that ended within a day."""
    ended = (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.STOPPED, Verdict.LOST)
    return [r for r in reports if r.verdict not in ended or now - _last_sign(r) < DAY_S]


def _last_sign(report: JobReport) -> float:
    submitted = report.attempt.submitted if report.attempt is not None else report.job.submitted
    return max(submitted, report.state.heartbeat if report.state is not None else 0.0)
