"""ccMIM against its equations, and what is new in it: attention weights, contrast, BatchNorm."""

import math
from typing import Any

import pytest
import torch
from equations import (
    COMMON,
    MEAN,
    PATCHES,
    STD,
    Parity,
    Weights,
    batch,
    below,
    block,
    compare_gradients,
    encode,
    inputs,
    linear,
    mae_loss,
    norm,
    randomised,
    weights_of,
)
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.losses.contrastive import info_nce
from asl_core.methods.ccmim import ContextContrastiveAutoencoder
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.attention import block_with_weights
from asl_core.modules.batch_norm import BatchNorm
from asl_core.protocol import Draw, Mask
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.mae import MaeRecipe


def projected(p: Weights, x: Tensor) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without gain: (B, D) to (B, C)."""

    def standardised(rows: Tensor) -> Tensor:
        centred = rows - rows.sum(0) / len(rows)
        return centred / (centred.square().sum(0) / len(rows) + 1e-5).sqrt()

    hidden = standardised(x @ p["0.weight"].T) * p["1.weight"] + p["1.bias"]
    return standardised(torch.where(hidden > 0, hidden, 0.0) @ p["3.weight"].T)


def ccmim_loss(p: Weights, images: Tensor, mask: Mask, recipe: CcMimRecipe) -> Tensor:
    """Pixel loss and contrast, a pair of images at a time."""
    encoder = below(p, "encoder.")

    def cls_tokens(ids: Tensor) -> Tensor:
        return torch.stack(
            [
                norm(encode(encoder, image, chosen), encoder, "norm")[0]
                for image, chosen in zip(images, ids.tolist(), strict=True)
            ]
        )

    visible = projected(below(p, "projector."), cls_tokens(mask.ids_keep))
    removed = projected(below(p, "projector."), cls_tokens(mask.ids_removed)).detach()
    losses = []
    for i, query in enumerate(visible):
        cosines = [query @ key / (query.norm() * key.norm()) for key in removed]
        shares = torch.stack([torch.exp(cosine / recipe.temperature) for cosine in cosines])
        losses.append(-2 * recipe.temperature * torch.log(shares[i] / shares.sum()))
    contrast = torch.stack(losses).mean()
    return mae_loss(p, images, mask) + recipe.contrast_weight * contrast


@pytest.mark.parametrize("choice", [{}, {"temperature": 0.2, "contrast_weight": 1.0}], ids=str)
def test_ccmim_equals_its_equations(choice: dict[str, Any], parity: Parity) -> None:
    recipe = CcMimRecipe(**COMMON, **choice, batch_size=4, projector_hidden=10, projector_dim=6)
    method = randomised(ContextContrastiveAutoencoder(recipe, MEAN, STD))
    images, mask = inputs()
    step = method.step(images, mask)
    theirs = ccmim_loss(weights_of(method), images, mask, recipe)
    compare_gradients("ccMIM", method, step.loss, theirs, parity)
    optimizer = build_optimizer(no_decay_groups(method, recipe), recipe)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    again = ccmim_loss(weights_of(method), images, mask, recipe)
    gradients = torch.autograd.grad(again, [q for _, q in trained])
    expected = {}
    for (name, q), g in zip(trained, gradients, strict=True):
        decay = 0.05 if q.ndim > 1 else 0.0
        expected[name] = q.detach() * (1 - 3e-3 * decay) - 3e-3 * g / (g.abs() + 1e-8)
    step.loss.backward()
    optimizer.step()
    for name, q in trained:
        parity("ccMIM, weights after one step of AdamW", q.detach(), expected[name], 1e-7)


def attention_of(p: Weights, image: Tensor, to_cls: bool) -> Tensor:
    """Sum over blocks of the heads' mean attention between [cls] and each patch, (N,)."""
    x = encode(p, image, list(range(PATCHES)), blocks=0)
    total = torch.zeros(PATCHES, dtype=x.dtype)
    for depth in range(2):
        q = below(p, f"blocks.{depth}.")
        query, key, _ = linear(norm(x, q, "norm1"), q, "attn.qkv").split(16, dim=-1)
        for head in (slice(0, 8), slice(8, 16)):
            scores = query[:, head] @ key[:, head].T / math.sqrt(8)
            weights = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
            total += (weights[1:, 0] if to_cls else weights[0, 1:]) / 2
        x = block(x, q, 2)
    return total


@pytest.mark.parametrize("attention", ["to_cls", "from_cls"])
def test_what_attention_and_chance_choose_is_hidden(attention: Any, parity: Parity) -> None:
    recipe = CcMimRecipe(**COMMON, attention=attention)
    method = randomised(ContextContrastiveAutoencoder(recipe, MEAN, STD))
    images, _ = inputs()
    noise = torch.rand(3, PATCHES, generator=torch.Generator().manual_seed(1)).double()
    encoder = below(weights_of(method), "encoder.")
    attended = torch.stack([attention_of(encoder, x, attention == "to_cls") for x in images])
    parity("ccMIM, attention", method.attention(images).detach(), attended.detach(), 1e-10)
    scores = attended.softmax(1) / noise.softmax(1)
    expected = [set(row.topk(6).indices.tolist()) for row in scores]  # 9 - int(9 * 0.4)
    assert [set(ids) for ids in method.split(images, noise).ids_removed.tolist()] == expected


def test_a_random_mask_is_the_one_of_mae() -> None:
    mae = MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD)
    ccmim = ContextContrastiveAutoencoder(CcMimRecipe(**COMMON, mask="random"), MEAN, STD)
    ours, theirs = (method.masked(batch(), Draw(2, 7))[1] for method in (ccmim, mae))
    assert torch.equal(ours.ids_keep, theirs.ids_keep)


def test_a_block_gives_its_weights_away_and_stays_what_it_is() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, qkv_bias=True, init_values=0.5).double().eval()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    output, weights = block_with_weights(block, tokens)
    torch.testing.assert_close(output, block(tokens), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))


def test_keys_are_constants_and_own_keys_are_found() -> None:
    queries = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    keys = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    info_nce(queries, keys, 0.2).backward()
    assert keys.grad is None
    assert queries.grad is not None
    same = info_nce(queries, queries, 0.01)
    assert same < 1e-3 < info_nce(queries, keys, 0.01)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_one_process_normalises_as_torch_does(shape: tuple[int, ...], affine: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    ours, theirs = BatchNorm(5, affine=affine), nn.BatchNorm1d(5, affine=affine)
    for _ in range(2):
        expected = theirs(x.reshape(-1, 5)).reshape(shape)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.reshape(-1, 5)).reshape(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"contrast_weight": -1.0}, "contrast_weight must be at least 0"),
        ({"mask": "random", "attention": "to_cls"}, "attention has no effect"),
        ({"batch_size": 1}, "compared with others"),
        ({"projector_dim": 0}, "must be at least 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CcMimRecipe(**COMMON, **fields)
