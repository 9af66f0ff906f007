"""asl-pipe bundle."""

from pathlib import Path
from typing import Annotated

import typer


def bundle(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="pretrain, linprobe, ...; or all of them: all.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Entries of the stage; default: all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: SUITE-STAGE.pyz.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="A suite; default: that of the current folder.")
    ] = None,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Also the runs that depend on them.")
    ] = False,
) -> None:
    """Write one file that runs stages on a machine without the project: a rented GPU, a laptop.

    The file holds code, parameters and packed data of the named runs and of what they need and has
    no result yet. It needs Python and torch, torchvision, timm and safetensors there (detect
    and fewshot one more, which is said): no network, git, DVC or scheduler. Three commands:

    here: asl-pipe bundle pretrain mae asl --downstream -o table6.pyz

    there: python table6.pyz (Ctrl-C checkpoints; the same command goes on; see --help)

    here: asl-pipe accept table6.results.zip

    Data sets must be made before: dvc repro prepare@NAME, tokenize@NAME. Pictures are drawn where
    matplotlib is installed; elsewhere a line of text says that they were not.
    """
    from pipeline.bundles.launcher import INSTALLED_AS
    from pipeline.bundles.pack import pack
    from pipeline.errors import UserError
    from pipeline.project import find_project
    from pipeline.results.dvc_cache import DvcCache
    from pipeline.results.git import Git
    from pipeline.submission.selection import Wanted

    project = find_project(Path.cwd(), suite)
    everything = stage == "all"
    if everything and names:
        raise UserError("names are entries of one stage: asl-pipe bundle STAGE NAME...")
    wanted = Wanted(None if everything else stage, tuple(names or ()), downstream)
    target = output or Path(f"{project.label}-{stage}.pyz")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target.absolute().parent} does not exist; make it, or name another file")
    packed = pack(project, wanted, DvcCache(), Git(), target.absolute())
    for name in packed.ready:
        typer.echo(f"{name}: has a result, left out")
    size = target.stat().st_size / 1e6
    typer.echo(f"{', '.join(packed.runs)}: packed into {target} ({size:.1f} MB)")
    needs = ", ".join(sorted(INSTALLED_AS.get(name, name) for name in packed.packages))
    typer.echo(f"there: python {target.name}, with Python 3.11 or newer and {needs}")
    typer.echo(f"then here: asl-pipe accept {target.stem}.results.zip")
