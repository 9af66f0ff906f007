"""R-MAE's branch for regions: maps in, one vector for each region, maps of all patches out."""

from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.modules.encoder import LayerNorm, initialise_as_mae
from asl_core.modules.masking import gather_tokens
from asl_core.modules.patches import patchify
from asl_core.modules.positions import sincos_positions
from asl_core.recipes.models import Vit


def region_patches(regions: Tensor, patch_size: int, ids: Tensor) -> Tensor:
    """Cut region maps into patches, of which those with these indices stay.

    Shape:
        - regions: (B, R, S, S). ids: (B, T). Output: (B, R, T, p * p), row by row.
    """
    patches = gather_tokens(patchify(regions, patch_size), ids)  # (B, T, p * p * R)
    return patches.unflatten(2, (patch_size**2, -1)).permute(0, 3, 1, 2)


class RegionEncoder(nn.Module):
    """One vector for each region, from its map in the visible patches.

    A Transformer sees the visible patches of one region, [cls] left out; their mean counts.

    Source: R-MAE, `pretrain/module/rmae.py`: `region_patch_embed`, `region_enc_blocks`,
    `region_proj`.

    Args:
        vit: Sizes of the image's encoder: its patches are also those of the maps.
        width: D'.
        num_heads: Of the blocks.
        depth: Blocks.

    Shape:
        - patches: (B, R, V, p * p), 1 inside of the region, 0 outside. ids_keep: (B, V).
        - Output: (B, R, D').
    """

    pos_embed: Tensor

    def __init__(self, vit: Vit, *, width: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(vit.patch_size**2, width)
        self.register_buffer("pos_embed", sincos_positions(width, vit.grid_size), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, vit.head_mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.proj = nn.Linear(width, width)
        # theirs is a convolution: its bias stays as torch draws it, which for a Linear is alike
        nn.init.xavier_uniform_(self.embed.weight)
        self.blocks.apply(initialise_as_mae)
        self.proj.apply(initialise_as_mae)

    def forward(self, patches: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed, add positions, encode each region on its own, take the mean."""
        positions = self.pos_embed[0, 1:][ids_keep]  # (B, V, D')
        tokens = self.embed(patches - 0.5) + positions[:, None]  # (B, R, V, D')
        tokens = tokens.flatten(0, 1)  # (B R, V, D')
        for block in self.blocks:
            tokens = block(tokens)
        mean = tokens.mean(1).unflatten(0, patches.shape[:2])  # (B, R, D')
        return self.proj(self.norm(mean))


class RegionDecoder(nn.Module):
    """The map of each region in each patch, from the region's vector and the patch's features.

    Vectors of regions attend to each other; then each is added to the features of each patch, and
    an MLP without a shortcut makes the patch's map of the sum. That no region attends to patches is
    as it should be at a depth of one.

    Source: R-MAE, `pretrain/module/layers.py`, `DecoderBlockWithExpansion`, and `region_pred`.

    Args:
        width: D'.
        num_heads: Of the attention among regions.
        out_dim: Values of a patch's map, P.

    Shape:
        - queries: (B, R, D'). features: (B, M, D'). Output: (B, R, M, P), logits.
    """

    def __init__(self, *, width: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads, qkv_bias=True)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, width)
        self.act = nn.GELU()
        self.pred = nn.Linear(width, out_dim)
        self.apply(initialise_as_mae)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Let regions see each other, spread each over the patches, predict."""
        queries = queries + self.attn(self.norm1(queries))
        tokens = queries[:, :, None] + features[:, None]  # (B, R, M, D')
        return self.pred(self.act(self.mlp(self.norm2(tokens))))
