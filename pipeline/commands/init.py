"""asl-pipe init."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.starting.images import Look
    from pipeline.starting.regimes import Evaluation


class Labels(StrEnum):
    """Whether folders are classes."""

    folder = "folder"
    none = "none"


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Of the new project; new, or empty.")
    ],
    images: Annotated[
        Path, typer.Option(help="A folder of images, at any depth; it is only read.")
    ],
    labels: Annotated[
        Labels | None,
        typer.Option(help="Whether the folders in it are classes; default: as they look."),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="Another folder, of class folders, to measure encoders on; nothing is pre-trained "
            "on it."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="For everything, on this machine; default: 60.", min=1)
    ] = None,
    hours: Annotated[float | None, typer.Option(help="The same in hours.", min=0.02)] = None,
    title: Annotated[
        str | None, typer.Option(help="Of the tables; default: the folder's name.")
    ] = None,
) -> None:
    """Make a project of your own images: from a folder to encoders and their numbers.

    Looks at the images, times training steps on this machine, chooses size, length and batch for
    the time, and says why. Writes params.yaml, dvc.yaml, cluster.yaml, README.md and the
    settings of git and DVC into FOLDER, which may be anywhere; the images stay where they are.
    Then `dvc repro` there packs them, pre-trains MAE and ASL beside a random encoder, evaluates,
    and writes the report. Where the images are in class folders, or --labelled names some that
    are, encoders are measured by k-NN and a linear probe.

    Example: asl-pipe init flowers --images ~/pictures/flowers --minutes 20

    Example: asl-pipe init scans --images /data/scans --labelled /data/graded --hours 8
    """
    import math
    import os

    from tqdm import tqdm

    from pipeline.errors import UserError
    from pipeline.starting.images import all_of_one_size, handling_of, look_at
    from pipeline.starting.machine import stopwatch
    from pipeline.starting.project import make_project, refuse_place
    from pipeline.starting.regimes import choose
    from pipeline.starting.texts import (
        cluster_text,
        length_of,
        params_text,
        readme_text,
        suite_name,
        told,
        why,
    )

    if minutes is not None and hours is not None:
        raise UserError("got both --minutes and --hours; give one")
    budget = minutes or (60 * hours if hours else 60.0)
    if not math.isfinite(budget):
        raise UserError(f"{budget:g} minutes are no time; give a number")
    target, source = (Path(os.path.abspath(path.expanduser())) for path in (folder, images))
    other = None if labelled is None else Path(os.path.abspath(labelled.expanduser()))
    refuse_place(target, (source, *filter(None, (other,))))
    with tqdm(desc="looking at the images", unit=" images", disable=None, leave=False) as bar:

        def found_so_far(count: int) -> None:
            bar.update(count - bar.n)

        look = look_at(source, "--images", found_so_far)
        evaluation = find_evaluation(look, labels, other, found_so_far)
    for line in told(look, evaluation):
        typer.echo(line)
    size = (look.short_side, look.long_side)
    square = look.one_size and size[0] == size[1] and size[0] <= 96
    with stopwatch() as watch:
        machine = watch.machine
        typer.echo(f"machine: {machine.words}; {budget:g} minutes")
        with tqdm(desc="timing training steps", unit=" sizes", disable=None, leave=False) as bar:

            def handling(max_side: int | None, side: int) -> object:
                bar.update()
                return handling_of(look.files, max_side, side)

            choice = choose(
                look, evaluation, machine, budget, watch.pace, handling,  # type: ignore[arg-type]
                one_size=square and all_of_one_size(source, size),
            )  # fmt: skip
    for line in why(look, choice, machine):
        typer.echo(line)
    name = suite_name(target.name)
    heading = title or f"{target.name}: MAE and ASL on {look.count:,} images"
    files = {
        "params.yaml": params_text(name, heading, budget, machine, look, evaluation, choice),
        "cluster.yaml": cluster_text(choice, machine),
        "README.md": readme_text(heading, look, choice, machine),
    }
    for line in make_project(target, files):
        typer.echo(line)
    shown = os.path.relpath(target) if target.is_relative_to(Path.cwd()) else str(target)
    typer.echo(f"{target}: params.yaml, cluster.yaml, dvc.yaml, README.md written")
    typer.echo(f"next, {length_of(choice).partition(' (')[0]}: cd {quote(shown)} && dvc repro")


def find_evaluation(
    look: "Look", labels: Labels | None, labelled: Path | None, on_progress: Callable[[int], None]
) -> "Evaluation | None":
    """Return what encoders are measured on; None where nothing has classes."""
    from pipeline.errors import UserError
    from pipeline.starting.images import look_at
    from pipeline.starting.regimes import Evaluation, holdout_of

    if labelled is not None:
        if labels is Labels.folder:
            raise UserError("--labels folder and --labelled both say where classes are; give one")
        other = look_at(labelled, "--labelled", on_progress)
        if not other.classes:
            raise UserError(_no_classes("--labelled", labelled))
        share = None if other.is_split else max(0.2, holdout_of(other.count))
        return Evaluation("labelled", other, len(other.classes), share)
    if labels is Labels.folder and not look.classes:
        raise UserError(_no_classes("--labels folder:", look.folder))
    if labels is Labels.none or not look.classes:
        return None
    share = None if look.is_split else holdout_of(look.count)
    return Evaluation("images", look, len(look.classes), share)


def _no_classes(option: str, folder: Path) -> str:
    return (
        f"{option} {folder} has no class folders: two or more, with five images or more each, and "
        "no image beside them"
    )


def quote(path: str) -> str:
    """Return a path as a shell takes it."""
    import shlex

    return shlex.quote(path)
