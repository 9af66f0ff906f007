"""Equations of BEiT, CAE and SplitMask, image by image and token by token, and a tokenizer.

Nothing here is of the project but the optimiser that is compared: parameters come as a dictionary
under their names.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from equations import Parity, Weights, linear, norm
from torch import Tensor, nn

from asl_core.engine.clipping import CLIPPERS
from asl_core.engine.optimizer import build_optimizer
from asl_core.recipes.pretraining import Pretraining


class BrightnessTokenizer(nn.Module):
    """The code of a patch is its mean brightness, in steps; small and frozen."""

    def __init__(self, num_codes: int = 11, patch: int = 4) -> None:
        super().__init__()
        self.num_codes, self.patch = num_codes, patch

    def codes(self, images: Tensor) -> Tensor:
        means = F.avg_pool2d(images.double().mean(1, keepdim=True), self.patch)  # (B, 1, G, G)
        return (means / 256 * self.num_codes).long().flatten(1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """One head at a time; q (T, D), k, v (S, D), bias (heads, T, S)."""
    size, outs = q.shape[-1] // heads, []
    for i in range(heads):
        s = slice(i * size, (i + 1) * size)
        logits = q[:, s] @ k[:, s].T / math.sqrt(size)
        outs.append((logits if bias is None else logits + bias[i]).softmax(-1) @ v[:, s])
    return torch.cat(outs, -1)


def mlp(x: Tensor, p: Weights, name: str = "mlp") -> Tensor:
    h = linear(x, p, f"{name}.fc1")
    return linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), p, f"{name}.fc2")


def code_block(
    x: Tensor,
    p: Weights,
    heads: int,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A pre-norm block with factors of its branches and no bias of keys; (T, D), keep (2,)."""
    first, second = (1.0, 1.0) if keep is None else keep
    weight = p["attn.qkv.weight"]
    y, width = norm(x, p, "norm1"), x.shape[-1]
    q = y @ weight[:width].T + p["attn.qkv.q_bias"]
    k = y @ weight[width : 2 * width].T
    v = y @ weight[2 * width :].T + p["attn.qkv.v_bias"]
    mixed = linear(attention(q, k, v, heads, bias), p, "attn.proj")
    x = x + first * p["ls1.gamma"] * mixed
    return x + second * p["ls2.gamma"] * mlp(norm(x, p, "norm2"), p)


def patch_tokens(p: Weights, image: Tensor, size: int = 4) -> list[Tensor]:
    """Embedded patches, without positions."""
    grid, tokens = image.shape[-1] // size, []
    for n in range(grid * grid):
        r, c = divmod(n, grid)
        patch = image[:, size * r : size * (r + 1), size * c : size * (c + 1)]
        token = (p["patch_embed.proj.weight"] * patch).sum((1, 2, 3))
        tokens.append(token + p["patch_embed.proj.bias"])
    return tokens


def bias_of(table: Tensor, side: int) -> Tensor:
    """BEiT's bias of every pair of tokens by its index, (heads, 1 + N, 1 + N), [cls] first."""
    extent, rows = 2 * side - 1, []
    for i in range(1 + side * side):
        row = []
        for j in range(1 + side * side):
            if i == 0 or j == 0:
                entry = extent**2 + (2 if i == j else 0 if i == 0 else 1)
            else:
                down = (i - 1) // side - (j - 1) // side + side - 1
                along = (i - 1) % side - (j - 1) % side + side - 1
                entry = down * extent + along
            row.append(table[:, entry])
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def code_error(logits: Tensor, code: int) -> Tensor:
    """Cross entropy of one patch."""
    exponentials = torch.exp(logits)
    return -torch.log(exponentials[code] / exponentials.sum())


def check_optimiser_step(
    name: str,
    method: nn.Module,
    recipe: Pretraining,
    groups: list[dict[str, object]],
    loss: Tensor,
    decays: Callable[[str], bool],
    parity: Parity,
) -> None:
    """Let our optimiser do a step, and compare with AdamW's first step as it is written down.

    Args:
        name: For the report.
        method: In float64.
        recipe: Its own: rate, decay, clipping.
        groups: Of our optimiser.
        loss: By the equations.
        decays: Whether a parameter, named, has weight decay.
        parity: Compares.
    """
    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    before = {n: q.detach().clone() for n, q in trained}
    gradients = torch.autograd.grad(loss, [q for _, q in trained], retain_graph=True)
    length = torch.cat([g.flatten() for g in gradients]).norm()
    assert recipe.clip_grad is not None
    factor = min(1.0, recipe.clip_grad / (length.item() + 1e-6))
    optimizer = build_optimizer(groups, recipe)
    optimizer.zero_grad()
    method.zero_grad()
    for (_, q), g in zip(trained, gradients, strict=True):
        q.grad = g.clone()
    CLIPPERS[recipe.clip_mode]([q for _, q in trained], recipe.clip_grad)
    optimizer.step()
    for (n, q), g in zip(trained, gradients, strict=True):
        decay = recipe.weight_decay if decays(n) else 0.0
        rate, g = recipe.peak_lr, g * factor
        expected = before[n] * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        parity(f"{name}, parameters after one step", q.detach(), expected, 1e-10)
