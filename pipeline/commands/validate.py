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

    Names, types, ranges, references; and whether the files that datasets were packed from are still
    the same. Notes data folders that are not on this machine. Runs nothing. Without SUITE: the
    suite in the current folder.

    Example: asl-pipe validate cifar10-mini
    """
    from asl_core.recipes.datasets import folders_of
    from asl_core.recipes.tokenizers import DalleTokenizer
    from pipeline.config.cluster import read_cluster
    from pipeline.config.params import load_params
    from pipeline.config.yaml_files import read_yaml, shared_mappings
    from pipeline.doctor.overrides import keys_of_all_suites, unfitting
    from pipeline.errors import UserError
    from pipeline.execution.inputs import (
        no_folder,
        no_weights,
        no_weights_to_begin_with,
        start_file,
    )
    from pipeline.project import data_root, find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.sources import changed_source, refresh_sources
    from pipeline.results.suite_project import is_up_to_date
    from pipeline.stages.table import PREPARE, RUN_BY_JOBS
    from pipeline.tables.collect import collect
    from pipeline.tables.layout import contested_rows
    from pipeline.tables.lock import read_lock
    from pipeline.tables.paper import load_paper
    from pipeline.tracking.find import find_kind

    project = find_project(Path.cwd(), suite)
    paper = load_paper()
    params = load_params(project.params_file, paper.references())
    if params.scale == "paper" and (
        contested := contested_rows(collect(project.suite, params), paper)
    ):
        raise UserError("\n".join(f"{project.params_file}: {line}" for line in contested))
    for one, other in shared_mappings(read_yaml(project.params_file)):
        typer.echo(
            f"note: {project.params_file}: {one} and {other} are one mapping, by an alias (*): "
            "dvc exp run -S would change both or neither; write {<<: *name}",
            err=True,
        )
    cluster = read_cluster(project.cluster_file)
    for line in unfitting(cluster, keys_of_all_suites(project)):
        typer.echo(f"note: {line}", err=True)
    find_kind(project.root)
    if not is_up_to_date(project.suite):
        raise UserError(
            f"{project.suite / 'dvc.yaml'} is missing or does not match this version's stages; "
            f"asl-pipe expand {project.label} writes it"
        )
    for name, dataset in params.datasets.items():
        for folder in folders_of(dataset, data_root(project)):
            if not (folder.exists() or (project.suite / "data" / name).exists()):
                typer.echo(f"note: {no_folder(name, folder)}", err=True)
    for name, tokenizer in params.tokenizers.items():
        if isinstance(tokenizer, DalleTokenizer):
            file = tokenizer.file(data_root(project))
            if not (file.exists() or (project.suite / "data" / name).exists()):
                typer.echo(f"note: {no_weights(name, file)}", err=True)
    for key, recipe in params.experiments.items():
        file = start_file(recipe)
        if file is not None and not (project.suite / file).exists():
            typer.echo(f"note: {no_weights_to_begin_with(key, project.suite / file)}", err=True)
    counted = ", ".join(f"{len(params.section(s.name))} {s.name}" for s in RUN_BY_JOBS)
    typer.echo(f"{params.suite}: valid; {counted}")
    lock, cache = read_lock(project.suite), DvcCache()
    refresh_sources(project, params.datasets, cache)
    for key, recipe in params.datasets.items():
        path = PREPARE.input_paths(key, recipe)["source"]
        packed = lock.inputs(PREPARE.run_name(key)).get(path)
        for change in changed_source(project, path, packed, cache) if packed else ():
            typer.echo(f"datasets.{key}: {change}; dvc repro packs it anew")
