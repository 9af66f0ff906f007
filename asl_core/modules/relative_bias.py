"""Biases of attention by relative position, [cls] included, and their resizing to another grid."""

import torch
from torch import Tensor, nn

CLS_VALUES = 3
"""Of a head's table beside the offsets: [cls] to a patch, a patch to [cls], [cls] to itself."""
_SLOWEST, _FASTEST = 1.01, 1.5
"""Between these a resized table's distances grow from one offset to the next."""


class RelativePositionBias(nn.Module):
    """Bias added to attention logits: one value per head and offset, zero at the start.

    Three more values per head serve the pairs with [cls]: [cls] to a patch, a patch to [cls],
    [cls] to itself.

    Args:
        num_heads: Heads, h.
        side: Side of the map of patches, s.

    Shape:
        - table: (h, (2s - 1)^2 + 3): 63^2 + 3 values for a map of 32 by 32.
        - Output: (1, h, 1 + s^2, 1 + s^2); among patches, element (i, j) depends on position i
          minus position j.
    """

    offsets: Tensor

    def __init__(self, num_heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(num_heads, (2 * side - 1) ** 2 + CLS_VALUES))
        axis = torch.arange(side)
        offsets = (axis[:, None] - axis[None, :] + side - 1).flatten()  # (s^2,): 0 .. 2s - 2
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self) -> Tensor:
        """Spread the table: axis after axis, which needs no index of s^4 entries."""
        heads, s = self.table.shape[0], self.side
        among = offset_map(self.table)
        among = among.index_select(1, self.offsets).index_select(2, self.offsets)
        among = among.reshape(heads, s, s, s, s).transpose(2, 3)  # row i, column i, row j, column j
        among = among.reshape(heads, s * s, s * s)
        from_cls, to_cls, own = self.table[:, -3:].reshape(heads, 3, 1, 1).unbind(1)  # (h, 1, 1)
        first_row = torch.cat([own, from_cls.expand(-1, -1, s * s)], dim=2)  # (h, 1, 1 + s^2)
        others = torch.cat([to_cls.expand(-1, s * s, -1), among], dim=2)  # (h, s^2, 1 + s^2)
        return torch.cat([first_row, others], dim=1)[None]


def offset_map(table: Tensor) -> Tensor:
    """Return the part of a table that is among patches, row offset by column offset.

    Shape:
        - table: (h, (2s - 1)^2 + 3). Output: (h, 2s - 1, 2s - 1), offset 0 in the middle.
    """
    extent = table_extent(table.shape[1])
    return table[:, :-CLS_VALUES].reshape(-1, extent, extent)


def inner_offsets(table: Tensor, side: int) -> Tensor:
    """Return what a table says of the offsets inside a smaller map.

    Shape:
        - table: (h, (2s - 1)^2 + 3). Output: (h, 2 side - 1, 2 side - 1), side <= s.
    """
    among = offset_map(table)
    first = among.shape[1] // 2 - (side - 1)
    return among[:, first : first + 2 * side - 1, first : first + 2 * side - 1]


def table_extent(values: int) -> int:
    """Return the number of offsets along one axis, 2s - 1, in a head's table of so many values."""
    return round(max(values - CLS_VALUES, 0) ** 0.5)


def resize_table(table: Tensor, side: int) -> Tensor:
    r"""Resize a table to another grid as BEiT does for fine-tuning, [cls]'s values unchanged.

    The old offsets 0, 1, 2, 3, ... come to lie at 0, 1, 1 + q, 1 + q + q^2, ..., with q such that
    the outermost meets the new outermost; between them is a cubic spline, beyond them the last
    value. So neighbours keep what they have learnt of each other, and what is far apart is
    stretched; a plain bicubic resizing would stretch both. On a smaller grid q is all but 1, and
    inner offsets are left.

    Source: BEiT, `run_class_finetuning.py`, whose `interp2d` interpolates by such a spline.

    Shape:
        - table: (h, (2s - 1)^2 + 3). Output: (h, (2 side - 1)^2 + 3).
    """
    among, wanted = offset_map(table), 2 * side - 1
    if among.shape[1] == wanted:
        return table
    places = _places(among.shape[1] // 2, side - 1)  # (2s - 1,)
    at = torch.arange(wanted, dtype=torch.float64) - (side - 1)
    line = _spline(places, at).to(table.device)  # (2 side - 1, 2s - 1)
    resized = (line @ among.double() @ line.T).to(table.dtype)  # (h, 2 side - 1, 2 side - 1)
    return torch.cat([resized.flatten(1), table[:, -CLS_VALUES:]], dim=1)


def _places(old: int, new: int) -> Tensor:
    """Return where the offsets -old .. old come to lie in a map whose outermost offset is `new`."""
    low, high = _SLOWEST, _FASTEST
    growth = low
    while high - low > 1e-6:
        growth = (low + high) / 2
        if (1 - growth**old) / (1 - growth) > new:
            high = growth
        else:
            low = growth
    steps = growth ** torch.arange(old, dtype=torch.float64)
    beyond = steps.cumsum(0)  # (old,): 1, 1 + q, 1 + q + q^2, ...
    return torch.cat([-beyond.flip(0), torch.zeros(1, dtype=torch.float64), beyond])


def _spline(places: Tensor, at: Tensor) -> Tensor:
    """Return the matrix that evaluates a cubic spline through values at n places at m others.

    Its third derivative is continuous next to both ends ("not a knot"); through fewer than four
    values it is the polynomial. Outside of the places it keeps the end's value.

    Shape:
        - places: (n,), ascending. at: (m,). Output: (m, n), float64.
    """
    count = len(places)
    at = at.clamp(places[0], places[-1])[:, None]  # (m, 1)
    unit = torch.eye(count, dtype=torch.float64)
    if count < 4:
        own = unit.bool()
        quotients = (at[:, :, None] - places) / (places[:, None] - places).masked_fill(own, 1.0)
        return quotients.masked_fill(own, 1.0).prod(2)  # (m, n, n) to (m, n)
    gaps = places.diff()  # (n - 1,)
    slopes = unit.diff(dim=0) / gaps[:, None]  # (n - 1, n), of each value's own line
    system, sides = torch.zeros_like(unit), torch.zeros_like(unit)
    for i in range(1, count - 1):
        before, after = gaps[i - 1], gaps[i]
        system[i, i - 1], system[i, i], system[i, i + 1] = before, 2 * (before + after), after
        sides[i] = 6 * (slopes[i] - slopes[i - 1])
    for row, (near, far) in ((0, (gaps[0], gaps[1])), (-1, (gaps[-1], gaps[-2]))):
        step = 1 if row == 0 else -1
        system[row, row], system[row, row + step] = far, -(near + far)
        system[row, row + 2 * step] = near
    curvatures = torch.linalg.solve(system, sides)  # (n, n)
    piece = (torch.searchsorted(places, at[:, 0]) - 1).clamp(0, count - 2)  # (m,)
    gap = gaps[piece][:, None]  # (m, 1)
    right = (at - places[piece][:, None]) / gap
    left = 1 - right
    bend = (left**3 - left) * curvatures[piece] + (right**3 - right) * curvatures[piece + 1]
    return left * unit[piece] + right * unit[piece + 1] + bend * gap**2 / 6
