"""One form of a resolved configuration: for `config.json`, for digests, for the journal."""

import dataclasses
import json
from typing import Any

CURATED = (
    "method", "design", "source", "dataset", "model.image_size", "model.patch_size",
    "model.embed_dim", "model.depth", "model.decoder_depth", "epochs", "batch_size", "peak_lr",
    "weight_decay", "warmup_epochs", "layer_decay", "precision", "mask_ratio", "sem_weight",
    "sem_type", "mae_on", "drop_path", "augment", "image_size", "crop_size", "seed",
)  # fmt: skip
"""Hyperparameters by which runs are compared; few, so that the columns of a chart stay readable.
`config.json` has all of them."""


def as_dict(config: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain JSON values: tuples are lists."""
    return json.loads(canonical_json(config))


def canonical_json(config: Any) -> str:
    """Return a frozen dataclass as sorted, indented JSON with a final newline."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True, allow_nan=False) + "\n"


def curated_params(config: Any) -> dict[str, object]:
    """Return the hyperparameters by which runs are compared, at most 25."""
    found: dict[str, object] = {}
    for path in CURATED:
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value is not None:
            found[path] = value
    return found
