"""Turn a checkpoint of others into an encoder of ours, or say which tensor stands against it."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.checkpoints import Checkpoint, read_checkpoint
from asl_core.exchange.finding import PATCH_WEIGHT, FoundEncoder, find_encoder
from asl_core.exchange.origin import ImportOptions, Origin
from asl_core.exchange.stored_positions import check_stated_grid, positions_for, read_positions
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import Vit

OURS = re.compile(
    r"cls_token|reg_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d{1,4}\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
    r"|blocks\.\d{1,4}\.ls[12]\.gamma"
)
RENAMED = (
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^blocks\.\d{1,4}\.(\d{1,4}\.)"), r"blocks.\1"),
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),
    (re.compile(r"\.mlp\.w12\.(weight|bias)$"), r".mlp.fc1.\1"),
    (re.compile(r"\.mlp\.w3\.(weight|bias)$"), r".mlp.fc2.\1"),
)
"""How DINOv2 and iBOT name what timm names otherwise. Blocks in chunks count through all chunks."""
DROPPED = re.compile(
    r"(head|head_dist|fc|fc_norm|pre_logits|mask_token|masked_embed|decoder\w*|projector"
    r"|projection_head|predictor|prototypes)(\.|$)"
)
"""What stands beside an encoder and takes no part in its features."""
LAYER_SCALE = re.compile(r"\.ls[12]\.gamma$")
LAYER_SCALE_BEGINS = 1e-5
"""At which factor it begins in DINOv2; no file says it, and trained factors do not need it."""

FOREIGN = (
    (
        re.compile(r"rope|storage_tokens|bias_mask"),
        "of DINOv3, whose attention turns queries and keys by position (rotary positions)",
    ),
    (re.compile(r"dist_token"), "a distillation token"),
    (re.compile(r"[qk]_norm\."), "normalised queries and keys"),
    (re.compile(r"rel_pos|relative_position"), "relative position bias"),
    (re.compile(r"attn\.[qkv.]*_bias"), "biases of queries and values apart, as BEiT has them"),
    (re.compile(r"norm_pre|patch_embed\.norm"), "a norm before the blocks"),
    (re.compile(r"mlp\.(w\d|fc1_[gx])"), "a gated MLP"),
)
"""Known parts that a plain ViT does not have."""

WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Width -> heads where a head is wider than 64: ViT-H (MAE, MoCo v3, timm) and larger (timm)."""

DEFAULT_IMAGE_SIZE = 224


def import_encoder(path: Path, options: ImportOptions) -> tuple[dict[str, Tensor], Vit, Origin]:
    """Read an encoder from a checkpoint of another project.

    Args:
        path: Safetensors or torch file: official MAE, timm, DINO, iBOT, MoCo v3, or alike.
        options: What the file does not say of itself.

    Returns:
        Its weights in float32 under timm's names, its sizes, and how it was read.

    Raises:
        InputError: The file cannot be read, or holds what our encoder cannot hold.
    """
    checkpoint = read_checkpoint(path)
    found, chosen = find_encoder(path, checkpoint.content, options.branch, options.prefix)
    state, dropped = _sort_out(path, _renamed(path, found.tensors))
    _check_projection(path, state[PATCH_WEIGHT])
    num_heads, heads_from = _num_heads(path, found, checkpoint, options)
    if "reg_token" in state and "pos_embed" not in state:
        raise InputError(
            f"{path}: it has registers and no pos_embed: rotary positions, as in DINOv3, which "
            "this encoder cannot hold; take a checkpoint with learned positions, as DINOv2's"
        )
    vit, positions, stored_grid = _infer_vit(path, state, num_heads, options)
    stated = None
    if stored_grid is not None:
        stated = check_stated_grid(path, checkpoint, stored_grid, vit.patch_size)
    state["pos_embed"], convention = positions_for(path, positions, found, vit, options)
    if convention.startswith("sin-cos") and checkpoint.image_size is None:
        stated = None  # their numbers say of which grid they are
    _check_against(path, state, vit)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = Origin(
        file=path.name,
        sha256=digest,
        form=checkpoint.form,
        container=found.container,
        prefix=found.prefix,
        beside=found.beside,
        positions=convention,
        num_heads_from=heads_from,
        dropped=_count_dropped(found, dropped),
        notes=(
            *(note for note in (chosen, _conversion(found, state), stated) if note),
            *_notes(vit, stored_grid, heads_from),
        ),
    )
    return state, vit, origin


def _renamed(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under timm's names.

    Raises:
        InputError: Two have one name then.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name
        for pattern, replacement in RENAMED:
            plain = pattern.sub(replacement, plain)
        if plain in renamed:
            raise InputError(f"{path} holds {plain} under two names; save one of them alone")
        renamed[plain] = tensor
    return renamed


def _sort_out(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return what an encoder of ours has, and the names of what may be left out."""
    kept: dict[str, Tensor] = {}
    dropped: list[str] = []
    scales = [tensor for name, tensor in tensors.items() if LAYER_SCALE.search(name)]
    scaled = not all(bool((tensor == 1).all()) for tensor in scales)
    for name, tensor in tensors.items():
        if LAYER_SCALE.search(name) and not scaled:  # factors of 1 do nothing
            dropped.append(name)
        elif OURS.fullmatch(name):
            kept[name] = _in_float32(path, name, tensor)
        elif DROPPED.match(name):
            dropped.append(name)
        else:
            why = next((why for known, why in FOREIGN if known.search(name)), "an unknown part")
            raise InputError(
                f"{path}: {name}: {why}, which this encoder cannot hold; "
                "take a checkpoint without it"
            )
    if "norm.weight" not in kept and "fc_norm.weight" in dropped:
        raise InputError(
            f"{path}: norm.weight is missing, fc_norm.weight stands in its place: a classifier on "
            "the mean of the tokens, fine-tuned; take the pre-trained checkpoint"
        )
    return kept, dropped


def _in_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor.

    Raises:
        InputError: It has none that could be weights.
    """
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    if not (is_dense and tensor.is_floating_point()) or tensor.is_meta:
        is_strided = tensor.layout is torch.strided
        kind = "meta" if tensor.is_meta else str(tensor.dtype if is_strided else tensor.layout)
        raise InputError(
            f"{path}: {name} is of the kind {kind.removeprefix('torch.')}, expected dense "
            "floating-point numbers; take a checkpoint that is not quantised or sparse"
        )
    if tensor.numel() > tensor.untyped_storage().nbytes():  # one number, repeated
        raise InputError(
            f"{path}: {name} claims {tuple(tensor.shape)}, the file has fewer numbers; "
            "take another checkpoint"
        )
    numbers = tensor.float().contiguous()
    if not torch.isfinite(numbers).all():
        raise InputError(f"{path}: {name} is not finite; take another checkpoint")
    return numbers


def _conversion(found: FoundEncoder, state: Mapping[str, Tensor]) -> str | None:
    """Return what the numbers were before they became float32."""
    kinds = {str(found.tensors[name].dtype) for name in state if name in found.tensors}
    others = sorted(kind.removeprefix("torch.") for kind in kinds - {"torch.float32"})
    return f"stored in {', '.join(others)}, converted to float32" if others else None


def _check_projection(path: Path, weight: Tensor) -> None:
    shape = tuple(weight.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or 0 in shape:
        raise InputError(
            f"{path}: {PATCH_WEIGHT} is {shape}, expected (D, 3, p, p): "
            "square patches of colour images; take another checkpoint"
        )


def _infer_vit(
    path: Path, state: Mapping[str, Tensor], num_heads: int, options: ImportOptions
) -> tuple[Vit, Tensor | None, int | None]:
    """Return the sizes, the stored positions as (1, 1 + N, D), and the side of their grid."""
    embed_dim, _, patch_size, _ = state[PATCH_WEIGHT].shape
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    hidden, gated = _hidden_width(state)
    registers = state.get("reg_token")
    _refuse_gaps(path, blocks)
    positions, grid = read_positions(path, state.get("pos_embed"), embed_dim)
    image_size = DEFAULT_IMAGE_SIZE if grid is None else grid * patch_size
    try:
        vit = Vit(
            image_size=options.image_size or image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=max(blocks, default=-1) + 1,
            num_heads=num_heads,
            mlp_ratio=4.0 if hidden is None else _mlp_ratio(hidden, embed_dim),
            mlp="swiglu" if gated else "gelu",
            registers=0 if registers is None or registers.ndim != 3 else registers.shape[1],
            layer_scale=LAYER_SCALE_BEGINS if any(map(LAYER_SCALE.search, state)) else None,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}; correct the options or take another file") from None
    return vit, positions, grid


def _refuse_gaps(path: Path, blocks: set[int]) -> None:
    missing = set(range(max(blocks, default=-1))) - blocks
    if missing:
        raise InputError(
            f"{path}: blocks.{min(missing)}.norm1.weight is missing, though there are blocks up to "
            f"{max(blocks)}; take another checkpoint"
        )


def _hidden_width(state: Mapping[str, Tensor]) -> tuple[int | None, bool]:
    """Return the hidden width of the MLPs, behind a gate where there is one, and whether there is.

    A gate halves the width: what comes in is half of what comes out before it.
    """
    first, second = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is None or first.ndim != 2:
        return None, False
    gated = second is not None and second.ndim == 2 and first.shape[0] == 2 * second.shape[1]
    return first.shape[0] // (2 if gated else 1), gated


def _mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio from which the blocks compute this hidden width, rounding down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _num_heads(
    path: Path, found: FoundEncoder, checkpoint: Checkpoint, options: ImportOptions
) -> tuple[int, str]:
    """Return the number of heads, which no shape tells, and how it is known."""
    if options.num_heads is not None:
        return options.num_heads, "given"
    if checkpoint.num_heads is not None:
        return checkpoint.num_heads, "stored"
    width = found.tensors[PATCH_WEIGHT].shape[0]
    if width == 384 and found.is_of_moco:
        return 12, "assumed: MoCo v3's ViT-S"
    if width in WIDE_HEADS:
        return WIDE_HEADS[width], f"assumed: {width // WIDE_HEADS[width]} per head"
    if width % 64:
        raise InputError(
            f"{path}: num_heads is not stored, and width {width} is no multiple of 64; "
            "give --num-heads"
        )
    return width // 64, "assumed: 64 per head"


def _check_against(path: Path, state: Mapping[str, Tensor], vit: Vit) -> None:
    with torch.device("meta"):
        expected = Encoder(vit).state_dict()
    for name in state.keys() - expected.keys():  # registers of no known shape
        raise InputError(
            f"{path}: {name} has no place in this encoder: it is {tuple(state[name].shape)}, "
            f"expected (1, R, {vit.embed_dim}); take another checkpoint"
        )
    for name, tensor in expected.items():
        if name not in state:
            raise InputError(
                f"{path}: {name} is missing; this encoder, a ViT with biases and [cls], "
                "needs it; take another checkpoint"
            )
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}; "
                "the blocks of this encoder are all alike; take another checkpoint"
            )


def _count_dropped(found: FoundEncoder, dropped: Iterable[str]) -> dict[str, int]:
    """Count tensors by the beginnings of their names: `decoder_blocks`, `module.predictor`."""
    beginnings = [re.sub(r"^((?:module\.)?[^.]+).*", r"\1", name) for name in found.outside]
    beginnings += [found.prefix + name.split(".")[0] for name in dropped]
    return dict(sorted(Counter(beginnings).items()))


def _notes(vit: Vit, stored_grid: int | None, heads_from: str) -> Iterable[str]:
    if stored_grid not in (None, vit.grid_size):
        yield f"positions resized from {stored_grid}x{stored_grid} patches, bicubic"
    if vit.embed_dim == 384 and heads_from.startswith("assumed"):
        yield "a ViT-S of DINO, iBOT and timm has 6 heads, of MoCo v3 12: --num-heads where wrong"
    if vit.mlp == "swiglu":
        yield "not stored: what gates the MLPs, silu of the first half here, as in DINOv2"
        yield "not stored: the norms' eps, 1e-6 here, as in DINOv2 and timm"
    else:
        yield (
            "not stored: the norms' eps, 1e-6 here, and the activation, GELU here, as in MAE and "
            "timm"
        )
