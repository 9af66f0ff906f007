"""Read an exported folder with those whom it is for, and compare what they compute with ours."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange import graph
from asl_core.exchange.exporting import WEIGHTS
from asl_core.exchange.graph import Outputs
from asl_core.exchange.origin import Form
from asl_core.modules.encoder import Encoder, LayerNorm
from asl_core.recipes.models import Vit

IMAGES = 3
LARGEST = 1e-3
"""A difference, as a share of the largest feature, beyond which a reader computes something else:
other orders of summation reach a hundredth of it."""
EXTRAS = {Form.huggingface: "pip install 'asl-pipe[huggingface]'", Form.onnx: graph.EXTRA}


@dataclass(frozen=True)
class Comparison:
    """How far a reader is from the encoder.

    Attributes:
        reader: Its name and version.
        difference: The largest of any feature of any token, absolute.
        largest: The largest feature.
    """

    reader: str
    difference: float
    largest: float


@torch.no_grad()
def compare_with_reader(encoder: Encoder, form: Form, folder: Path) -> Comparison:
    """Load a folder as its reader does and encode drawn images with both.

    Args:
        encoder: In evaluation, on the CPU.
        form: Whose reader.
        folder: As `export_encoder` left it.

    Raises:
        InputError: The reader is missing, or computes something else.
    """
    size = encoder.vit.image_size
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    name, read = _reader(form)
    with _quiet():
        theirs = read(folder, encoder.vit, images)
    reader = f"{name} {sys.modules[name].__version__}"
    ours = torch.cat([each.flatten(1) for each in _ours(encoder, form, images)], dim=1)
    theirs = torch.cat([each.flatten(1) for each in theirs], dim=1)
    difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else torch.inf
    largest = ours.abs().max().item()
    if not difference <= LARGEST * max(1.0, largest):  # nan, too
        raise InputError(
            f"{reader} reads another encoder from what was exported as {form}: features differ by "
            f"{difference:.1e}; nothing was written, please report it with the experiment's method"
        )
    return Comparison(reader, difference, largest)


Read = Callable[[Path, Vit, Tensor], tuple[Tensor, ...]]


def _ours(encoder: Encoder, form: Form, images: Tensor) -> tuple[Tensor, ...]:
    return Outputs(encoder)(images) if form is Form.onnx else (encoder(images),)


def _reader(form: Form) -> tuple[str, Read]:
    """Return the name of a reader's module, and how it reads."""
    name, read = {
        Form.timm: ("timm", _by_timm),
        Form.mae: ("timm", _by_mae),
        Form.huggingface: ("transformers", _by_transformers),
        Form.onnx: ("onnxruntime", _by_onnxruntime),
    }[form]
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"an export as {form} needs {name}, with which it is checked; {EXTRAS[form]}"
        )
    return name, read


def _by_timm(folder: Path, _vit: Vit, images: Tensor) -> tuple[Tensor, ...]:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return (model.forward_features(images),)


def _by_mae(folder: Path, vit: Vit, images: Tensor) -> tuple[Tensor, ...]:
    """Read as the official MAE: its encoder for transfer is timm's, with a norm of 1e-6."""
    stored = torch.load(folder / WEIGHTS[Form.mae], weights_only=True)["model"]
    model = VisionTransformer(
        vit.image_size, vit.patch_size, 3, 0, embed_dim=vit.embed_dim, depth=vit.depth,
        num_heads=vit.num_heads, mlp_ratio=vit.mlp_ratio, norm_layer=LayerNorm,
    )  # fmt: skip
    model.load_state_dict(stored)
    return (model.eval().forward_features(images),)


def _by_transformers(folder: Path, _vit: Vit, images: Tensor) -> tuple[Tensor, ...]:
    transformers = importlib.import_module("transformers")
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model = transformers.AutoModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True
        )
    finally:
        if shown:
            bars.enable_progress_bar()
    return (model.eval()(pixel_values=images).last_hidden_state,)


def _by_onnxruntime(folder: Path, _vit: Vit, images: Tensor) -> tuple[Tensor, ...]:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(
        folder / WEIGHTS[Form.onnx], providers=["CPUExecutionProvider"]
    )
    found = session.run(list(graph.OUTPUTS), {graph.INPUT: images.numpy()})
    return tuple(torch.from_numpy(each) for each in found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep notes of the readers off the terminal."""
    names = ("timm", "transformers")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
