"""Results of jobs that wait for their adoption: what DVC's own commands do not know of.

`dvc gc -w` keeps what dvc.lock names, and deletes the files of a finished job that no suite has
adopted. The job's folder still has them, until `asl-pipe gc` takes it, and they are put back.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import Job, read_job
from pipeline.jobs.state import RunStatus, read_state
from pipeline.jobs.verdict import Verdict
from pipeline.results.port import ResultCache
from pipeline.stages.table import STAGES
from pipeline.submission.job_reports import JobReport
from pipeline.tables.lock import read_lock

logger = logging.getLogger(__name__)


def put_back_results(root: Path, cache: ResultCache) -> list[str]:
    """Put finished jobs' files back into DVC's cache where it lost them; return the runs' names.

    Args:
        root: Folder that has `.dvc`.
        cache: Where they belong.
    """
    scratch, names = root / ".asl", []
    for file in sorted((scratch / "jobs").glob("*/job.json")):
        paths = JobFolder(file.parent)
        job, state = read_job(paths), read_state(paths)
        if job is None or state is None or state.status is not RunStatus.SUCCEEDED:
            continue
        if not state.manifest or cache.holds(root, state.manifest):
            continue
        places = _places(job, JobFolder.of(scratch, state.fingerprint or paths.fingerprint))
        if places.keys() != state.manifest.keys() or not all(p.exists() for p in places.values()):
            continue
        found = cache.add(root, places)
        if all(found[path]["md5"] == hashed["md5"] for path, hashed in state.manifest.items()):
            names.append(job.name)
    names.sort()
    if names:
        logger.warning(
            "%s: put back into DVC's cache, which had lost the files (dvc gc deletes what no "
            "dvc.lock names; asl-pipe sync first)", ", ".join(names),
        )  # fmt: skip
    return names


def unadopted_reports(root: Path, reports: Sequence[JobReport]) -> list[JobReport]:
    """Return the reports on jobs whose result is there and which no dvc.lock names now.

    Args:
        root: Folder that has `.dvc`.
        reports: On the jobs.
    """
    found = []
    for report in reports:
        state, suite = report.state, root / report.job.suite
        if report.verdict is not Verdict.SUCCEEDED or state is None or not suite.is_dir():
            continue
        lock = read_lock(suite)
        known = {path: lock.digest(report.job.name, path) for path in state.manifest}
        if any(known[path] != hashed["md5"] for path, hashed in state.manifest.items()):
            found.append(report)
    return found


def never_recorded(reports: Sequence[JobReport], recorded: Collection[str]) -> list[JobReport]:
    """Return the reports on jobs whose result is there and which no dvc.lock has ever named.

    Args:
        reports: On the jobs.
        recorded: The md5 of all outputs that a dvc.lock names or has named.
    """
    return [
        report
        for report in reports
        if report.verdict is Verdict.SUCCEEDED
        and report.state is not None
        and any(hashed["md5"] not in recorded for hashed in report.state.manifest.values())
    ]


def _places(job: Job, work: JobFolder) -> dict[str, Path]:
    stage = STAGES[job.stage]
    places = {path: work.out / role for role, path in stage.output_paths(job.key).items()}
    metrics = stage.metrics_path(job.key)
    return places if metrics is None else {**places, metrics: work.metrics}
