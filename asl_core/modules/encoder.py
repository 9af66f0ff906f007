"""The ViT encoder, on visible patches or on all, and its file format."""

import dataclasses
import json
import math
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.modules.attention import QueryKeyValue
from asl_core.modules.gated_mlp import GatedMlp
from asl_core.modules.masking import gather_tokens
from asl_core.modules.positions import (
    interpolate_positions,
    resize_positions,
    sincos_positions,
)
from asl_core.modules.relative_bias import (
    CLS_VALUES,
    RelativePositionBias,
    resize_table,
    table_extent,
)
from asl_core.modules.weights import save_weights
from asl_core.protocol import ModuleLike
from asl_core.recipes.models import PLAIN, EncoderParts, Vit, stored_fields

WEIGHTS_FILE = "encoder.safetensors"
ARCHITECTURE_FILE = "encoder.json"
PARTS = "parts"
"""In the second, what an encoder has otherwise than a plain ViT; a plain one has no such key."""
BIAS_TABLE = "relative_position_bias.table"


NORM_EPS = 1e-6
"""As MAE, DINO and detectron2 set it."""


class LayerNorm(nn.LayerNorm):
    """LayerNorm with `NORM_EPS`."""

    def __init__(self, width: int, **kwargs: object) -> None:
        super().__init__(width, eps=NORM_EPS, **kwargs)  # type: ignore[arg-type]


def initialise_as_mae(module: nn.Module) -> None:
    """Initialise as MAE does: Xavier-uniform Linears, zero biases; use with `Module.apply`.

    Convolutions keep torch's own; of the patch embedding MAE sets the weights and not the bias.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]  # as torch says
            nn.init.zeros_(module.bias)


def initialise_as_dino(encoder: "Encoder") -> None:
    """Initialise as DINO and iBOT do, positions included, which they learn.

    Linears, positions and [cls] normal with deviation .02, cut at 2; biases zero; the patch
    embedding as torch makes it.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for parameter in (encoder.pos_embed, encoder.cls_token):
        nn.init.trunc_normal_(parameter, std=0.02)
    encoder.patch_embed.proj.reset_parameters()


@torch.no_grad()
def initialise_as_moco(encoder: "Encoder") -> None:
    """Initialise as MoCo v3 does, positions included, whose first half encodes the row.

    It differs from MAE in that queries, keys and values have a Xavier-uniform matrix each, [cls]
    has a deviation of 1e-6, and the bias of the patch embedding is zero.

    Source: MoCo v3, `vits.py`.
    """
    for name, parameter in encoder.named_parameters():
        if name.endswith("attn.qkv.weight"):
            for matrix in parameter.chunk(3):  # (D, D) each
                nn.init.xavier_uniform_(matrix)
        elif name == "patch_embed.proj.bias":
            nn.init.zeros_(parameter)
    nn.init.normal_(encoder.cls_token, std=1e-6)
    vit = encoder.vit
    encoder.pos_embed.copy_(sincos_positions(vit.embed_dim, vit.grid_size, row_first=True))


def build_block(
    width: int,
    num_heads: int,
    mlp_ratio: float,
    parts: EncoderParts,
    *,
    drop_path: float = 0.0,
    gated: bool = False,
) -> Block:
    """Return a block of a ViT, with what it has otherwise than a plain one's."""
    block = Block(
        width,
        num_heads,
        mlp_ratio,
        qkv_bias=parts.key_bias,
        init_values=parts.layer_scale,
        drop_path=drop_path,
        norm_layer=LayerNorm,
        mlp_layer=GatedMlp if gated else Mlp,
    )
    if not parts.key_bias:
        block.attn.qkv = QueryKeyValue(width)
    return block


def run_blocks(
    blocks: nn.ModuleList, tokens: Tensor, keep: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Run blocks one after the other.

    Shape:
        - tokens: (B, T, D). keep: (depth, 2, B), factors of stochastic depth, see
          `draw_drop_path`; absent: none. bias: of attention's logits, (1, heads, T, T); absent:
          none. Output: (B, T, D).
    """
    if keep is None:
        for block in blocks:
            tokens = block(tokens, attn_mask=bias)
        return tokens
    for module, (first, second) in zip(blocks, keep[..., None, None], strict=True):
        block = cast(Block, module)
        tokens = tokens + first * block.ls1(block.attn(block.norm1(tokens), attn_mask=bias))
        tokens = tokens + second * block.ls2(block.mlp(block.norm2(tokens)))
    return tokens


class Encoder(nn.Module):
    """ViT encoder with timm's parameter names (those of MAE's published checkpoints).

    With relative positions it takes all patches of images of its own size, in their order, and
    `pos_embed` is a zero that is neither trained nor saved. Registers stand behind [cls] while
    blocks run, have no position, and are in no output.

    Args:
        vit: Sizes.
        parts: What it has otherwise than a plain ViT.
        drop_path: Rate of stochastic depth at the last block, growing linearly from 0.

    Shape:
        - images: (B, 3, H, W), normalised. ids_keep: (B, V).
        - Output: (B, 1 + V, D), [cls] first; V = N when `ids_keep` is absent.
    """

    pos_embed: Tensor
    relative_position_bias: RelativePositionBias | None
    reg_token: nn.Parameter | None

    def __init__(self, vit: Vit, parts: EncoderParts = PLAIN, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if parts.layer_scale is None and vit.layer_scale is not None:
            parts = dataclasses.replace(parts, layer_scale=vit.layer_scale)
        if parts.relative_positions and vit.registers:
            raise InputError(
                "registers have no offset, and this method's encoder has relative positions; "
                "set registers: 0"
            )
        self.vit, self.parts = vit, parts
        self.patch_embed = PatchEmbed(
            vit.image_size, vit.patch_size, 3, vit.embed_dim, strict_img_size=False
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        if parts.relative_positions:
            none = torch.zeros(1, 1 + vit.num_patches, vit.embed_dim)
            self.register_buffer("pos_embed", none, persistent=False)
            self.relative_position_bias = RelativePositionBias(vit.num_heads, vit.grid_size)
        else:
            self.pos_embed = nn.Parameter(sincos_positions(vit.embed_dim, vit.grid_size))
            self.relative_position_bias = None
        rates = [drop_path * i / max(vit.depth - 1, 1) for i in range(vit.depth)]
        self.blocks = nn.ModuleList(
            build_block(
                vit.embed_dim, vit.num_heads, vit.mlp_ratio, parts, drop_path=rate,
                gated=vit.mlp == "swiglu",
            )
            for rate in rates
        )  # fmt: skip
        self.norm = LayerNorm(vit.embed_dim)
        self.apply(initialise_as_mae)
        projection = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.view(projection.shape[0], -1))
        nn.init.normal_(self.cls_token, std=0.02)
        if vit.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, vit.registers, vit.embed_dim))
            nn.init.normal_(self.reg_token, std=0.02)
        else:
            self.register_parameter("reg_token", None)

    def embed(self, images: Tensor) -> Tensor:
        """Return the linear embedding of all patches, without positions: (B, N, D)."""
        return self.patch_embed(images)

    def add_positions(self, tokens: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Add its position to each embedded patch; all N of them where `ids_keep` is absent.

        Shape:
            - tokens: (B, V, D), the patches `ids_keep` in that order. Output: (B, V, D).
        """
        positions = self.pos_embed[0, 1:]  # (N, D)
        return tokens + (positions if ids_keep is None else positions[ids_keep])

    def prepend_cls(self, tokens: Tensor) -> Tensor:
        """Put [cls] first: (B, V, D) to (B, 1 + V, D)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls.to(tokens.dtype), tokens], dim=1)

    def attention_bias(self) -> Tensor | None:
        """Return what all blocks add to their attention's logits, (1, heads, 1 + N, 1 + N)."""
        shared = self.relative_position_bias
        return None if shared is None else shared()

    def insert_registers(self, tokens: Tensor) -> Tensor:
        """Put the registers behind [cls], for the blocks: (B, 1 + V, D) to (B, 1 + R + V, D)."""
        if self.reg_token is None:
            return tokens
        registers = self.reg_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def drop_registers(self, tokens: Tensor) -> Tensor:
        """Undo `insert_registers`."""
        if self.reg_token is None:
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.vit.registers :]], dim=1)

    def transform(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run the blocks, without the final norm.

        Shape:
            - tokens: (B, 1 + V, D). keep: (depth, 2, B), factors of stochastic depth, see
              `draw_drop_path`; absent: none. Output: (B, 1 + V, D).
        """
        tokens = self.insert_registers(tokens)
        return self.drop_registers(run_blocks(self.blocks, tokens, keep, self.attention_bias()))

    def before_norm(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode all patches, without the final norm; `keep` as for `transform`.

        Shape:
            - images: (B, 3, H, W), normalised. Output: (B, 1 + N, D).
        """
        tokens = self.prepend_cls(self.add_positions(self.embed(images)))
        return self.transform(tokens, keep)

    def encode_crop(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        hidden: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Encode all patches of images of any size, positions resized as DINO does.

        Shape:
            - images: (B, 3, s, s), normalised. keep: as for `transform`. hidden: where embeddings
              are replaced before positions are added, (B, N) bool, and by what, (1, D). Output:
              (B, 1 + N, D).
        """
        tokens = self.embed(images)  # (B, N, D)
        if hidden is not None:
            removed, embedding = hidden
            tokens = torch.where(removed[..., None], embedding.to(tokens.dtype), tokens)
        positions = interpolate_positions(self.pos_embed, images.shape[-1] // self.vit.patch_size)
        cls = (self.cls_token + positions[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls.to(tokens.dtype), tokens + positions[:, 1:]], dim=1)
        return self.norm(self.transform(tokens, keep))

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embed, drop what is masked, encode."""
        tokens = self.embed(images)  # (B, N, D)
        if ids_keep is not None:
            tokens = gather_tokens(tokens, ids_keep)  # (B, V, D)
        tokens = self.prepend_cls(self.add_positions(tokens, ids_keep))
        return self.norm(self.transform(tokens))

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return the output of every block before the final norm, each (B, 1 + N, D)."""
        tokens = self.prepend_cls(self.add_positions(self.embed(images)))
        tokens, bias = self.insert_registers(tokens), self.attention_bias()
        outputs = []
        for block in self.blocks:
            tokens = block(tokens, attn_mask=bias)
            outputs.append(self.drop_registers(tokens))
        return outputs


def encoder_layer_matcher(prefix: str = "") -> dict[str, str]:
    """Return timm's `group_matcher` for an encoder under `prefix`: what layer decay calls a layer.

    Layer 0 holds patch embedding, positions, [cls] and registers; block i is layer i + 1; what
    matches neither, the final norm and the heads, comes last.
    """
    return {
        "stem": rf"^{prefix}(?:cls_token|reg_token|pos_embed|patch_embed)",
        "blocks": rf"^{prefix}blocks\.(\d+)",
    }


def save_encoder(
    folder: Path, state: dict[str, Tensor], vit: Vit, parts: EncoderParts = PLAIN
) -> None:
    """Write an encoder's weights and its architecture into a folder."""
    save_weights(folder / WEIGHTS_FILE, state)
    architecture: dict[str, object] = {**stored_fields(vit)}
    if parts != PLAIN:
        architecture[PARTS] = dataclasses.asdict(parts)
    (folder / ARCHITECTURE_FILE).write_text(
        json.dumps(architecture, indent=2, sort_keys=True) + "\n"
    )


def load_encoder(folder: Path, *, image_size: int | None = None, drop_path: float = 0.0) -> Encoder:
    """Build the encoder that `save_encoder` wrote, for inputs of another size if asked.

    Positions are resized bicubically from the checkpoint's own, relative ones as BEiT does it.

    Raises:
        InputError: The files are missing, truncated, or do not fit each other.
    """
    weights_path = folder / WEIGHTS_FILE
    try:
        architecture = json.loads((folder / ARCHITECTURE_FILE).read_text())
        parts = EncoderParts(**architecture.pop(PARTS, {}))
        vit = Vit(**architecture)
        state = safetensors.torch.load_file(weights_path)
    except FileNotFoundError as error:
        raise InputError(f"no encoder in {folder}: {error.filename} is missing; train it") from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read the encoder in {folder}: {error}; it is truncated or not an encoder, "
            "restore it or train it again"
        ) from None
    if image_size is not None:
        try:
            vit = dataclasses.replace(vit, image_size=image_size)
        except ValueError as error:
            raise InputError(f"the encoder in {folder} cannot be resized: {error}") from None
    encoder = Encoder(vit, parts, drop_path=drop_path)
    check_same_architecture(encoder, state, weights_path, ignore=("pos_embed", BIAS_TABLE))
    if parts.relative_positions:
        _check_table(state[BIAS_TABLE], vit.num_heads, weights_path)
        state[BIAS_TABLE] = resize_table(state[BIAS_TABLE], vit.grid_size)
    else:
        _check_positions(state.get("pos_embed"), vit.embed_dim, weights_path)
        state["pos_embed"] = resize_positions(state["pos_embed"], (vit.grid_size, vit.grid_size))
    encoder.load_state_dict(state)
    return encoder


def _check_table(table: Tensor, heads: int, path: Path) -> None:
    """Refuse relative positions that cannot be those of a square grid: any grid's are welcome."""
    shape = tuple(table.shape)
    extent = table_extent(shape[1]) if len(shape) == 2 else 0
    if extent % 2 == 0 or shape != (heads, extent**2 + CLS_VALUES):
        raise InputError(
            f"{path}: {BIAS_TABLE} is {shape}, expected ({heads}, n^2 + {CLS_VALUES}), n odd; use "
            "the recipe it was trained with"
        )


def _check_positions(pos_embed: Tensor | None, width: int, path: Path) -> None:
    """Refuse positions that cannot be those of a square grid: any grid's are welcome."""
    shape = () if pos_embed is None else tuple(pos_embed.shape)
    patches = shape[1] - 1 if len(shape) == 3 else 0
    if patches < 1 or math.isqrt(patches) ** 2 != patches or shape != (1, 1 + patches, width):
        raise InputError(
            f"{path}: pos_embed is {shape}, expected (1, 1 + N, {width}), N a square; use the "
            "recipe it was trained with"
        )


def check_same_architecture(
    module: ModuleLike, state: dict[str, Tensor], path: Path, ignore: tuple[str, ...] = ()
) -> None:
    """Refuse weights of another architecture with one line that names the first difference.

    Raises:
        InputError: A tensor is missing, unexpected, or of another shape.
    """
    expected = module.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        ours, theirs = expected.get(name), state.get(name)
        if ours is not None and theirs is not None:
            if ours.shape == theirs.shape or name in ignore:
                continue
            difference = f"{name} is {tuple(theirs.shape)}, expected {tuple(ours.shape)}"
        elif theirs is None:
            difference = f"{name} is missing"
        else:
            difference = f"{name} is not part of the model"
        raise InputError(
            f"{path} is a checkpoint of another architecture: {difference}; "
            "use the recipe it was trained with"
        )
