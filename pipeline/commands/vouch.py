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
        typer.Argument(metavar="NAME...", help="Entries of the stage; default: all."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All results of the suite whose code has changed.")
    ] = False,
) -> None:
    """Keep results after a refactor, by showing that the new code computes the same.

    Run it in a suite's folder. The first steps of a training run, 50 at most, are replayed with the
    recorded parameters and inputs and compared bit for bit with what the run recorded. From the
    stored weights all metrics are evaluated again, and the encoder and the last predictions of test
    images are written again, and compared exactly. If all are equal, the result is filed under the
    new code too, where `dvc repro` finds it. If not: exit code 1, with what differs first and by
    how much; nothing is filed.

    Not compared: later steps, pictures, files of numbers in detail, predictions before the last.
    If the change touches one of these, use dvc repro.

    runs/STAGE/NAME.vouched.json and `asl-pipe trace` say who vouched, when and how; tables mark the
    number with a v.

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
        raise UserError("say what to vouch for: STAGE [NAME...] or --all")
    project = find_project(Path.cwd())
    if stage is not None and names and len(names) == 1:
        found = vouch_for(project, stage, names[0], DvcCache())
        run = find_stage(stage).run_name(names[0])
        typer.echo(f"{run}: {'current, nothing to vouch for' if found is None else found}")
        return
    params = load_params(project.params_file)
    stages = MEASURED if stage is None else [find_stage(stage)]
    runs = [(each, key) for each in stages for key in names or params.section(each.name)]
    if not names:  # leave out what never ran
        facts = DvcCache().survey(project.suite, [each.run_name(key) for each, key in runs])
        runs = [run for run in runs if facts[run[0].run_name(run[1])].locked is not None]
    if not runs:
        typer.echo("nothing has run here yet")
    codes = [_vouch_apart(each.name, key) for each, key in runs]
    if any(codes):
        raise typer.Exit(max(codes))


def _vouch_apart(stage: str, name: str) -> int:
    """Vouch for one result in a process of its own: threads are set when torch is loaded."""
    # -P: the code that runs now, whatever folder named `pipeline` the current one may have
    command = [sys.executable, "-P", "-m", "pipeline", "vouch", stage, name]
    return subprocess.run(command, check=False).returncode
