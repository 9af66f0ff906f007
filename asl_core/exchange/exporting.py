"""Write an encoder as others read it, and say how they do."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange import graph
from asl_core.exchange.origin import Form
from asl_core.exchange.preprocessing import Preprocessing
from asl_core.modules.encoder import NORM_EPS, Encoder
from asl_core.recipes.imported import nearest_size
from asl_core.recipes.models import MODELS, PLAIN, Vit

WEIGHTS = {
    Form.timm: "model.safetensors",
    Form.mae: "encoder.pth",
    Form.huggingface: "model.safetensors",
    Form.onnx: "model.onnx",
}
"""Form -> the file with the weights."""
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

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

SIZES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
"""What of a `Vit` a plain one has; whatever else is not the default is a part of its own."""
OWN_PARTS = {
    "layer_scale": "LayerScale",
    "key_bias": "no bias of keys",
    "relative_positions": "relative position bias",
    "registers": "registers",
    "mlp": "a gated MLP",
}
"""Field of a `Vit` or of `EncoderParts` -> how a message calls it; others go by their names."""
PLAIN_TENSORS = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\."
    r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))\.(weight|bias)"
)
"""What a plain ViT consists of."""


def export_encoder(
    encoder: Encoder, form: Form, folder: Path, preprocessing: Preprocessing
) -> None:
    """Write the weights, and what else the form has, into an empty folder.

    timm: config.json and safetensors, without a head. mae: the torch file `{"model": weights}`.
    huggingface: a ViTModel without its pooler, and its image processor. onnx: a graph, see
    `asl_core.exchange.graph`. The names of the first two are timm's; both say num_heads, which no
    tensor's shape tells, and other readers pass over it.

    Args:
        encoder: In evaluation, on the CPU.
        form: Who is to read it.
        folder: Where to write.
        preprocessing: For what the form says of it.

    Raises:
        InputError: The form holds plain ViTs only, and it is none; a library is missing.
    """
    check_holds(encoder, form)
    path = folder / WEIGHTS[form]
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    heads = encoder.vit.num_heads
    match form:
        case Form.timm:
            _write_tensors(path, state, num_heads=str(heads))
            _write_json(folder / CONFIG, timm_config(encoder.vit, preprocessing))
        case Form.mae:
            torch.save({"model": state, "num_heads": heads}, path)
        case Form.huggingface:
            _write_tensors(path, huggingface_state(state))
            _write_json(folder / CONFIG, huggingface_config(encoder.vit))
            _write_json(folder / PREPROCESSOR, preprocessing.for_huggingface())
        case Form.onnx:
            graph.write_graph(encoder, path, preprocessing)


def check_holds(encoder: Encoder, form: Form) -> None:
    """Refuse an encoder that a form cannot hold; a graph holds any.

    Raises:
        InputError: It is no plain ViT, and the form holds no other.
    """
    own = [] if form is Form.onnx else own_parts(encoder)
    if own:
        raise InputError(
            f"this encoder has {', '.join(own)}, and {form} is written for plain ViTs only; export "
            "it as onnx, which holds any, or export an encoder of another method"
        )


def own_parts(encoder: Encoder) -> list[str]:
    """Return what an encoder has otherwise than a plain ViT, as a message says it."""
    standard, sizes = Vit(), {field.name for field in dataclasses.fields(encoder.vit)}
    of_encoder = {name for name in sizes if not name.startswith("decoder_")} - {*SIZES}
    found = {name for name in of_encoder if getattr(encoder.vit, name) != getattr(standard, name)}
    found |= {
        field.name
        for field in dataclasses.fields(encoder.parts)
        if getattr(encoder.parts, field.name) != getattr(PLAIN, field.name)
    }
    if not found:  # a part that no field tells of
        found = {name for name in encoder.state_dict() if not PLAIN_TENSORS.fullmatch(name)}
    return sorted(OWN_PARTS.get(name, name) for name in found)


def _write_tensors(path: Path, state: Mapping[str, Tensor], **metadata: str) -> None:
    path.write_bytes(safetensors.torch.save(dict(state), metadata={"format": "pt", **metadata}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# --- timm, and the official MAE, which is built on it


def timm_config(vit: Vit, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the config.json by which `timm.create_model("local-dir:...")` builds the encoder."""
    name, changes = nearest_size(vit, TIMM_NAMES)
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": vit.embed_dim,
        "global_pool": "token",
        "model_args": {ARGUMENTS.get(field, field): value for field, value in changes.items()},
        "pretrained_cfg": {
            **preprocessing.for_timm(),
            "fixed_input_size": True,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "custom_load": False,
        },
    }


def usage(vit: Vit, form: Form, folder: str, preprocessing: Preprocessing) -> str:
    """Return the Python that reads an exported folder; for timm last a line without its config."""
    path = json.dumps(f"{folder}/{WEIGHTS[form]}")
    match form:
        case Form.timm:
            lines = (
                "import timm",
                f"model = timm.create_model({json.dumps(f'local-dir:{folder}')}, "
                "pretrained=True).eval()",
                "transform = timm.data.create_transform("
                "**timm.data.resolve_model_data_config(model))",
                "# or from the weights alone:",
                _timm_line(vit, path, preprocessing),
            )
        case Form.mae:
            lines = (_mae_line(vit, path),)
        case Form.huggingface:
            name = json.dumps(folder)
            lines = (
                "from transformers import AutoImageProcessor, AutoModel",
                f"processor = AutoImageProcessor.from_pretrained({name})",
                f"model = AutoModel.from_pretrained({name}, add_pooling_layer=False).eval()",
            )
        case Form.onnx:
            size = vit.image_size
            lines = (
                "import onnxruntime",
                f"session = onnxruntime.InferenceSession({path})",
                f"{', '.join(graph.OUTPUTS)} = session.run(None, {{{json.dumps(graph.INPUT)}: "
                f"images}})  # float32, (N, 3, {size}, {size}), normalised",
            )
    return "\n".join(lines)


def _timm_line(vit: Vit, path: str, preprocessing: Preprocessing) -> str:
    name, changes = nearest_size(vit, TIMM_NAMES)
    overlay = f"pretrained_cfg_overlay={preprocessing.for_timm()!r}"
    arguments = [*_arguments(changes), "num_classes=0", f"checkpoint_path={path}", overlay]
    return f"timm.create_model({', '.join([json.dumps(name), *arguments])})"


def _mae_line(vit: Vit, path: str) -> str:
    name, changes = nearest_size(vit, MAE_NAMES)
    arguments = _arguments(changes)
    if changes.keys() - {"image_size"}:  # the named ones fix everything else
        name, fields = "VisionTransformer", {name: getattr(vit, name) for name in SIZES}
        norm = "norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)"
        arguments = [*_arguments(fields), "qkv_bias=True", norm]
    model = f"models_vit.{name}({', '.join(arguments)})"
    load = f'model.load_state_dict(torch.load({path})["model"], strict=False)'
    return f"model = {model}; {load}"


def _arguments(fields: Mapping[str, int | float]) -> list[str]:
    return [f"{ARGUMENTS.get(name, name)}={value!r}" for name, value in fields.items()]


# --- transformers


def huggingface_config(vit: Vit) -> dict[str, Any]:
    """Return the config.json of a `ViTModel`."""
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": int(vit.embed_dim * vit.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": NORM_EPS,
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "dtype": "float32",
    }


HUGGINGFACE_STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
HUGGINGFACE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""timm's name of a module in a block -> transformers', those of its published ViT files, which
every version reads."""


def huggingface_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a plain ViT under transformers' names.

    Queries, keys and values, one matrix of (3D, D) here, are three there.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            module, _, kind = name.rpartition(".")
            bare = HUGGINGFACE_STEM.get(name)
            renamed[bare or f"{HUGGINGFACE_STEM[module]}.{kind}"] = tensor
            continue
        _, number, inner = name.split(".", 2)
        module, _, kind = inner.rpartition(".")
        layer = f"encoder.layer.{number}"
        if module == "attn.qkv":
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{layer}.attention.attention.{part}.{kind}"] = rows.contiguous()
        else:
            renamed[f"{layer}.{HUGGINGFACE_BLOCK[module]}.{kind}"] = tensor
    return renamed
