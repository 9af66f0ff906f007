"""Fixed two-dimensional sine-cosine positions, and their resizing to another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(embed_dim: int, grid_size: int, *, row_first: bool = False) -> Tensor:
    """Return MAE's fixed positions: the first half encodes the column, the second the row.

    With frequencies w_k = 10000^(-k / (D/4)), each half is [sin(w x), cos(w x)]. MoCo v3 and
    others put the row first; the two are told apart by nothing but this order.

    Source: official MAE `util/pos_embed.py` (convention "X-first"), MoCo v3 `vits.py` ("Y-first").

    Args:
        embed_dim: D, a multiple of 4.
        grid_size: Patches along one side.
        row_first: Whether the first half encodes the row, the second the column.

    Shape:
        - Output: (1, 1 + grid_size^2, D), float32; the first row, for [cls], is zero.
    """
    frequencies = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    coordinate = torch.arange(grid_size, dtype=torch.float64)
    angles = coordinate[:, None] * frequencies[None, :]  # (G, D/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (G, D/2)
    column = axis[None, :, :].expand(grid_size, -1, -1)
    row = axis[:, None, :].expand(-1, grid_size, -1)
    halves = [row, column] if row_first else [column, row]
    patches = torch.cat(halves, dim=2).reshape(1, -1, embed_dim)  # (1, N, D)
    return torch.cat([torch.zeros(1, 1, embed_dim), patches.float()], dim=1)


def relative_positions(boxes: Tensor, embed_dim: int, grid_size: int) -> Tensor:
    """Return where the patches of a second view lie, seen from the first, and how much larger.

    Coordinates are in patches of the first view; with frequencies w_k = 10000^(-k / (E/4)) a number
    z gives [sin(w z), cos(w z)]. In order: row, column, ten times the logarithm of the ratio of
    heights, and of widths.

    Source: SIM, `get_2d_sincos_pos_embed_relative`.

    Args:
        boxes: Of both views, see `Views.boxes`.
        embed_dim: E, a multiple of 4.
        grid_size: Patches along one side of both views, G.

    Shape:
        - boxes: (B, 2, 6). Output: (B, G^2, 2 E), float32.
    """
    first, second = boxes.double().unbind(1)  # (B, 6) each
    top1, left1, height1, width1, mirrored1, image_width = first.unbind(1)
    top2, left2, height2, width2, mirrored2, _ = second.unbind(1)
    tall, wide = height2 / height1, width2 / width1  # (B,)
    cell = torch.arange(grid_size, dtype=torch.float64, device=boxes.device) + 0.5  # (G,)
    row = tall[:, None] * cell + (grid_size * (top2 - top1) / height1)[:, None] - 0.5  # (B, G)
    along = wide[:, None] * cell + (grid_size * (left2 - left1) / width1)[:, None]
    # seen from the first view, a mirrored one runs backwards
    offset = grid_size * (image_width - left1 - left2) / width1
    against = offset[:, None] - wide[:, None] * cell
    column = torch.where((mirrored1 != mirrored2)[:, None], against, along) - 0.5
    shape = (-1, grid_size, grid_size)
    numbers = [
        row[:, :, None].expand(shape),
        column[:, None, :].expand(shape),
        (10 * tall.log())[:, None, None].expand(shape),
        (10 * wide.log())[:, None, None].expand(shape),
    ]
    exponents = torch.arange(embed_dim // 4, dtype=torch.float64, device=boxes.device)
    frequencies = 10000.0 ** (-exponents / (embed_dim / 4))
    angles = torch.stack(numbers, dim=3).flatten(1, 2)[..., None] * frequencies  # (B, N, 4, E/4)
    return torch.cat([angles.sin(), angles.cos()], dim=3).flatten(2).float()


def interpolate_positions(pos_embed: Tensor, grid_size: int) -> Tensor:
    """Resize positions as DINO and iBOT do for crops, with a gradient.

    They ask for a scale of (g + .1) / G, not for a size, which gives slightly other numbers than
    `resize_positions`.

    Source: DINO, `interpolate_pos_encoding`.

    Shape:
        - pos_embed: (1, 1 + G^2, D). Output: (1, 1 + grid_size^2, D).
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if side == grid_size:
        return pos_embed
    maps = pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, G, G)
    scale = (grid_size + 0.1) / side
    maps = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)


def resize_positions(pos_embed: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize positions bicubically to another grid, [cls]'s row unchanged.

    Without antialiasing, as MAE and ViTDet do; timm's resampling antialiases and differs.

    Shape:
        - pos_embed: (1, 1 + N, D), N a square. Output: (1, 1 + gh * gw, D).
    """
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if (side, side) == grid:
        return pos_embed
    maps = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
    patches = maps.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)
    return torch.cat([cls, patches.to(cls.dtype)], dim=1)
