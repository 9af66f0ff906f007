"""The plain ViT as a detector's backbone: windowed and global attention, relative positions.

Source: "Benchmarking Detection Transfer Learning with Vision Transformers" (Li et al., 2021):
windows in all blocks but the last of each quarter of the depth, relative position biases shared
by all blocks of a kind.
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.modules.encoder import Encoder
from asl_core.modules.relative_bias import inner_offsets

NUM_TAPS = 4


def tap_indices(depth: int) -> tuple[int, ...]:
    """Return the last block of each quarter of the depth: 2, 5, 8, 11 of 12 blocks."""
    return tuple((k + 1) * depth // NUM_TAPS - 1 for k in range(NUM_TAPS))


def partition_windows(tokens: Tensor, window: int) -> Tensor:
    """Cut a map of tokens into square windows, with zeros at the right and below where needed.

    Shape:
        - tokens: (B, H, W, D). Output: (B * windows, window^2, D).
    """
    batch, height, width, dim = tokens.shape
    rows, columns = -(-height // window), -(-width // window)
    tokens = F.pad(tokens, (0, 0, 0, columns * window - width, 0, rows * window - height))
    x = tokens.reshape(batch, rows, window, columns, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def merge_windows(windows: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """Undo `partition_windows` and drop what it padded.

    Shape:
        - windows: (B * windows, window^2, D). Output: (B, H, W, D), (H, W) = grid.
    """
    height, width = grid
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * window, columns * window, windows.shape[-1])
    return x[:, :height, :width]


class RelativePositionBias(nn.Module):
    """Bias added to attention logits: one value per head and offset, zero at the start.

    Args:
        num_heads: Heads, h.
        side: Side of the map of tokens that attend to each other, s.

    Shape:
        - Output: (1, h, s^2, s^2); element (i, j) depends on position i minus position j.
    """

    offsets: Tensor

    def __init__(self, num_heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(num_heads, 2 * side - 1, 2 * side - 1))
        axis = torch.arange(side)
        offsets = (axis[:, None] - axis[None, :] + side - 1).flatten()  # (s^2,): 0 .. 2s - 2
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self) -> Tensor:
        """Spread the table: axis after axis, which needs no index of s^4 entries."""
        s = self.side
        bias = self.table.index_select(1, self.offsets).index_select(2, self.offsets)
        bias = bias.reshape(-1, s, s, s, s).transpose(2, 3)  # (h, row i, column i, row j, column j)
        return bias.reshape(1, -1, s * s, s * s)


def as_attention_reads(bias: Tensor) -> Tensor:
    """Return a bias in the precision that autocast gives attention."""
    kind = bias.device.type
    return bias.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else bias


def run_block(
    block: Block, tokens: Tensor, bias: Tensor, window: int | None, *, drop_windows: bool = False
) -> Tensor:
    """Run a block with attention inside windows, or over the whole map.

    Only attention sees windows. Stochastic depth therefore drops a block for a whole image, or,
    with `drop_windows`, for each window by itself.

    Shape:
        - tokens: (B, H, W, D). bias: (1, h, T, T), T tokens that attend. Output: as tokens.
    """
    batch, height, width, dim = tokens.shape
    if window is not None and drop_windows:
        inside = partition_windows(tokens, window)  # (B * windows, window^2, D)
        return merge_windows(block(inside, attn_mask=bias), window, (height, width))
    normed = block.norm1(tokens)
    if window is None:
        attended = block.attn(normed.reshape(batch, height * width, dim), attn_mask=bias)
        attended = attended.reshape(batch, height, width, dim)
    else:
        attended = block.attn(partition_windows(normed, window), attn_mask=bias)
        attended = merge_windows(attended, window, (height, width))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


class WindowedVit(nn.Module):
    """An encoder's patch embedding, positions and blocks; without [cls] and the final norm.

    Where the encoder has a table of relative positions, both biases begin with it instead of zero:
    two patches of a window with what the table says of their offset. Like [cls], registers are
    left out: a window has no place for them.

    Args:
        encoder: Pre-trained, for the detector's input size; its parts are taken over.
        window_size: Side in tokens of a window; at most the grid.
        drop_windows: See `run_block`.

    Shape:
        - images: (B, 3, H, W), normalised, H = W = the encoder's image size.
        - Output: four maps (B, D, H/p, W/p), after the last block of each quarter.
    """

    def __init__(self, encoder: Encoder, window_size: int, *, drop_windows: bool = False) -> None:
        super().__init__()
        vit = encoder.vit
        self.grid_size = vit.grid_size
        self.window = min(window_size, vit.grid_size)
        self.taps = tap_indices(vit.depth)
        self.drop_windows = drop_windows
        self.patch_embed = encoder.patch_embed
        # with strides of its own shape, which data-parallel training expects of gradients
        positions = encoder.pos_embed.detach()[:, 1:].clone(
            memory_format=torch.contiguous_format
        )  # (1, N, D)
        shared = encoder.relative_position_bias
        if shared is None:
            self.pos_embed = nn.Parameter(positions)
        else:
            self.register_buffer("pos_embed", positions, persistent=False)  # zero
        self.blocks = encoder.blocks
        # with four blocks all are global, and a table that nobody reads would get no gradient
        windowed = vit.depth > NUM_TAPS
        self.window_bias = RelativePositionBias(vit.num_heads, self.window) if windowed else None
        self.global_bias = RelativePositionBias(vit.num_heads, vit.grid_size)
        for bias in (self.window_bias, self.global_bias):
            if bias is not None and shared is not None:
                bias.table = nn.Parameter(inner_offsets(shared.table.detach(), bias.side).clone())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four taps, in order of depth."""
        tokens = self.patch_embed(images) + self.pos_embed
        tokens = tokens.reshape(images.shape[0], self.grid_size, self.grid_size, -1)
        # once, and not in each block: at 4096 tokens a copy takes .4 GB and its gradient as much
        global_bias = as_attention_reads(self.global_bias())
        window_bias = (
            global_bias if self.window_bias is None else as_attention_reads(self.window_bias())
        )
        maps = []
        for i, block in enumerate(self.blocks):
            if i in self.taps:
                tokens = run_block(block, tokens, global_bias, None)  # type: ignore[arg-type]
                maps.append(tokens.permute(0, 3, 1, 2))  # (B, D, H, W)
            else:
                tokens = run_block(
                    block, tokens, window_bias, self.window,  # type: ignore[arg-type]
                    drop_windows=self.drop_windows,
                )  # fmt: skip
        return maps
