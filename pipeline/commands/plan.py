"""asl-pipe plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asl_core.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.config.job_resources import JobResources
    from pipeline.config.params import Params
    from pipeline.project import Project
    from pipeline.submission.plan import Entry, Plan

_NAMED = 4
"""Runs that are named before the others are counted."""
NOT_SHOWN = ("warning", "max_restarts", "max_queued", "requeue", "retries", "exclude_after")
"""Settings of how a job is looked after, and not of what it gets."""


def plan(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
) -> None:
    """Show what is stale, why, and what `submit --all` would do.

    Where there is no scheduler: what `dvc repro` would run. Live jobs that were submitted with
    other parameters or code are shown too, with what has changed since.

    Example: asl-pipe plan cifar10-mini
    """
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.schedulers.find import find_scheduler
    from pipeline.submission.plan import SubmissionServices, Wanted, make_plan

    project = find_project(Path.cwd(), suite)
    services = SubmissionServices(DvcCache(), find_scheduler(project.scratch), Git())
    try:
        found = make_plan(project, Wanted(), services)
    except UserError:
        show_wanted(project)  # it may be that
        raise
    show_surroundings(project, found)
    show_wanted(project)
    show_plan(found)


def show_surroundings(project: "Project", plan: "Plan") -> None:
    """Print how many runs there are, the newest projection, and what other suites make too."""
    from pipeline.config.params import load_params
    from pipeline.stages.table import RUN_BY_JOBS
    from pipeline.submission.shared import shared_runs

    params = load_params(project.params_file)
    show_projection(project, params, plan)
    counts = {stage.name: len(params.section(stage.name)) for stage in RUN_BY_JOBS}
    counted_stages = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    typer.echo(f"{sum(counts.values())} runs: {counted_stages}")
    for suite, runs in shared_runs(project).items():
        more = "" if len(runs) <= _NAMED else f" and {len(runs) - _NAMED} more"
        typer.echo(f"made once with {suite}: {', '.join(runs[:_NAMED])}{more}")


def show_projection(project: "Project", params: "Params", plan: "Plan") -> None:
    """Print what the newest rehearsal says of the runs that are to do."""
    from datetime import datetime

    from pipeline.commands.rehearse import summary
    from pipeline.rehearsal.kinds import settings_of
    from pipeline.rehearsal.report import read_report
    from pipeline.submission.plan import Action

    report = read_report(project)
    if report is None:
        return
    done = (Action.NOTHING, Action.STOPPED)
    left = [entry.name for entry in plan.entries if entry.action not in done]
    rest = report.left(left)
    if not rest.estimates:
        typer.echo(f"rehearsed {report.made}: nothing of it is left to do")
        return
    typer.echo(f"rehearsed {report.made}; what is left of it:")
    for line in summary(rest, datetime.now()):
        typer.echo(f"  {line}")
    unknown = sorted(set(report.unknown(settings_of(params))) & set(left))
    if unknown:
        typer.echo(
            f"  {counted(len(unknown), 'run')} of those to do had other settings then, or were "
            f"not tried, the first {unknown[0]}; asl-pipe rehearse tries again"
        )


def show_wanted(project: "Project") -> None:
    """Print what somebody has to bring, if anything."""
    from pipeline.commands.printing import console, text_table
    from pipeline.config.params import load_params
    from pipeline.execution.wanted import wanted_files

    wanted = wanted_files(project, load_params(project.params_file))
    if wanted:
        rows = [(each.where, ", ".join(each.readers), each.how) for each in wanted]
        console().print(text_table(("not here yet", "read by", "how to get it"), rows))


def show_plan(plan: "Plan") -> None:
    """Print a plan, and that the queue is not known where it is not."""
    from pipeline.commands.printing import console
    from pipeline.submission.plan import Action

    console().print(plan_table(plan))
    to_do = sum(entry.action not in (Action.NOTHING, Action.STOPPED) for entry in plan.entries)
    typer.echo(f"{counted(len(plan.entries), 'stage')}, {to_do:,} to do")
    if plan.is_local:
        stale = [entry for entry in plan.entries if entry.action is not Action.NOTHING]
        runs = f"what is to do, {counted(len(stale), 'stage')}," if stale else "nothing"
        typer.echo(f"{plan.queue_error}; `dvc repro` runs {runs} on this machine")
    elif plan.queue_error is not None:
        typer.echo(f"the queue could not be read: {plan.queue_error}", err=True)


def plan_table(plan: "Plan") -> "Table":
    """Return a plan as a table: what to do, why, with what, after what."""
    from pipeline.commands.printing import text_table

    rows = []
    for entry in plan.entries:
        more = (f"{len(entry.why) - 3} more",) if len(entry.why) > 3 else ()
        why = "; ".join(text for text in (_known_of(entry), *entry.why[:3], *more) if text)
        asked = asked_in_words(entry.request.asked) if entry.why and not plan.is_local else ""
        rows.append((entry.name, str(entry.action), why, asked, ", ".join(entry.needs)))
        for report, changes in entry.others:
            text = f"job {report.job_id} runs with other settings: {', '.join(changes) or 'none'}"
            rows.append(("", str(report.verdict), text, "", ""))
    return text_table(("stage", "to do", "why", "resources", "after"), rows)


def _known_of(entry: "Entry") -> str:
    """Return what is known of a run's job: `job 27 is ACTIVE RUNNING`."""
    job_id = entry.report.job_id if entry.report is not None else None
    return f"job {job_id} is {entry.detail}" if job_id and entry.detail else entry.detail


def asked_in_words(asked: "JobResources") -> str:
    """Return what a job asks for in a few words, defaults left out."""
    import dataclasses

    fields = {f.name: f.default for f in dataclasses.fields(asked) if f.name not in NOT_SHOWN}
    values = ((name, getattr(asked, name), default) for name, default in fields.items())
    return ", ".join(
        f"{name} {value}"
        for name, value, default in values
        if value != default and isinstance(value, str | int)
    )
