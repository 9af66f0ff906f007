"""asl-pipe doctor."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    jobs: Annotated[bool, typer.Option(help="Run a short test job on the cluster.")] = True,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="Stage whose nodes are tested, see cluster.yaml.")
    ] = "pretrain",
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long the test job may wait for a node.")
    ] = 60.0,
) -> None:
    """Check this machine and the cluster for anything that would break a run.

    Each problem is printed with its remedy; exit code 1 if one must be fixed. Writes under .asl
    only.

    Example: asl-pipe doctor --stage pretrain --wait 300
    """
    from pipeline.config.cluster import read_cluster
    from pipeline.config.suggest import unknown_name
    from pipeline.doctor.checks import examine, examine_scheduler, worst
    from pipeline.doctor.containers import examine_images
    from pipeline.doctor.machine import Machine
    from pipeline.doctor.nodes import examine_nodes
    from pipeline.doctor.overrides import keys_of_all_suites, requests_of, unfitting
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.schedulers.find import find_kind
    from pipeline.schedulers.port import Finding, Level, SchedulerError
    from pipeline.stages.table import STAGES

    if stage not in STAGES:
        raise UserError(unknown_name("stage", stage, STAGES))
    project = find_project(Path.cwd(), "demo")
    cluster, keys = read_cluster(project.cluster_file), keys_of_all_suites(project)
    requests = requests_of(cluster, keys)
    kind = find_kind(project.cluster_file)
    scheduler = kind.connect(project.scratch)
    found: list[Finding] = []

    def say(finding: Finding) -> None:
        found.append(finding)
        typer.echo(f"{finding.level:<8} {finding.what}: {finding.detail}")
        if finding.remedy:
            typer.echo(f"{'':<8} -> {finding.remedy}")

    def answers() -> bool:
        try:
            scheduler.queue()
        except SchedulerError:
            return False
        return True

    for finding in examine(project, Machine()):
        say(finding)
    for line in unfitting(cluster, keys):
        say(Finding("cluster.yaml", Level.NOTE, line))
    for finding in examine_images(requests):
        say(finding)
    for finding in examine_scheduler(kind, project.scratch, requests):
        say(finding)
    if jobs and answers():
        for finding in examine_nodes(project.scratch, scheduler, requests[stage], wait):
            say(finding)
    if worst(found) is Level.FAILURE:
        raise typer.Exit(1)
