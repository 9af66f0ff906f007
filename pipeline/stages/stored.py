"""Weights that a stage stored, put back into what it trained."""

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from asl_core.errors import InputError
from asl_core.modules.encoder import check_same_architecture
from asl_core.protocol import ModuleLike


def load_stored(model: ModuleLike, path: Path) -> None:
    """Load weights into a model in place.

    Raises:
        InputError: They are missing, truncated, or of another architecture.
    """
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; restore it or run its stage") from None
    check_same_architecture(model, state, path)
    model.load_state_dict(state)
