"""Equations of DINO and iBOT: crops of any size, stochastic depth, heads; image by image."""

import math

import torch
from equations import Weights, below, linear, norm
from torch import Tensor


def bicubic(size: int, wanted: int) -> Tensor:
    """Matrix that resizes a line as DINO does: by a factor of (wanted + .1) / size, a = -.75."""
    matrix = torch.zeros(wanted, size, dtype=torch.float64)
    for i in range(wanted):
        x = (i + 0.5) * size / (wanted + 0.1) - 0.5
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            d, a = abs(x - tap), -0.75
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(tap, 0), size - 1)] += weight
    return matrix


def positions_for(p: Weights, grid: int) -> Tensor:
    """Positions of [cls] and of grid^2 patches, (1 + grid^2, D)."""
    own = p["pos_embed"][0]
    side = math.isqrt(len(own) - 1)
    if grid == side:
        return own
    maps = own[1:].reshape(side, side, -1)
    line = bicubic(side, grid)
    resized = torch.einsum("yr,xc,rcd->yxd", line, line, maps)
    return torch.cat([own[:1], resized.reshape(grid * grid, -1)])


def scaled_block(x: Tensor, p: Weights, heads: int, first: Tensor, second: Tensor) -> Tensor:
    """A pre-norm block whose branches are multiplied with two numbers; (T, D)."""
    size = x.shape[-1] // heads
    q, k, v = linear(norm(x, p, "norm1"), p, "attn.qkv").split(x.shape[-1], dim=-1)
    outs = []
    for i in range(heads):
        s = slice(i * size, (i + 1) * size)
        outs.append((q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(-1) @ v[:, s])
    x = x + first * linear(torch.cat(outs, -1), p, "attn.proj")
    h = linear(norm(x, p, "norm2"), p, "mlp.fc1")
    return x + second * linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), p, "mlp.fc2")


def encode_crop(p: Weights, image: Tensor, *drawn: Tensor | None) -> Tensor:
    """All tokens of an image after the final norm, (1 + N, D); `drawn` as for `before_norm`."""
    return norm(before_norm(p, image, *drawn), p, "norm")


def before_norm(
    p: Weights,
    image: Tensor,
    keep: Tensor | None = None,
    removed: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Tensor:
    """All tokens of an image before the final norm, (1 + N, D); patches of 4, two blocks."""
    grid = image.shape[-1] // 4
    positions = positions_for(p, grid)
    tokens = [p["cls_token"][0, 0] + positions[0]]
    for n in range(grid * grid):
        r, c = divmod(n, grid)
        patch = image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
        token = (p["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + p["patch_embed.proj.bias"]
        if removed is not None and hidden is not None and removed[n]:
            token = hidden[0]
        tokens.append(token + positions[1 + n])
    x = torch.stack(tokens)
    for depth in range(2):
        factors = torch.ones(2, dtype=x.dtype) if keep is None else keep[depth]
        x = scaled_block(x, below(p, f"blocks.{depth}."), 2, factors[0], factors[1])
    return x


def head(p: Weights, x: Tensor) -> Tensor:
    """The MLP onto the sphere; (..., D) to (..., C)."""
    for layer in (0, 2):
        h = linear(x, p, f"layers.{layer}")
        x = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    x = linear(x, p, "layers.4")
    return x / x.square().sum(-1, keepdim=True).sqrt()


def products(p: Weights, x: Tensor) -> Tensor:
    """Products with each prototype, one after the other; (..., C) to (..., K)."""
    rows = [
        gain * direction / direction.square().sum().sqrt()
        for gain, direction in zip(p["gain"], p["direction"], strict=True)
    ]
    return torch.stack([(x * row).sum(-1) for row in rows], dim=-1)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of one row each: student's logits, teacher's probabilities."""
    exponentials = torch.exp(student / temperature)
    return -(teacher * torch.log(exponentials / exponentials.sum())).sum()
