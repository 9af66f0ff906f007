"""asl-pipe doctor."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    jobs: Annotated[
        bool, typer.Option(help="Run a short job on the cluster and cancel it again.")
    ] = True,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="Whose nodes, as cluster.yaml has them.")
    ] = "pretrain",
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long that job may wait for a node.")
    ] = 60.0,
) -> None:
    """Look for what would spoil a run here or on the cluster.

    Each finding comes with its remedy; exit code 1 if anything must be mended. Writes under .asl
    only.

    Example: asl-pipe doctor --stage pretrain --wait 300
    """
    from pipeline.config.cluster import load_slurm
    from pipeline.config.suggest import unknown_name
    from pipeline.doctor.checks import Finding, Level, examine, worst
    from pipeline.doctor.machine import Machine
    from pipeline.doctor.nodes import examine_nodes
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.schedulers.slurm.scheduler import SlurmScheduler
    from pipeline.stages.table import STAGES

    if stage not in STAGES:
        raise UserError(unknown_name("stage", stage, STAGES))
    project, machine = find_project(Path.cwd(), "demo"), Machine()
    cluster = SlurmScheduler(project.scratch / "slurm")
    found: list[Finding] = []

    def say(finding: Finding) -> None:
        found.append(finding)
        typer.echo(f"{finding.level:<8} {finding.what}: {finding.detail}")
        if finding.remedy:
            typer.echo(f"{'':<8} -> {finding.remedy}")

    for finding in examine(project, machine, cluster):
        say(finding)
    answers = any(f.what == "Slurm's controller" and f.level is Level.OK for f in found)
    if jobs and answers:
        request = load_slurm(project.cluster_file, stage)
        for finding in examine_nodes(project.scratch, cluster, request, wait):
            say(finding)
    if worst(found) is Level.FAILURE:
        raise typer.Exit(1)
