"""What a method predicts on test images while it is trained: predictions and targets, as tensors.

Pre-training writes them, for it has the method; the analysis of the contrastive view reads them
and needs no method. An edit of one method's file therefore runs no other method's analysis again.

    step-000046.safetensors    after optimiser step 46; the last one after the last step
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from asl_core.data.loaders import evaluation_batches
from asl_core.data.shards import PackedDataset
from asl_core.data.views import collate_labelled, evaluation_transform
from asl_core.engine.devices import move
from asl_core.errors import InputError
from asl_core.modules.weights import save_weights
from asl_core.protocol import Draw, Method, ReconstructingMethod, Views
from asl_core.randomness import seeded_globals

HELD_OUT_FOLDER = "held_out"
_NAME = re.compile(r"step-(\d+)\.safetensors")
HELD_OUT_DRAW = Draw(seed=0, step=0)  # the same masks for every method, seed and step
_BATCH = 32  # bounds memory; changes no prediction


def held_out_predictions(
    method: ReconstructingMethod, dataset_folder: Path, count: int
) -> dict[str, Tensor]:
    """Predict the removed patches of test images, masked always alike.

    The images are spread evenly over the test split, so that each member of a union takes part.
    Leaves the method and the global random numbers as they are.

    Args:
        method: Predicts removed patches.
        dataset_folder: The packed dataset.
        count: How many images; all where the split has fewer.

    Returns:
        "target" and each branch's predictions ("ori", with ASL also "aug"), (B, R, P), float16,
        on the CPU. Its precision, 5e-4 of a value, is far below the error of any prediction.
    """
    dataset = PackedDataset(dataset_folder, "test")
    count = min(count, len(dataset))
    device = next(method.parameters()).device
    batches = evaluation_batches(
        dataset,
        evaluation_transform(method.recipe.model.image_size),
        collate_labelled,
        batch_size=_BATCH,
        subset=[i * len(dataset) // count for i in range(count)],
    )
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad(), evaluating(method), seeded_globals(0):
        for batch in batches:
            views = move(Views((batch.images,), batch.indices), device)
            images, mask = method.masked(views, HELD_OUT_DRAW)
            tensors = {"target": method.target(images, mask), **method.predictions(images, mask)}
            for name, tensor in tensors.items():
                parts.setdefault(name, []).append(tensor.half().cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def write_held_out(
    method: ReconstructingMethod, dataset_folder: Path, count: int, folder: Path, step: int
) -> None:
    """Write what `held_out_predictions` returns after `step` steps; a file is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_weights(temporary, held_out_predictions(method, dataset_folder, count))
    os.replace(temporary, path)


def snapshot_steps(total_steps: int, snapshots: int) -> list[int]:
    """Return after which steps predictions are kept: evenly spaced, always the last one."""
    evenly = {round(total_steps * (i + 1) / snapshots) for i in range(snapshots)}
    return sorted(step for step in evenly | {total_steps} if step > 0)


def held_out_files(folder: Path) -> dict[int, Path]:
    """Return the files that a pre-training left, by step; none for an imported encoder.

    Args:
        folder: That output of the pre-training, runs/held_out/<name>.
    """
    found = [(_NAME.fullmatch(p.name), p) for p in folder.glob("*")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def read_held_out(path: Path) -> dict[str, Tensor]:
    """Read one file: "target" and predictions by branch, (B, R, P), float32.

    Raises:
        InputError: The file is truncated or not one of ours.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise InputError(f"cannot read {path}: {error}; run its pre-training again") from None
    if not {"target", "ori"} <= tensors.keys():
        raise InputError(
            f"{path} has no predictions of removed patches; run its pre-training again"
        )
    return {name: tensor.float() for name, tensor in tensors.items()}


@contextlib.contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Switch to evaluation and back, each module to its own mode: a teacher may never train."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
