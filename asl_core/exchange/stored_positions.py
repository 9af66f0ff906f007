"""Positions of a checkpoint: which grid they are for, and of which kind; rebuilt where missing."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.checkpoints import Checkpoint
from asl_core.exchange.finding import FoundEncoder
from asl_core.exchange.origin import Convention, ImportOptions
from asl_core.modules.positions import resize_positions, sincos_positions
from asl_core.recipes.models import Vit

SAME = 2e-3
"""By so much sin-cos positions in half precision may differ from exact ones."""


def read_positions(
    path: Path, stored: Tensor | None, width: int
) -> tuple[Tensor | None, int | None]:
    """Return positions with a row for [cls], and the side of their grid; None where none are.

    Raises:
        InputError: They are for no square grid.

    Shape:
        - stored: (1, 1 + N, D) or (1, N, D). Output: (1, 1 + N, D).
    """
    if stored is None:
        return None, None
    if stored.ndim != 3 or stored.shape[0] != 1 or stored.shape[2] != width:
        raise InputError(
            f"{path}: pos_embed is {tuple(stored.shape)}, expected (1, 1 + N, {width}) with N a "
            "square; only square grids with one [cls] can be imported"
        )
    count = stored.shape[1]
    for number in (count - 1, count):
        side = math.isqrt(max(number, 0))
        if side > 0 and side**2 == number:
            if number == count:  # [cls] has none: it is zero
                stored = torch.cat([stored.new_zeros(1, 1, width), stored], dim=1)
            _refuse_oblong_sincos(path, stored)
            return stored, side
    raise InputError(
        f"{path}: pos_embed is (1, {count}, {width}), expected (1, 1 + N, {width}) with N a "
        "square; only square grids can be imported, resample them to one first"
    )


def check_stated_grid(path: Path, checkpoint: Checkpoint, grid: int, patch: int) -> str | None:
    """Compare the grid of stored positions, taken for square, with the input that the file states.

    Args:
        path: The file, for messages.
        checkpoint: What it states.
        grid: Side of the grid.
        patch: Side of a patch in pixels.

    Returns:
        What there is to note.

    Raises:
        InputError: The file states another grid of as many patches.
    """
    if checkpoint.image_size is None:
        return f"positions taken for a square grid, {grid}x{grid}: the file does not say"
    rows, columns = (side // patch for side in checkpoint.image_size)
    height, width = checkpoint.image_size
    if rows * columns == grid**2 and rows != columns:
        raise InputError(
            f"{path} states images of {height}x{width} pixels: its positions are for {rows}x"
            f"{columns} patches; only square grids can be imported, resample them to one first"
        )
    if (rows, columns) != (grid, grid):
        return f"the file states images of {height}x{width} pixels, its positions are {grid}x{grid}"
    return None


def positions_for(
    path: Path,
    stored: Tensor | None,
    found: FoundEncoder,
    vit: Vit,
    options: ImportOptions,
) -> tuple[Tensor, str]:
    """Return positions for the encoder's grid, and what they are.

    Raises:
        InputError: None are stored and nothing says which they were; or stored, and given too.
    """
    if stored is not None:
        if options.positions is not None:
            raise InputError(f"{path} stores its positions; drop --positions")
        kept = resize_positions(stored, (vit.grid_size, vit.grid_size))
        return kept, _convention(stored)
    if (convention := options.positions or _convention_of_origin(found)) is None:
        raise InputError(
            f"{path} has no pos_embed and nothing says whose it is; --positions x-first (MAE) or "
            "y-first (MoCo v3, SIM) rebuilds sin-cos positions"
        )
    return sincos_in_convention(convention, vit.embed_dim, vit.grid_size), (
        f"sin-cos, {convention}, rebuilt"
    )


def sincos_in_convention(convention: Convention, embed_dim: int, grid_size: int) -> Tensor:
    """Return fixed positions, the column in the first half of the width (x-first) or the row.

    Shape:
        - Output: (1, 1 + grid_size^2, D).
    """
    return sincos_positions(embed_dim, grid_size, row_first=convention is Convention.y_first)


def _refuse_oblong_sincos(path: Path, stored: Tensor) -> None:
    """Refuse fixed positions of a grid that is not square: as many patches, other numbers."""
    _, count, width = stored.shape
    for rows, columns in _oblong_grids(count - 1) if width % 4 == 0 else ():
        longest = max(rows, columns)
        places = torch.arange(longest**2).unflatten(0, (longest, longest))[:rows, :columns]
        for convention in Convention:
            fixed = sincos_in_convention(convention, width, longest)[:, 1:]  # (1, longest^2, D)
            if torch.allclose(stored[:, 1:], fixed[:, places.flatten()], atol=SAME, rtol=0):
                raise InputError(
                    f"{path}: pos_embed are sin-cos positions of {rows}x{columns} patches; only "
                    "square grids can be imported, resample them to one first"
                )


def _oblong_grids(count: int) -> Iterator[tuple[int, int]]:
    for rows in range(1, count + 1):
        if count % rows == 0 and rows**2 != count and max(rows, count // rows) <= 16 * rows:
            yield rows, count // rows


def _convention(stored: Tensor) -> str:
    """Return what stored positions are; half precision counts as equal."""
    _, count, width = stored.shape
    if width % 4 == 0:
        for convention in Convention:
            fixed = sincos_in_convention(convention, width, math.isqrt(count))
            if torch.allclose(stored, fixed, atol=SAME, rtol=0):
                return f"sin-cos, {convention}"
    return "learned"


def _convention_of_origin(found: FoundEncoder) -> Convention | None:
    if found.is_of_moco:
        return Convention.y_first
    from_mae = any(name.startswith("decoder_") for name in found.tensors)
    return Convention.x_first if from_mae else None
