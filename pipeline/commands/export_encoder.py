"""asl-pipe export-encoder."""

from pathlib import Path
from typing import Annotated

import typer

from asl_core.exchange.origin import Form


def export_encoder(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment of params.yaml.")],
    format: Annotated[Form, typer.Option(help="Who will read it.")] = Form.timm,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; default: exports/NAME-FORMAT in the suite."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write an experiment's encoder as others read it, with a model card.

    Run it in a suite's folder. timm: a folder for timm.create_model. huggingface: one for
    transformers' ViTModel, with its image processor. onnx: a graph for ONNX Runtime. mae: a
    checkpoint with the official MAE's names. README.md says what the encoder is, its data,
    recipe and numbers. What was written is read back and compared with the encoder; an
    encoder that a format cannot hold is refused. Prints the Python that reads the folder.

    Example: asl-pipe export-encoder asl --format timm

    Example: asl-pipe export-encoder asl --format huggingface -o ~/models/asl-demo
    """
    from pipeline.execution.export_encoder import export_experiment
    from pipeline.project import find_project

    out = None if out is None else out.expanduser()
    exported = export_experiment(find_project(Path.cwd()), name, format, out, force)
    typer.echo(f"{exported.path}: {', '.join(exported.files)}")
    typer.echo(f"{exported.checked}\nImages: {exported.preprocessing}.\n{exported.usage}")
