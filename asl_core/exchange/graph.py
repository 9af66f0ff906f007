"""An encoder as an ONNX graph: any encoder, whatever parts it has."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.exchange.preprocessing import Preprocessing
from asl_core.modules.encoder import NORM_EPS, Encoder

INPUT = "pixel_values"
OUTPUTS = ("cls", "mean_pooled", "patch_tokens")  # "mean" is the name of a value inside
OPSET = 18
EMBEDDED_BYTES = 2**30
"""Larger weights are in a second file, `<name>.data`: protobuf's messages end at 2 GiB."""
EXTRA = "pip install 'asl-pipe[onnx]'"


class Outputs(nn.Module):
    """What the evaluations read of an encoder.

    Shape:
        - images: (B, 3, S, S), normalised. Output: [cls] after the final norm, (B, D); mean of the
          patches before it, normalised without parameters, (B, D), as probes of the mean have it;
          patches after the final norm, (B, N, D).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.encoder.before_norm(images)  # (B, 1 + N, D)
        mean = F.layer_norm(tokens[:, 1:].mean(dim=1), tokens.shape[-1:], eps=NORM_EPS)
        normed = self.encoder.norm(tokens)
        return normed[:, 0], mean, normed[:, 1:]


def write_graph(encoder: Encoder, path: Path, preprocessing: Preprocessing) -> None:
    """Write a graph for batches of any size; its metadata say how images are prepared.

    Raises:
        InputError: A library is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"an export as onnx needs {name}; {EXTRA}")
    size = preprocessing.image_size
    with _silent(), _spelled_out(encoder):
        program = torch.onnx.export(
            Outputs(encoder).eval(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata(preprocessing))
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    program.save(path, external_data=weights > EMBEDDED_BYTES)


def metadata(preprocessing: Preprocessing) -> dict[str, str]:
    """Return what the graph says of its input and outputs, as texts."""
    return {
        "preprocessing": preprocessing.in_words(),
        "image_size": str(preprocessing.image_size),
        "short_side": str(preprocessing.short_side),
        "interpolation": "bicubic",
        "mean": json.dumps(preprocessing.mean),
        "std": json.dumps(preprocessing.std),
        "cls": "[cls] after the final norm",
        "mean_pooled": "mean of the patches before the final norm, then a norm without parameters",
        "patch_tokens": "patches after the final norm, row by row",
    }


@contextlib.contextmanager
def _spelled_out(encoder: Encoder) -> Iterator[None]:
    """Let attention be products and a softmax: of the fused kernel with a bias no graph is made."""
    layers = [module for module in encoder.modules() if isinstance(module, Attention)]
    fused = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.fused_attn = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's advice to its authors off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
