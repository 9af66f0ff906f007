"""The equations of the methods, image by image and token by token: what ours must equal.

Nothing here is of the project: parameters come as a dictionary under their names.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asl_core.modules.masking import random_mask
from asl_core.protocol import Mask, Views
from asl_core.recipes.models import Vit

Weights = dict[str, Tensor]
Parity = Callable[[str, Tensor, Tensor, float], None]

TINY = Vit(
    image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=2, decoder_num_heads=3,
)  # fmt: skip
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 1, "warmup_epochs": 0, "mask_ratio": 0.6,
}  # fmt: skip
PATCHES, KEPT = 9, 3  # int(9 * (1 - 0.6))


def batch() -> Views:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=generator)
    return Views((images,), torch.tensor([4, 11, 30]))


def inputs() -> tuple[Tensor, Mask]:
    """Images in float64 and a mask."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=generator)
    return images, random_mask(torch.rand(3, PATCHES, generator=generator), 0.6)


def below(p: Weights, prefix: str) -> Weights:
    return {k[len(prefix) :]: v for k, v in p.items() if k.startswith(prefix)}


def norm(x: Tensor, p: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(x: Tensor, p: Weights, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def block(x: Tensor, p: Weights, heads: int) -> Tensor:
    """A pre-norm Transformer block, one head at a time; (T, D)."""
    size = x.shape[-1] // heads
    q, k, v = linear(norm(x, p, "norm1"), p, "attn.qkv").split(x.shape[-1], dim=-1)
    outs = []
    for i in range(heads):
        s = slice(i * size, (i + 1) * size)
        weights = (q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(-1)
        outs.append(weights @ v[:, s])
    x = x + linear(torch.cat(outs, -1), p, "attn.proj")
    h = linear(norm(x, p, "norm2"), p, "mlp.fc1")
    return x + linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), p, "mlp.fc2")


def post_norm_layer(x: Tensor, p: Weights, heads: int, kept: Tensor | None) -> Tensor:
    """A layer of "Attention is all you need", one head at a time; x (T, D), kept (2, T, D)."""
    first, second = (1.0, 1.0) if kept is None else kept
    size = x.shape[-1] // heads
    q, k, v = (x @ p["attn.qkv.weight"].T).split(x.shape[-1], dim=-1)
    outs = []
    for i in range(heads):
        s = slice(i * size, (i + 1) * size)
        outs.append((q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(-1) @ v[:, s])
    y = norm(x + torch.cat(outs, -1) @ p["attn.proj.weight"].T * first, p, "norm1")
    inner = linear(y, p, "mlp.0").clamp_min(0)
    return norm(y + linear(inner, p, "mlp.2") * second, p, "norm2")


def patches_of(image: Tensor) -> list[Tensor]:
    places = [(r, c) for r in range(3) for c in range(3)]
    return [image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for r, c in places]


def encode(
    p: Weights,
    image: Tensor,
    visible: list[int],
    noise: Tensor | None = None,
    where: str = "",
    blocks: int = 2,
) -> Tensor:
    """Output of the last of so many blocks, before the final norm, (1 + V, D)."""
    patches, tokens = patches_of(image), [p["cls_token"][0, 0] + p["pos_embed"][0, 0]]
    for n, i in enumerate(visible):
        token = (p["patch_embed.proj.weight"] * patches[i]).sum((1, 2, 3))
        token = token + p["patch_embed.proj.bias"]
        if noise is not None and where == "pre_pos":
            token = token * noise[n]
        token = token + p["pos_embed"][0, 1 + i]
        if noise is not None and where == "post_pos":
            token = token * noise[n]
        tokens.append(token)
    x = torch.stack(tokens)
    for depth in range(blocks):
        x = block(x, below(p, f"blocks.{depth}."), 2)
    return x


def decode(p: Weights, latent: Tensor, visible: list[int]) -> Tensor:
    """Normalised output of the decoder, [cls] and all patches in the image's order, (1 + N, E)."""
    x = linear(latent, p, "embed")
    tokens = [x[0] + p["pos_embed"][0, 0]]
    for i in range(PATCHES):
        token = x[1 + visible.index(i)] if i in visible else p["mask_token"][0, 0]
        tokens.append(token + p["pos_embed"][0, 1 + i])
    y = torch.stack(tokens)
    for depth in range(2):
        y = block(y, below(p, f"blocks.{depth}."), 3)
    return norm(y, p, "norm")


def pixel_error(pred: Tensor, patch: Tensor, norm_pix: bool = True) -> Tensor:
    """Eq. 1, with MAE's normalised target or without: row, column, channel."""
    target = patch.permute(1, 2, 0).flatten()
    if norm_pix:
        target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
    return (target - pred).square().mean()


def mae_loss(p: Weights, images: Tensor, mask: Mask) -> Tensor:
    """Eq. 1-2."""
    errors = []
    for image, ids in zip(images, mask.ids_keep.tolist(), strict=True):
        latent = norm(encode(below(p, "encoder."), image, ids), below(p, "encoder."), "norm")
        pred = linear(decode(below(p, "decoder."), latent, ids), below(p, "decoder."), "pred")
        removed = [i for i in range(PATCHES) if i not in ids]
        errors += [pixel_error(pred[1 + i], patches_of(image)[i]) for i in removed]
    return torch.stack(errors).mean()


def weights_of(method: nn.Module) -> Weights:
    buffers = {name: b for name, b in method.named_buffers() if name.endswith("pos_embed")}
    return dict(method.named_parameters()) | buffers


def randomised(method: nn.Module) -> Any:
    """In float64, every parameter random: zero biases and unit gains would hide mistakes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if not name.endswith("pos_embed"):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise)
    return method.double()


def compare_gradients(
    name: str, method: nn.Module, ours: Tensor, theirs: Tensor, parity: Parity
) -> None:
    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    parity(f"{name}, loss", ours, theirs, 1e-10)
    parameters = [q for _, q in trained]
    own = torch.autograd.grad(ours, parameters, retain_graph=True, allow_unused=True)
    other = torch.autograd.grad(theirs, parameters, allow_unused=True)
    for (parameter, _), a, b in zip(trained, own, other, strict=True):
        assert (a is None) == (b is None), parameter
        if a is not None and b is not None:
            parity(f"{name}, gradients", a, b, 1e-10)
