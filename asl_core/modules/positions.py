"""Fixed two-dimensional sine-cosine positions, and their resizing to another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(embed_dim: int, grid_size: int) -> Tensor:
    """Return MAE's fixed positions: the first half encodes the column, the second the row.

    With frequencies w_k = 10000^(-k / (D/4)), each half is [sin(w x), cos(w x)]. MoCo v3 and
    others put the row first; the two are told apart by nothing but this order.

    Source: official MAE `util/pos_embed.py` (convention "X-first").

    Args:
        embed_dim: D, a multiple of 4.
        grid_size: Patches along one side.

    Shape:
        - Output: (1, 1 + grid_size^2, D), float32; the first row, for [cls], is zero.
    """
    frequencies = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    coordinate = torch.arange(grid_size, dtype=torch.float64)
    angles = coordinate[:, None] * frequencies[None, :]  # (G, D/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (G, D/2)
    column = axis[None, :, :].expand(grid_size, -1, -1)
    row = axis[:, None, :].expand(-1, grid_size, -1)
    patches = torch.cat([column, row], dim=2).reshape(1, -1, embed_dim)  # (1, N, D)
    return torch.cat([torch.zeros(1, 1, embed_dim), patches.float()], dim=1)


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
