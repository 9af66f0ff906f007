"""A tokenizer beside the images of a dataset: tokenizer.json and tokenizer.safetensors."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from asl_core.errors import InputError
from asl_core.modules.weights import save_weights
from asl_core.tokenizers.dalle import DalleEncoder
from asl_core.tokenizers.kmeans import PatchClusters

DESCRIPTION_FILE = "tokenizer.json"
WEIGHTS_FILE = "tokenizer.safetensors"

StoredTokenizer = PatchClusters | DalleEncoder
"""What a dataset may have; both are a `Tokenizer` of `asl_core.protocol`."""


def save_tokenizer(tokenizer: StoredTokenizer, folder: Path) -> None:
    """Write a tokenizer into a folder that exists."""
    description = {
        "kind": tokenizer.kind,
        "num_codes": tokenizer.num_codes,
        "patch_pixels": tokenizer.patch_pixels,
    }
    save_weights(folder / WEIGHTS_FILE, tokenizer.state_dict())
    text = json.dumps(description, indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def has_tokenizer(folder: Path) -> bool:
    """Say whether a packed dataset has a tokenizer."""
    return (folder / DESCRIPTION_FILE).is_file()


def load_tokenizer(folder: Path) -> StoredTokenizer:
    """Return the tokenizer of a packed dataset, on the CPU; draws no random numbers.

    Raises:
        InputError: There is none, or it is damaged.
    """
    if not has_tokenizer(folder):
        raise InputError(f"{folder} has no tokenizer; name an entry of `tokenizers`")
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        return _built(description, state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder / DESCRIPTION_FILE} and {WEIGHTS_FILE} beside it are damaged ({reason}); "
            "make the dataset again with its tokenize stage"
        ) from error


def _built(description: dict[str, Any], state: dict[str, Tensor]) -> StoredTokenizer:
    kind, num_codes = description["kind"], int(description["num_codes"])
    if kind == DalleEncoder.kind:
        with torch.device("meta"):
            encoder = DalleEncoder(len(state["stem.bias"]), num_codes)
        encoder.load_state_dict(state, assign=True)
        return encoder.requires_grad_(False)
    if kind != PatchClusters.kind:
        raise ValueError(f"kind {kind!r}")
    patch_size = int(description["patch_pixels"])
    centres = state["centres"]
    if tuple(centres.shape) != (num_codes, 3 * patch_size**2):
        raise ValueError(f"centres are {tuple(centres.shape)}")
    return PatchClusters(centres, patch_size)
