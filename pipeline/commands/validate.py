"""asl-pipe validate."""

from pathlib import Path
from typing import Annotated

import typer


def validate(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="demo, or a folder under suites/.")
    ] = None,
) -> None:
    """Check params.yaml and cluster.yaml.

    Names, types, ranges, references. Notes data folders that are not on this machine. Changes
    nothing. Without SUITE: the suite in the current folder.

    Example: asl-pipe validate cifar10-mini
    """
    from asl_core.recipes.datasets import folders_of
    from pipeline.config.cluster import load_resources
    from pipeline.config.params import load_params
    from pipeline.errors import UserError
    from pipeline.execution.inputs import data_root, no_folder
    from pipeline.project import find_project
    from pipeline.results.suite_project import is_up_to_date
    from pipeline.stages.table import RUN_BY_JOBS
    from pipeline.tables.paper import load_paper
    from pipeline.tracking.find import find_kind

    project = find_project(Path.cwd(), suite)
    params = load_params(project.params_file, load_paper().references())
    load_resources(project.cluster_file, "pretrain")
    find_kind(project.root)
    if not is_up_to_date(project.suite):
        raise UserError(
            f"{project.suite / 'dvc.yaml'} is missing or does not match this version's stages; "
            f"asl-pipe expand {project.name} writes it"
        )
    for name, dataset in params.datasets.items():
        for folder in folders_of(dataset, data_root(project)):
            if not (folder.exists() or (project.suite / "data" / name).exists()):
                typer.echo(f"note: {no_folder(name, folder)}", err=True)
    counted = ", ".join(f"{len(params.section(s.name))} {s.name}" for s in RUN_BY_JOBS)
    typer.echo(f"{params.suite}: valid; {counted}")
