"""What the runs of a project took: accounting, the jobs' own records and journals, put together.

Of each figure the first of these counts that knows it: the scheduler's accounting, the record of
the job, the journal, what was kept of a run whose journal is gone. How busy GPUs were and what
energy they took, only journals know.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_core.errors import InputError
from pipeline.config.job_resources import megabytes
from pipeline.config.params import Params
from pipeline.config.yaml_files import read_yaml_if_any
from pipeline.errors import UserError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Attempt, Job, read_attempts, read_job
from pipeline.jobs.journal import read_run_name
from pipeline.jobs.kept_costs import keep_cost, kept_costs
from pipeline.jobs.starts import Cause, Start, read_starts
from pipeline.jobs.state import JobState, RunStatus, read_state
from pipeline.jobs.usage import ACCOUNTING, RECORD, RunCost, Usage, cost_in_journal
from pipeline.schedulers.port import Account, KeepsAccounts, Scheduler, SchedulerError
from pipeline.stages.table import REPORT, RUN_BY_JOBS

CLOCKS_S = 60.0
"""So far may the clocks of two machines be apart."""


@dataclass(frozen=True)
class SuiteCosts:
    """What a suite's runs took.

    Attributes:
        current: Runs whose results the suite has, or that are the newest of their name.
        others: Runs of other settings, and those that no result came of.
        problems: Why figures are missing, for people.
    """

    current: tuple[RunCost, ...]
    others: tuple[RunCost, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    """A job, by what is written down of it."""

    paths: JobFolder
    job: Job
    attempts: Sequence[Attempt]
    starts: Sequence[Start]
    state: JobState | None

    @property
    def works_in(self) -> str:
        """The folder in which its run works."""
        return (self.state.fingerprint if self.state else None) or self.paths.fingerprint


def suite_costs(
    root: Path, suite: Path, params: Params, scheduler: Scheduler | None, now: float,
    scheduler_name: str = "",
) -> SuiteCosts:  # fmt: skip
    """Return what the runs of a suite took.

    Args:
        root: Folder that has `.dvc`.
        suite: The suite's.
        params: Its params.yaml.
        scheduler: Asked once for all jobs, if it keeps accounts.
        now: Seconds since 1970.
        scheduler_name: As cluster.yaml names it; jobs of others are not asked about.
    """
    scratch = root / ".asl"
    problems: list[str] = []
    records = [r for r in _records(scratch) if (root / r.job.suite).resolve() == suite.resolve()]
    booked: dict[str, list[Account]] = {}
    try:
        booked = _accounts(records, scheduler, scheduler_name)
    except SchedulerError as error:
        problems.append(f"without the scheduler's accounting: {error}")
    found: dict[str, RunCost] = {}
    here, came = _journals(scratch, suite, params)
    for journal in (*here, *came):
        try:
            cost = cost_in_journal(journal, now)
        except InputError as error:
            problems.append(str(error))
            continue
        # a result that the suite has may have been made for another one
        ours = cost is not None and (cost.suite == params.suite or journal in came)
        if cost is not None and ours and cost.fingerprint not in found:
            found[cost.fingerprint] = cost
    by_work: dict[str, list[_Record]] = {}
    for record in records:
        by_work.setdefault(record.works_in, []).append(record)
    for fingerprint, those in by_work.items():
        cost = found.get(fingerprint) or _without_journal(those[-1], fingerprint, params.suite)
        found[fingerprint] = _with_records(cost, those, booked, records, now)
    for kept in kept_costs(scratch):
        if kept.suite == params.suite:
            own = found.get(kept.fingerprint)
            found[kept.fingerprint] = kept if own is None else _with_kept(own, kept)
    for cost in found.values():
        over = cost.status is not RunStatus.RUNNING and all(s.ended != now for s in cost.starts)
        if over and _is_from_accounting(cost):
            keep_cost(scratch, cost)  # the scheduler forgets
    ordered = sorted(found.values(), key=lambda c: min((s.began for s in c.starts), default=now))
    chosen = _current(ordered, suite, params)
    return SuiteCosts(
        tuple(cost for cost in ordered if cost.fingerprint in chosen),
        tuple(cost for cost in ordered if cost.fingerprint not in chosen),
        tuple(problems),
    )


def keep_costs_of(scratch: Path, folders: Iterable[Path], now: float) -> None:
    """Keep what runs took whose folders are going to be deleted.

    Args:
        scratch: The project's `.asl`.
        folders: Of runs, among others.
        now: Seconds since 1970.
    """
    going = {folder for folder in folders if folder.parent == scratch / "jobs"}
    if not going:
        return
    records = list(_records(scratch))
    kept = {cost.fingerprint: cost for cost in kept_costs(scratch)}
    by_work: dict[str, list[_Record]] = {}
    for record in records:
        by_work.setdefault(record.works_in, []).append(record)
    names = {folder.name for folder in going}
    names |= {work for work, those in by_work.items()
              if any(record.paths.folder in going for record in those)}  # fmt: skip
    for name in names:
        those = by_work.get(name, [])
        try:
            cost = cost_in_journal(JobFolder.of(scratch, name).journal)
        except (InputError, OSError, IndexError):
            cost = None
        if cost is None and those:
            suite = scratch.parent / those[-1].job.suite
            cost = _without_journal(those[-1], name, _suite_name(suite))
        if cost is None:
            continue
        cost = _with_records(cost, those, {}, records, now)
        if (earlier := kept.get(cost.fingerprint)) is not None:
            cost = _with_kept(cost, earlier)
        if cost.starts:
            keep_cost(scratch, cost)


def _suite_name(suite: Path) -> str:
    """Return what a suite's params.yaml calls it; its folder's name where that cannot be read."""
    try:
        return str(read_yaml_if_any(suite / "params.yaml").get("suite", suite.name))
    except UserError:
        return suite.name


def _records(scratch: Path) -> list[_Record]:
    found: list[_Record] = []
    for path in sorted((scratch / "jobs").glob("*/job.json")):
        paths = JobFolder(path.parent)
        if (job := read_job(paths)) is not None:
            state = read_state(paths)
            found.append(_Record(paths, job, read_attempts(paths), read_starts(paths), state))
    return sorted(found, key=lambda record: record.job.submitted)


def _journals(scratch: Path, suite: Path, params: Params) -> tuple[list[Path], list[Path]]:
    """Return the journals of runs that were made here, and those that lie beside results."""
    here = sorted(scratch.glob("jobs/*/journal"))
    came = [
        stage.details(suite, key) / "journal"
        for stage in RUN_BY_JOBS
        for key in params.section(stage.name)
    ]
    return _begun(here), _begun(came)


def _begun(journals: Iterable[Path]) -> list[Path]:
    return [path for path in journals if any(path.glob("attempt-*.jsonl"))]


def _current(costs: Sequence[RunCost], suite: Path, params: Params) -> Collection[str]:
    """Return the fingerprints of the runs that count: one for each that params.yaml asks for."""
    newest = {(cost.stage, cost.key): cost.fingerprint for cost in costs}
    known = {cost.fingerprint for cost in costs}
    chosen = {name for (stage, _), name in newest.items() if stage == REPORT.name}
    for stage in RUN_BY_JOBS:
        for key in params.section(stage.name):
            journal = stage.details(suite, key) / "journal"
            run = read_run_name(journal) if journal.is_dir() else None
            counts = run.fingerprint if run is not None else None
            fallback = newest.get((stage.name, key))
            chosen |= {name for name in (counts if counts in known else fallback,) if name}
    return chosen


def _accounts(
    records: Sequence[_Record], scheduler: Scheduler | None, name: str
) -> dict[str, list[Account]]:
    """Return what the scheduler has booked, by its jobs' ids; asked once."""
    if not isinstance(scheduler, KeepsAccounts):
        return {}
    ids = {
        job_id: None
        for record in records
        for attempt in record.attempts
        if not name or attempt.terms.scheduler == name
        for job_id in (attempt.job_id, *(s.job_id for s in record.starts
                                         if s.attempt == attempt.number))
        if job_id is not None
    }  # fmt: skip
    found: dict[str, list[Account]] = {}
    for account in scheduler.accounts_of(list(ids)) if ids else ():
        found.setdefault(account.job_id, []).append(account)
    return found


def _without_journal(record: _Record, fingerprint: str, suite: str) -> RunCost:
    """Return a run that has not got as far as a journal."""
    status = RunStatus.INTERRUPTED if record.state is None else record.state.status
    return RunCost(
        stage=record.job.stage, key=record.job.key, suite=suite, fingerprint=fingerprint,
        status=status, starts=(),
    )  # fmt: skip


def _with_records(
    cost: RunCost,
    records: Sequence[_Record],
    booked: Mapping[str, Sequence[Account]],
    everything: Sequence[_Record],
    now: float,
) -> RunCost:
    """Return a run with what its jobs' records and the scheduler's accounts add to its journal."""
    left, found = list(cost.starts), list[Usage]()
    ends = {s.job_id: s.ended for r in everything for s in r.starts if s.job_id and s.ended}
    for record in records:
        for attempt in record.attempts:
            accounts = {
                job_id: list(booked.get(job_id, ()))
                for job_id in dict.fromkeys(
                    [attempt.job_id, *(s.job_id for s in record.starts
                                       if s.attempt == attempt.number)])
                if job_id is not None
            }  # fmt: skip
            previous: float | None = None
            for start in (s for s in record.starts if s.attempt == attempt.number):
                usage = _of_record(record, attempt, start, ends, previous, now)
                own = next((u for u in left if _is_of(u, attempt, start)), None)
                if own is not None:
                    left.remove(own)
                    usage = _joined(own, usage)
                there = accounts.get(start.job_id or "", [])
                account = _account_of(start, there)
                if account is not None:
                    there.remove(account)
                    usage = _booked(usage, account, now)
                if start.restart and previous is not None:  # since then it waits again
                    usage = dataclasses.replace(usage, ready=min(previous, usage.began))
                goes_on = start.cause is None and usage.ended == now
                if own is None and start.cause is not Cause.SUCCEEDED and not goes_on:
                    usage = dataclasses.replace(usage, lost_s=usage.seconds or 0)
                found.append(usage)
                previous = usage.ended
            for account in (a for those in accounts.values() for a in those):
                own = next((u for u in left if _is_in(u, account)), None)
                if own is not None:  # of before there were records of starts
                    left.remove(own)
                    found.append(_booked(own, account, now))
                elif (
                    account.ended
                    and account.began >= attempt.submitted - CLOCKS_S
                    and (account.ended > account.began)
                ):  # it died before it had said a word
                    empty = Usage(began=account.began, ended=account.ended, job_id=account.job_id)
                    usage = _booked(empty, account, now)
                    found.append(dataclasses.replace(usage, lost_s=usage.seconds or 0))
    starts = tuple(sorted([*left, *found], key=lambda usage: usage.began))
    return dataclasses.replace(cost, starts=starts)


def _account_of(start: Start, accounts: Sequence[Account]) -> Account | None:
    """Return the account in whose time a start began: the job's program begins after the job.

    Not by number alone: another cluster, or one whose accounts were made anew, had other jobs.
    """
    near = [
        account
        for account in accounts
        if account.began - CLOCKS_S <= start.began
        and (account.ended is None or start.began <= account.ended + CLOCKS_S)
    ]
    return min(near, key=lambda account: abs(account.began - start.began), default=None)


def _is_in(usage: Usage, account: Account) -> bool:
    """Say whether a journal's attempt began in the time of an account."""
    return (
        usage.job_id == account.job_id
        and account.began - CLOCKS_S <= usage.began
        and (account.ended is None or usage.began <= account.ended + CLOCKS_S)
    )


def _is_of(usage: Usage, attempt: Attempt, start: Start) -> bool:
    """Say whether a journal's attempt is a start of a job."""
    return (
        usage.attempt == attempt.number
        and usage.job_id == start.job_id
        and usage.restarts == attempt.restarts + start.restart
    )


def _of_record(
    record: _Record,
    attempt: Attempt,
    start: Start,
    ends: Mapping[str, float],
    previous: float | None,
    now: float,
) -> Usage:
    """Return what a job's record says of a start."""
    asked = attempt.terms.asked
    nodes = int(asked.get("nodes", 1))
    ended, state = start.ended, record.state
    newest = (start.attempt, start.restart) == max((s.attempt, s.restart) for s in record.starts)
    if ended is None and newest and state is not None and state.attempt == attempt.number:
        ended = now if state.status is RunStatus.RUNNING and now - state.heartbeat < 60 else (
            max(start.began, state.heartbeat)
        )  # fmt: skip
    waited_for = [ends[job_id] for job_id in attempt.after if job_id in ends]
    ready = previous if start.restart and previous else max([attempt.submitted, *waited_for])
    memory = start.memory or asked.get("memory")
    found = {
        "began": start.began, "ended": ended, "ready": min(ready, start.began),
        "gpus": _gpus(asked) * nodes,
        "cpus": int(asked.get("cpus", 1)) * int(asked.get("tasks_per_node", 1)) * nodes,
        "memory": None if memory is None else float(megabytes(memory) * nodes * 2**20),
    }  # fmt: skip
    empty = Usage(
        began=start.began, ended=None, job_id=start.job_id, attempt=attempt.number,
        restarts=attempt.restarts + start.restart,
    )  # fmt: skip
    return empty.overlaid(RECORD, **found)


def _gpus(asked: Mapping[str, object]) -> int:
    """Return the GPUs of a node, however they are written: 4, or `a100:4`."""
    last = str(asked.get("gpus") or 0).rsplit(":", 1)[-1]
    return int(last) if last.isdigit() else 1


def _joined(own: Usage, record: Usage) -> Usage:
    """Return a start by its journal, with what its job's record knows better."""
    lost_all = own.lost_s > 0 and own.lost_s >= (own.seconds or 0)
    known = {name: getattr(record, name) for name in record.sources}
    if record.ended is None:
        known["ended"] = own.ended
    joined = own.overlaid(RECORD, **known)
    if record.ended is None:
        joined = joined.overlaid(own.sources.get("ended", RECORD), ended=own.ended)
    if own.joules is not None and own.gpus not in (None, joined.gpus):
        joined = dataclasses.replace(joined, joules=None)  # of some of its GPUs alone
    if joined.gpus == 0:
        joined = dataclasses.replace(joined, joules=0.0)
    return dataclasses.replace(joined, lost_s=joined.seconds or 0) if lost_all else joined


def _booked(usage: Usage, account: Account, now: float) -> Usage:
    """Return a start with what the scheduler has booked of it."""
    lost_all = usage.lost_s > 0 and usage.lost_s >= (usage.seconds or 0)
    ended = account.ended if account.ended is not None else now
    ready = account.ready if account.ready is None else min(account.ready, account.began)
    known = {
        "began": account.began, "ended": ended, "ready": ready, "gpus": account.gpus,
        "cpus": account.cpus, "cpu_s": account.cpu_s, "memory": account.memory,
        "memory_peak": account.memory_peak,
    }  # fmt: skip
    found = usage.overlaid(ACCOUNTING, **known)
    return dataclasses.replace(found, lost_s=found.seconds or 0) if lost_all else found


def _with_kept(cost: RunCost, kept: RunCost) -> RunCost:
    """Return a run with what was kept of it: starts that are gone, what accounting once said."""
    used: list[Usage] = []
    starts: list[Usage] = []
    for usage in cost.starts:
        same = next((each for each in kept.starts if _are_same(each, usage)), None)
        if same is not None:
            used.append(same)
            if _accounted(same) or not _accounted(usage):
                # what was known then; but how much was lost, shows when the run goes on
                known = "lost_s" in usage.sources
                usage = dataclasses.replace(same, lost_s=usage.lost_s) if known else same
        starts.append(usage)
    gone = [each for each in kept.starts if each not in used]
    ordered = sorted([*starts, *gone], key=lambda usage: usage.began)
    return dataclasses.replace(cost, starts=tuple(ordered))


def _are_same(one: Usage, other: Usage) -> bool:
    """Say whether two figures are of one start, as it was known at two times."""
    if one.job_id is None or other.job_id is None or one.attempt is None:
        return one.job_id == other.job_id and abs(one.began - other.began) < 1
    return (one.job_id, one.attempt, one.restarts) == (other.job_id, other.attempt, other.restarts)


def _accounted(usage: Usage) -> bool:
    return ACCOUNTING in usage.sources.values()


def _is_from_accounting(cost: RunCost) -> bool:
    return any(_accounted(usage) for usage in cost.starts)
