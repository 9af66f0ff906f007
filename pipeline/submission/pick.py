"""Which jobs a name means. Pure."""

from collections.abc import Sequence

from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.jobs.folder import PROVISIONAL
from pipeline.submission.job_reports import JobReport

SHORTEST_FINGERPRINT = 6


def pick(reports: Sequence[JobReport], name: str, suite: str) -> JobReport:
    """Return the newest job of a name in a suite.

    Args:
        reports: All jobs, the oldest first.
        name: `pretrain@asl`, a job's id, or the beginning of a fingerprint.
        suite: The suite's folder relative to the root.

    Raises:
        UserError: There is none.
    """
    for report in reversed(reports):
        if report.job.name == name and report.job.suite == suite:
            return report
    for report in reversed(reports):
        fingerprint = report.paths.fingerprint.removeprefix(PROVISIONAL)
        known = len(name) >= SHORTEST_FINGERPRINT and fingerprint.startswith(name)
        if report.job_id == name or known:
            return report
    names = sorted({report.job.name for report in reports if report.job.suite == suite})
    if not names:
        raise UserError(f"no job {name!r}: this suite has none; asl-pipe submit creates them")
    raise UserError(unknown_name("job", name, names))
