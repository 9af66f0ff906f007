"""What became of a job, decided from evidence and never from one source. Pure.

| own account | queue | verdict |
|---|---|---|
| SUCCEEDED, outputs in the cache | any | SUCCEEDED |
| SUCCEEDED, outputs not visible | any | SETTLING for five minutes, then LOST |
| FAILED more than five minutes ago | does not answer | FAILED |
| not final, silent for a week | shows no other user's jobs | LOST |
| any other | does not answer | UNKNOWN |
| FAILED | no longer there | FAILED |
| FAILED | ending | SETTLING |
| STOPPED | as for FAILED | STOPPED as for FAILED |
| none, or not final | waits for what cannot succeed | BLOCKED |
| none, or not final | there | ACTIVE |
| INTERRUPTED | ended | LOST |
| not final, heartbeat under two minutes old | not there | SETTLING |
| not final, older | not there | LOST |
| none | ended before it began: cancelled | LOST |
| none, handed over a moment ago | not there | SETTLING |
| none | not there | LOST |
"""

from dataclasses import dataclass
from enum import StrEnum

from asl_core.wording import counted
from pipeline.jobs.job import Attempt
from pipeline.jobs.state import JobState, RunStatus
from pipeline.schedulers.port import JobPhase, QueuedJob


class Verdict(StrEnum):
    """What a job's evidence amounts to.

    Only FAILED and LOST may be submitted again, and STOPPED where its sweep is no longer halved.
    """

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    ACTIVE = "ACTIVE"
    BLOCKED = "BLOCKED"
    SETTLING = "SETTLING"
    """It is ending or beginning: look again later."""
    STOPPED = "STOPPED"
    """Ended on purpose before it had a result; it can go on from its checkpoint."""
    LOST = "LOST"
    """Nothing lives and nothing was finished: what is done so far is in its checkpoints."""
    UNKNOWN = "UNKNOWN"
    """The scheduler does not answer: show it, act on nothing."""


@dataclass(frozen=True)
class Patience:
    """How long silence means nothing, in seconds.

    Attributes:
        submitted_s: A job that was handed over may show in the queue so much later.
        silence_s: Twelve missed heartbeats.
        settling_s: Until a file that another machine has written is seen here.
        foreign_s: Until another user's job is given up, which the queue does not show. Should it
            rise again, it finds that it has a successor, and stops.
    """

    submitted_s: float = 60.0
    silence_s: float = 120.0
    settling_s: float = 300.0
    foreign_s: float = 7 * 86400.0


@dataclass(frozen=True)
class Evidence:
    """All that is known of a job.

    Attributes:
        attempt: The newest; None if the submitter died before it wrote one.
        state: What the job says, of whichever attempt.
        queued: The newest attempt's line in the queue.
        queue_answers: False if the queue could not be asked, or shows only the jobs of others.
        outputs_visible: All files of the state's manifest are in the cache.
        foreign: The queue answers, but does not show it: somebody else's job.
    """

    attempt: Attempt | None
    state: JobState | None
    queued: QueuedJob | None
    queue_answers: bool
    outputs_visible: bool
    foreign: bool = False


@dataclass(frozen=True)
class Finding:
    """A verdict and, for people, what it rests on."""

    verdict: Verdict
    detail: str = ""


def judge(evidence: Evidence, now: float, patience: Patience | None = None) -> Finding:
    """Decide what became of a job; `now` in seconds since 1970."""
    patience = patience or Patience()
    attempt, queued = evidence.attempt, evidence.queued
    state = evidence.state
    if attempt is not None and state is not None and state.token != attempt.token:
        state = None  # an older attempt's words are void
    if state is not None and state.status is RunStatus.SUCCEEDED:
        return _judge_success(evidence, state, now, patience)
    if not evidence.queue_answers:
        if state is not None and _has_failed_long_since(state, now, patience):
            return Finding(_FINAL[state.status], _last_line(state.error))
        whose = (
            f"submitted by {attempt.user}"
            if attempt is not None
            else "submitted by an unknown user"
        )
        if evidence.foreign and state is not None:
            days = (now - state.heartbeat) / 86400
            if now - state.heartbeat > patience.foreign_s:
                return Finding(Verdict.LOST, f"{whose}; last heartbeat {counted(days, 'day')} ago")
        return Finding(Verdict.UNKNOWN, f"{whose}; the scheduler does not report it")
    if queued is not None and not queued.has_ended:
        return _judge_queued(queued, state)
    if state is not None and state.status in _FINAL:
        return Finding(_FINAL[state.status], _last_line(state.error))
    if attempt is None:
        return Finding(Verdict.LOST, "it was never submitted")
    if attempt.refused is not None:
        return Finding(Verdict.LOST, f"the scheduler refused it: {attempt.refused}")
    if state is None:
        return _judge_unheard(attempt, queued, now, patience)
    silence = now - state.heartbeat
    stopped = f", stopped by {'+'.join(state.stopped_by)}" if state.stopped_by else ""
    ended = f", {queued.said}" if queued is not None else ""
    detail = f"not in the queue{ended}{stopped}; last heartbeat {max(0, round(silence))} s ago"
    settling = silence < patience.silence_s
    if queued is not None and state.status is RunStatus.INTERRUPTED:
        settling = False  # both sides say that it is over
    return Finding(Verdict.SETTLING if settling else Verdict.LOST, detail)


def _judge_success(evidence: Evidence, state: JobState, now: float, patience: Patience) -> Finding:
    if evidence.outputs_visible and state.manifest:
        return Finding(Verdict.SUCCEEDED)
    if now - (state.ended or state.heartbeat) < patience.settling_s:
        return Finding(Verdict.SETTLING, "succeeded; its outputs are not visible here yet")
    return Finding(Verdict.LOST, "it succeeded, but its outputs are no longer in DVC's cache")


_FINAL = {RunStatus.FAILED: Verdict.FAILED, RunStatus.STOPPED: Verdict.STOPPED}
"""Words of a job with which it has ended without a result."""


def _has_failed_long_since(state: JobState, now: float, patience: Patience) -> bool:
    """Say whether a job reported its failure long enough ago to be believed without the queue."""
    ago = now - (state.ended or state.heartbeat)
    return state.status in _FINAL and ago > patience.settling_s


def _judge_queued(queued: QueuedJob, state: JobState | None) -> Finding:
    waits = queued.phase is JobPhase.WAITING
    if waits and queued.can_never_start:
        return Finding(Verdict.BLOCKED, "a job it depends on did not succeed")
    if state is not None and state.status in _FINAL and not waits:
        how = state.status.value.lower()
        return Finding(Verdict.SETTLING, f"{how}, ending: {_last_line(state.error)}")
    return Finding(Verdict.ACTIVE, f"{queued.said} {queued.reason}".strip())


def _judge_unheard(
    attempt: Attempt, queued: QueuedJob | None, now: float, patience: Patience
) -> Finding:
    """Judge a job that is not in the queue and has not said a word."""
    if queued is not None and queued.never_began:
        return Finding(Verdict.LOST, f"{queued.said} before it started")
    age = now - attempt.submitted
    known = attempt.job_id is not None
    if age < (patience.silence_s if known else patience.submitted_s):
        detail = "just submitted" if known else "submitted; the scheduler's answer is not known"
        return Finding(Verdict.SETTLING, detail)
    if queued is not None:
        return Finding(Verdict.LOST, f"{queued.said} without writing anything")
    return Finding(
        Verdict.LOST, "it left the queue before it started" if known else "never accepted"
    )


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else ""
