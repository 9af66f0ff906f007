"""asl-pipe rehearse."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asl_core.wording import counted

if TYPE_CHECKING:
    from pipeline.rehearsal.projection import Span
    from pipeline.rehearsal.report import RehearsalReport, StageEstimate

_HEADINGS = ("runs", "fits", "step", "waiting", "memory", "checkpoint", "one run", "all", "problem")


def rehearse(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Tell only of this stage.")] = None,
    steps: Annotated[
        int, typer.Option(help="Optimiser steps to try; a third of them is not counted.", min=3)
    ] = 12,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images of a step and process; default: as cluster.yaml has it, 8 without a GPU.",
            min=1,
        ),
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="On this machine, though there is a scheduler.")
    ] = False,
) -> None:
    """Know before you spend: try a few steps of every stage and project the whole suite.

    Each kind of run is tried at its true configuration on the first images of the real data: does
    it fit, how long is a step, how much of it is waiting for data, how large are checkpoints; and
    from that hours, GPU-hours, storage and the day on which all would be done. Runs as short jobs
    where there is a scheduler, else here. Touches no result.
    `asl-pipe plan` shows the newest projection.

    Example: asl-pipe rehearse table1 --stage pretrain
    """
    from datetime import datetime

    from pipeline.commands.printing import console, text_table
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.rehearsal.launch import find_launcher
    from pipeline.rehearsal.rehearse import rehearse as rehearse_suite
    from pipeline.rehearsal.report import write_report
    from pipeline.stages.table import STAGES

    if stage is not None and stage not in STAGES:
        from pipeline.config.suggest import unknown_name

        raise UserError(unknown_name("stage", stage, STAGES))
    project = find_project(Path.cwd(), suite)
    shown = console()

    def tell(estimate: "StageEstimate") -> None:
        shown.print(f"{estimate.names[0]}: {_in_a_line(estimate)}", highlight=False, markup=False)

    launcher = find_launcher(project, here)
    report = rehearse_suite(
        project, launcher=launcher, steps=steps, batch=batch, tell=tell, only=stage
    )
    if stage is None:
        write_report(project, report)
    shown.print(text_table(_HEADINGS, [_row(each) for each in report.estimates]))
    for line in summary(report, datetime.now()):
        typer.echo(line)
    if report.problems:
        raise typer.Exit(1)


def summary(report: "RehearsalReport", now: "object") -> list[str]:
    """Return hours, GPU-hours, storage and the day on which all is done, in lines."""
    from datetime import datetime

    assert isinstance(now, datetime)
    end, early, late = report.finished(now)
    gpu = report.gpu_hours
    lines = [
        f"one after the other: {hours(report.total)}; done {end:%Y-%m-%d %H:%M} "
        f"(between {early:%Y-%m-%d %H:%M} and {late:%Y-%m-%d %H:%M})",
        f"storage: {_size(report.stored_bytes)}",
    ]
    if gpu.expected:
        lines.insert(1, f"GPU-hours: {gpu.expected:,.1f} ({gpu.low:,.1f} to {gpu.high:,.1f})")
    if report.batch is not None:
        lines.append(f"tried with {counted(report.batch, 'image')} of a step and process")
    failed = sum(each.each is None for each in report.estimates)
    if failed:
        lines.append(f"without {failed} of {len(report.estimates)} kinds of runs: see the problems")
    if report.problems:
        lines.append(f"first problem: {report.problems[0]}")
    return lines


def hours(span: "Span") -> str:
    """Return a span in words: `3.2 h (2.9 to 4.0)`."""
    units = ((3600, "h"), (60, "min"), (1, "s"))
    factor, unit = next((u for u in units if span.expected >= u[0]), units[-1])
    return (
        f"{span.expected / factor:,.1f} {unit} "
        f"({span.low / factor:,.1f} to {span.high / factor:,.1f})"
    )


def _in_a_line(estimate: "StageEstimate") -> str:
    if estimate.each is None:
        return estimate.problem or "nothing to do"
    return hours(estimate.each)


def _row(estimate: "StageEstimate") -> tuple[str, ...]:
    first, count = estimate.names[0], len(estimate.names)
    fits = {None: "", True: "yes", False: "no"}[estimate.fits]
    if estimate.micro_batch is not None:
        fits = f"no, {estimate.micro_batch} would"
    step = "" if estimate.step_s is None else f"{estimate.step_s:.3g} s"
    waiting = "" if estimate.waiting is None else f"{100 * estimate.waiting:.0f} %"
    memory = _size(estimate.peak_host_bytes) if estimate.peak_host_bytes else ""
    if estimate.peak_device_bytes is not None and estimate.device_bytes is not None:
        memory = f"{_size(estimate.peak_device_bytes)} of {_size(estimate.device_bytes)}"
    checkpoint = ""
    if estimate.checkpoint_bytes:
        checkpoint = f"{_size(estimate.checkpoint_bytes)}, {estimate.checkpoint_s:.1f} s"
    each = "" if estimate.each is None else hours(estimate.each)
    total = "" if estimate.each is None else hours(estimate.total)
    runs = first if count == 1 else f"{first} and {count - 1} alike"
    return runs, fits, step, waiting, memory, checkpoint, each, total, estimate.problem or ""


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
