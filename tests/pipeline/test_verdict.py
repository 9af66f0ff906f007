"""The table of verdicts, row by row, and what holds for every combination."""

import dataclasses
import itertools

import pytest

from pipeline.jobs.job import Attempt, Terms
from pipeline.jobs.state import JobState, RunStatus
from pipeline.jobs.verdict import Evidence, Verdict, judge
from pipeline.schedulers.port import JobPhase, QueuedJob

NOW = 1_000_000.0
MANIFEST = {"runs/pretrain/asl": {"md5": "0" * 32}}
TERMS = Terms(snapshot="s", resources={}, asked={}, upstream={}, data_root="/data")


def attempt(job_id: str | None = "27", age: float = 1000.0, refused: str | None = None) -> Attempt:
    return Attempt(
        number=1, token="t", job_id=job_id, submitted=NOW - age, host="h", user="u", terms=TERMS,
        refused=refused,
    )  # fmt: skip


def state(status: RunStatus, age: float = 1000.0, token: str = "t") -> JobState:
    ended = NOW - age if status is not RunStatus.RUNNING else None
    return JobState(
        status=status, attempt=1, token=token, heartbeat=NOW - age, started=NOW - 2000, ended=ended,
        manifest=MANIFEST if status is RunStatus.SUCCEEDED else {},
        error="Traceback\nOSError: full",
    )  # fmt: skip


def queued(phase: JobPhase, said: str = "", **flags: bool) -> QueuedJob:
    return QueuedJob("27", phase, said, comment="asl:01234567:t", restarts=0, **flags)


WAITING, STARTING, RUNNING, UNSETTLED, ENDED = map(queued, JobPhase)
BLOCKED = queued(JobPhase.WAITING, can_never_start=True)
CANCELLED = queued(JobPhase.ENDED, never_began=True)


def find(
    said: JobState | None,
    line: QueuedJob | None,
    *,
    tried: Attempt | None = None,
    answers: bool = True,
    visible: bool = True,
) -> Verdict:
    newest = attempt() if tried is None else tried
    return judge(Evidence(newest, said, line, answers, visible), NOW).verdict


OLD, FRESH = 1000.0, 5.0


@pytest.mark.parametrize(
    ("said", "line", "verdict"),
    [
        (state(RunStatus.SUCCEEDED), None, Verdict.SUCCEEDED),
        (state(RunStatus.SUCCEEDED), UNSETTLED, Verdict.SUCCEEDED),
        (state(RunStatus.FAILED), None, Verdict.FAILED),
        (state(RunStatus.FAILED), ENDED, Verdict.FAILED),
        (state(RunStatus.FAILED), UNSETTLED, Verdict.SETTLING),
        (state(RunStatus.FAILED), WAITING, Verdict.ACTIVE),
        (None, BLOCKED, Verdict.BLOCKED),
        (None, WAITING, Verdict.ACTIVE),
        *((said, line, Verdict.ACTIVE)
          for said in (None, state(RunStatus.RUNNING), state(RunStatus.INTERRUPTED))
          for line in (STARTING, RUNNING, UNSETTLED)),
        (state(RunStatus.RUNNING, FRESH), None, Verdict.SETTLING),
        (state(RunStatus.RUNNING, FRESH), ENDED, Verdict.SETTLING),
        (state(RunStatus.RUNNING, OLD), None, Verdict.LOST),
        (state(RunStatus.RUNNING, OLD), ENDED, Verdict.LOST),
        (state(RunStatus.INTERRUPTED, FRESH), None, Verdict.SETTLING),
        (state(RunStatus.INTERRUPTED, FRESH), CANCELLED, Verdict.LOST),
        (state(RunStatus.INTERRUPTED, OLD), None, Verdict.LOST),
        (None, None, Verdict.LOST),
        (None, ENDED, Verdict.LOST),
        # what an older attempt said counts for nothing
        (state(RunStatus.FAILED, token="older"), WAITING, Verdict.ACTIVE),
        (state(RunStatus.SUCCEEDED, token="older"), None, Verdict.LOST),
        (state(RunStatus.RUNNING, FRESH, token="older"), None, Verdict.LOST),
    ],
)  # fmt: skip
def test_evidence_of_both_sides_decides(
    said: JobState | None, line: QueuedJob | None, verdict: Verdict
) -> None:
    assert find(said, line) is verdict


@pytest.mark.parametrize(
    ("tried", "verdict"),
    [
        (attempt(job_id=None, age=5), Verdict.SETTLING),
        (attempt(job_id=None, age=61), Verdict.LOST),
        (attempt(job_id="27", age=61), Verdict.SETTLING),
        (attempt(job_id="27", age=121), Verdict.LOST),
        (attempt(job_id=None, age=5, refused="no such account"), Verdict.LOST),
    ],
)
def test_a_job_that_nobody_has_heard_of_gets_a_moment(tried: Attempt, verdict: Verdict) -> None:
    assert find(None, None, tried=tried) is verdict
    ended = Verdict.LOST if tried.refused else verdict
    assert find(None, ENDED, tried=tried) is ended
    assert find(None, CANCELLED, tried=tried) is Verdict.LOST


def test_outputs_that_are_not_seen_settle_and_are_given_up_after_five_minutes() -> None:
    assert find(state(RunStatus.SUCCEEDED, 299), None, visible=False) is Verdict.SETTLING
    assert find(state(RunStatus.SUCCEEDED, 301), None, visible=False) is Verdict.LOST


def test_what_failed_long_since_needs_no_word_of_the_scheduler() -> None:
    assert find(state(RunStatus.FAILED, 299), None, answers=False) is Verdict.UNKNOWN
    assert find(state(RunStatus.FAILED, 301), None, answers=False) is Verdict.FAILED
    assert find(state(RunStatus.INTERRUPTED, 301), None, answers=False) is Verdict.UNKNOWN
    assert find(state(RunStatus.FAILED, 301, token="older"), None, answers=False) is Verdict.UNKNOWN


def test_another_users_job_is_given_up_after_a_week_of_silence() -> None:
    day = 86400
    tried = attempt()
    for age, verdict in ((6 * day, Verdict.UNKNOWN), (8 * day, Verdict.LOST)):
        said = state(RunStatus.RUNNING, age)
        found = judge(Evidence(tried, said, None, False, False, foreign=True), NOW)
        assert found.verdict is verdict
        # a queue that does not answer says nothing of anybody's
        assert find(said, None, answers=False) is Verdict.UNKNOWN
    assert found.detail == "submitted by u; last heartbeat 8 days ago"
    unheard = Evidence(tried, None, None, False, False, foreign=True)
    assert judge(unheard, NOW).verdict is Verdict.UNKNOWN


def test_without_an_attempt_there_is_nothing_that_lives() -> None:
    assert judge(Evidence(None, None, None, True, False), NOW).verdict is Verdict.LOST
    assert judge(Evidence(None, None, None, False, False), NOW).verdict is Verdict.UNKNOWN


def test_every_combination_has_a_verdict_and_the_dangerous_ones_are_safe() -> None:
    states = [None, *(state(s, age, token) for s in RunStatus for age in (FRESH, OLD)
                      for token in ("t", "older"))]  # fmt: skip
    flags = [{}, {"can_never_start": True}, {"never_began": True}]
    lines = [None, *(queued(phase, **flag) for phase in JobPhase for flag in flags)]
    tried = [None, attempt(), attempt(None, 5), attempt(None, 5, "refused")]
    for said, line, newest, answers, visible in itertools.product(
        states, lines, tried, (True, False), (True, False)
    ):
        evidence = Evidence(newest, said, line if answers else None, answers, visible)
        verdict = judge(evidence, NOW).verdict
        own = said is not None and (newest is None or said.token == newest.token)
        if verdict is Verdict.SUCCEEDED:
            assert said is not None
            assert own
            assert said.status is RunStatus.SUCCEEDED
            assert visible
        if not answers:  # nothing that could be acted on follows from silence
            done = own and said is not None and said.status is RunStatus.SUCCEEDED
            ended = {RunStatus.FAILED: Verdict.FAILED, RunStatus.STOPPED: Verdict.STOPPED}
            known = own and said is not None and ended.get(said.status) is verdict
            assert verdict is Verdict.UNKNOWN or done or known
        live = answers and line is not None and not line.has_ended
        if live:  # what the scheduler still has is never submitted again
            assert verdict not in (Verdict.FAILED, Verdict.LOST, Verdict.STOPPED) or (
                said is not None and said.status is RunStatus.SUCCEEDED
            )


def test_a_verdict_says_what_it_rests_on() -> None:
    failed = judge(Evidence(attempt(), state(RunStatus.FAILED), None, True, False), NOW)
    assert failed.detail == "OSError: full"
    lost = judge(
        Evidence(
            attempt(), state(RunStatus.RUNNING), queued(JobPhase.ENDED, "TIMEOUT"), True, False
        ),
        NOW,
    )
    assert lost.detail == "not in the queue, TIMEOUT; last heartbeat 1000 s ago"
    cancelled = queued(JobPhase.ENDED, "CANCELLED", never_began=True)
    unheard = judge(Evidence(attempt(), None, cancelled, True, False), NOW)
    assert unheard.detail == "CANCELLED before it started"
    waiting = dataclasses.replace(queued(JobPhase.WAITING, "PENDING"), reason="Priority")
    assert judge(Evidence(attempt(), None, waiting, True, False), NOW).detail == "PENDING Priority"
    refused = judge(Evidence(attempt(refused="no account"), None, None, True, False), NOW)
    assert refused.detail == "the scheduler refused it: no account"
