"""asl-pipe run."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asl_core.ranks import ranks_of
from pipeline.stages.table import CODE_STAGE, REPORT, REPORT_KEY

if TYPE_CHECKING:
    from pipeline.submission.await_job import Attendance
    from pipeline.tracking.port import Presenter, Tracker


def run(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="prepare, pretrain, linprobe, ...")],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="An entry of params.yaml; omit it for code and report."
        ),
    ] = REPORT_KEY,
) -> None:
    """Run one stage here; dvc.yaml calls this.

    Run it in a suite's folder. Writes runs/STAGE/NAME and runs/STAGE/NAME.json (prepare: data/NAME
    and runs/prepare/NAME; tokenize: also data/NAME; pretrain: also runs/encoder/NAME and
    runs/held_out/NAME; report: reports; code: code), and scratch under .asl/. After a kill, the
    same command resumes from the newest checkpoint; checkpoints are kept until DVC has the result.
    If a job computes this result, the command exits with 75 and names the job; with ASL_WAIT=1 it
    waits for the job. If the job failed, the stage is run here only with ASL_HERE=1.

    Example: asl-pipe run pretrain asl
    """
    from pipeline.execution.gpus import find_gpus
    from pipeline.execution.perform import BusyError
    from pipeline.execution.run import RunServices, run_stage
    from pipeline.project import find_project
    from pipeline.results.code import refresh_identities
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.dvc_experiment import find_dvc_experiment
    from pipeline.results.git import Git
    from pipeline.results.sources import refresh_all_sources
    from pipeline.rounding import significant
    from pipeline.tables.paper import load_paper
    from pipeline.tracking.find import find_tracker

    project = find_project(Path.cwd())
    if stage == CODE_STAGE:
        refresh_identities(project.suite)
        refresh_all_sources(project, DvcCache())
        return
    first = ranks_of(os.environ).rank == 0
    experiment = find_dvc_experiment(project, os.environ)
    if experiment is not None:
        project = dataclasses.replace(project, origin=experiment.origin)
    tracker = find_tracker(project.home)
    presenter = find_presenter(tracker, project.home, stage) if first else None
    jobs = find_attendance(project.scratch) if first else None
    services = RunServices(
        cache=DvcCache(), code=Git(), presenter=presenter, page_of=tracker.page_of,
        gpus=find_gpus, tags={} if experiment is None else experiment.tags,
        find_job_result=None if jobs is None else jobs.result_of,
    )  # fmt: skip
    tables = load_paper().references()
    try:
        outcome = run_stage(project, stage, name, services, tables)
    except BusyError:
        if project.origin is None:
            raise
        # another experiment makes the same: it is shown already, and DVC wants this folder's own
        project = dataclasses.replace(project, own_scratch=True)
        services = dataclasses.replace(services, presenter=None)
        outcome = run_stage(project, stage, name, services, tables)
    if not first:
        return  # the first process speaks for all
    how = "by a job" if outcome.seconds is None else (
        f"in {outcome.seconds:.1f} s, peak memory {outcome.peak_memory_gib or 0.0:.2f} GiB"
    )  # fmt: skip
    shown = ", ".join(
        f"{metric} {'cannot be had' if value is None else significant(value, 6)}"
        for metric, value in outcome.metrics.items()
    )
    logging.getLogger(__name__).info(
        "%s %s: done %s%s", stage, name, how, f"; {shown}" if shown else ""
    )
    if stage == REPORT.name:  # the last one; dvc.lock alone is a record without its numbers
        typer.echo(f"to commit these results: {committed_by(project.suite)}")


def committed_by(suite: Path) -> str:
    """Return the command that stages a suite's results; DVC's own hint leaves out the numbers."""
    metrics = " runs/*/*.json" if any(suite.glob("runs/*/*.json")) else ""
    return f"git add params.yaml dvc.lock{metrics}"


def find_attendance(scratch: Path) -> "Attendance | None":
    """Return what attends to jobs; None where none was ever submitted."""
    if next((scratch / "jobs").glob("*/job.json"), None) is None:
        return None
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.await_job import HERE, WAIT, Attendance
    from pipeline.submission.plan import SubmissionServices

    services = SubmissionServices(DvcCache(), find_scheduler(scratch), Git())
    return Attendance(services, wait=_is_set(WAIT), here=_is_set(HERE))


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def find_presenter(tracker: "Tracker", root: Path, stage: str) -> "Presenter | None":
    """Return what shows a stage's run; None where the tracker's store does not answer.

    The next stage need not wait for it. The report comes last and links to the runs of all
    others: they are brought first, and when `dvc repro` ends everything is there.
    """
    from pipeline.tracking.background import BackgroundTracker
    from pipeline.tracking.foreground import ForegroundTracker
    from pipeline.tracking.sync import catch_up

    if stage != REPORT.name:
        return BackgroundTracker(root)
    return ForegroundTracker(tracker) if catch_up(root, tracker) else None
