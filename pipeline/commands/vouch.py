"""asl-pipe vouch."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer


def vouch(
    stage: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="pretrain, linprobe, finetune, ...")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Entries of the stage; none: all of them."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All results of the suite whose code has changed.")
    ] = False,
) -> None:
    """Keep results although their code has changed, where it makes the same.

    To be called in the folder of a suite. Of a training run the first steps, 50 at most, are
    computed again from the recorded parameters and inputs and compared, bit for bit, with what the
    run wrote down; numbers are evaluated again from the stored weights and compared exactly. Equal:
    the result is filed under the present code too, and `dvc repro` takes it from there. Different:
    exit code 1, with the first step and tensor that differ, and by how much; nothing is filed.

    Who vouched, when and how stands in runs/STAGE/NAME.vouched.json, in `asl-pipe trace` and beside
    the number in every table.

    Examples: asl-pipe vouch pretrain asl; asl-pipe vouch linprobe; asl-pipe vouch --all
    """
    from pipeline.config.params import load_params
    from pipeline.errors import UserError
    from pipeline.execution.inputs import find_stage
    from pipeline.execution.vouch import vouch as vouch_for
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.stages.table import MEASURED

    if everything == (stage is not None):
        raise UserError("name what to vouch for: STAGE [NAME...] or --all")
    project = find_project(Path.cwd())
    if stage is not None and names and len(names) == 1:
        found = vouch_for(project, stage, names[0], DvcCache())
        run = find_stage(stage).run_name(names[0])
        typer.echo(f"{run}: {'current, nothing to vouch for' if found is None else found}")
        return
    params = load_params(project.params_file)
    stages = MEASURED if stage is None else [find_stage(stage)]
    codes = [
        _vouch_apart(each.name, key)
        for each in stages
        for key in names or params.section(each.name)
    ]
    if any(codes):
        raise typer.Exit(max(codes))


def _vouch_apart(stage: str, name: str) -> int:
    """Vouch for one result in a process of its own: threads are set when torch is loaded."""
    # -P: the code that runs now, whatever folder named `pipeline` the current one may have
    command = [sys.executable, "-P", "-m", "pipeline", "vouch", stage, name]
    return subprocess.run(command, check=False).returncode
