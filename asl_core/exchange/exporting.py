"""Write an encoder as timm and the official MAE read it, and say how they do."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from asl_core.errors import InputError
from asl_core.exchange.origin import Form
from asl_core.modules.encoder import Encoder
from asl_core.recipes.imported import ENCODER_FIELDS, nearest_size
from asl_core.recipes.models import MODELS, EncoderParts, Vit

TIMM_NAMES = {
    "vit_base_patch16_224": MODELS["vit-b"],
    "vit_small_patch16_224": MODELS["vit-s"],
    "vit_large_patch16_224": MODELS["vit-l"],
    "vit_huge_patch14_224": MODELS["vit-h"],
}
MAE_NAMES = {
    "vit_base_patch16": MODELS["vit-b"],
    "vit_large_patch16": MODELS["vit-l"],
    "vit_huge_patch14": MODELS["vit-h"],
}
ARGUMENTS = {"image_size": "img_size"}
"""Our field -> timm's argument, where they differ."""


def export_encoder(encoder: Encoder, form: Form, path: Path) -> None:
    """Write the weights; the names are timm's in both forms.

    timm: safetensors, without a head. mae: the torch file `{"model": weights}`. Both say
    num_heads, which no tensor's shape tells; other readers pass over it.

    Raises:
        InputError: It is no plain ViT, which is what both forms hold.
    """
    own = [name for name, has in _own_parts(encoder.parts).items() if has]
    if own:
        raise InputError(
            f"this encoder has {', '.join(own)}, and both forms hold plain ViTs only; use it here, "
            "or export one of another method"
        )
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    heads = encoder.vit.num_heads
    if form is Form.timm:
        metadata = {"format": "pt", "num_heads": str(heads)}
        path.write_bytes(safetensors.torch.save(state, metadata=metadata))
    else:
        torch.save({"model": state, "num_heads": heads}, path)


def _own_parts(parts: EncoderParts) -> dict[str, bool]:
    return {
        "LayerScale": parts.layer_scale is not None,
        "no bias of keys": not parts.key_bias,
        "relative position bias": parts.relative_positions,
    }


def usage(vit: Vit, form: Form, path: str) -> str:
    """Return the Python that reads an exported file."""
    if form is Form.timm:
        name, changes = nearest_size(vit, TIMM_NAMES)
        arguments = [*_arguments(changes), "num_classes=0", f"checkpoint_path={json.dumps(path)}"]
        return f"timm.create_model({', '.join([json.dumps(name), *arguments])})"
    name, changes = nearest_size(vit, MAE_NAMES)
    arguments = _arguments(changes)
    if changes.keys() - {"image_size"}:  # the named ones fix everything else
        name, fields = "VisionTransformer", {name: getattr(vit, name) for name in ENCODER_FIELDS}
        norm = "norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)"
        arguments = [*_arguments(fields), "qkv_bias=True", norm]
    model = f"models_vit.{name}({', '.join(arguments)})"
    load = f'model.load_state_dict(torch.load({json.dumps(path)})["model"], strict=False)'
    return f"model = {model}; {load}"


def _arguments(fields: Mapping[str, int | float]) -> list[str]:
    return [f"{ARGUMENTS.get(name, name)}={value!r}" for name, value in fields.items()]
