"""Putting weights into a method that has just been built, in place of those it drew."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.modules.encoder import BIAS_TABLE, Encoder
from asl_core.modules.positions import resize_positions
from asl_core.modules.relative_bias import resize_table
from asl_core.protocol import Method, ModuleLike


@torch.no_grad()
def begin_with_encoder(method: Method, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a method an encoder's weights; every encoder of it, a teacher's too, has them then.

    Positions of another grid are resized, as when an encoder is loaded. Which weights are trained
    stays as the method has it: where it fixes positions, these are fixed.

    Args:
        method: As built.
        state: Under timm's names.
        source: Where they are from, for messages.

    Raises:
        InputError: They do not fit; names the first tensor.
    """
    encoder = method.encoder
    if not isinstance(encoder, Encoder):
        raise TypeError(f"{type(method).__name__}.encoder is no Encoder")
    fitting = _resized(encoder, state)
    _refuse_others(encoder, fitting, source)
    for module in method.modules():
        if isinstance(module, Encoder):
            own = module.state_dict()  # a teacher may lack the last norm
            for name in own.keys() & fitting.keys():
                own[name].copy_(fitting[name])


@torch.no_grad()
def begin_with_all(method: ModuleLike, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a method all that another run of it ended with.

    Raises:
        InputError: It does not fit; names the first tensor.
    """
    _refuse_others(method, state, source)
    for name, tensor in method.state_dict().items():
        tensor.copy_(state[name])


def _resized(encoder: Encoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with positions for the encoder's grid, where they are for a square."""
    fitting, grid = dict(state), encoder.vit.grid_size
    positions, table = fitting.get("pos_embed"), fitting.get(BIAS_TABLE)
    if positions is not None and positions.ndim == 3:
        count = positions.shape[1] - 1
        if count > 0 and round(count**0.5) ** 2 == count:
            fitting["pos_embed"] = resize_positions(positions, (grid, grid))
    if table is not None and table.ndim == 2:
        fitting[BIAS_TABLE] = resize_table(table, grid)
    return fitting


def _refuse_others(module: ModuleLike, state: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights of another architecture, by the first tensor in the module's order."""
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            difference = f"{name} is missing"
        elif state[name].shape != tensor.shape:
            difference = f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        else:
            continue
        break
    else:
        left = next((name for name in state if name not in expected), None)
        if left is None:
            return
        difference = f"{left} has no place in this model"
    raise InputError(
        f"initialise: {source} does not fit: {difference}; give `model` and method in params.yaml "
        "that these weights are of, or other weights"
    )
