"""MAE and ASL against their equations, computed token by token in float64."""

from typing import Any

import pytest
import torch
from equations import (
    COMMON,
    KEPT,
    MEAN,
    PATCHES,
    STD,
    Parity,
    Weights,
    batch,
    below,
    block,
    compare_gradients,
    decode,
    encode,
    inputs,
    linear,
    mae_loss,
    norm,
    patches_of,
    pixel_error,
    post_norm_layer,
    randomised,
    weights_of,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.masking import random_mask
from asl_core.protocol import Draw, Mask, Step, Views
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe


def distance(a: Tensor, b: Tensor, recipe: AslRecipe) -> Tensor:
    """Eq. 9 for one token."""

    def half(x: Tensor, y: Tensor) -> Tensor:
        if recipe.sem_type == "cosine":
            return 1 - (x * y).sum() / (x.norm() * y.norm())
        return (x - y).abs().mean() if recipe.sem_reduction == "mean" else (x - y).abs().sum()

    return half(a, b.detach()) + half(a.detach(), b)


def asl_features(
    p: Weights, image: Tensor, ids: list[int], recipe: AslRecipe, noise: Tensor | None
) -> list[Tensor]:
    """fea_ori and fea_aug of one image."""
    encoder = below(p, "encoder.")
    if recipe.design == "dle":
        assert noise is not None
        both = [encode(encoder, image, ids, noise[k], recipe.dle_where) for k in (0, 1)]
        return [norm(x, encoder, "norm") for x in both]
    hidden = encode(encoder, image, ids)
    x = norm(hidden, encoder, "norm") if recipe.aee_pos == "post_norm" else hidden
    for depth in range(recipe.aee_depth):
        layer = below(p, f"extra_layer.{depth}.")
        if recipe.aee_layer == "block":
            x = block(x, layer, 2)
        else:
            x = post_norm_layer(x, layer, 2, None if noise is None else noise[depth])
    if recipe.aee_norm:
        x = norm(x, p, f"extra_layer.{recipe.aee_depth}")
    if recipe.aee_pos == "pre_norm":
        x = norm(x, encoder, "norm")
    return [norm(hidden, encoder, "norm"), x]


def asl_loss(
    p: Weights, images: Tensor, mask: Mask, recipe: AslRecipe, noise: Tensor | None
) -> Tensor:
    """Eq. 11 with every choice of the recipe."""
    pixels: list[list[Tensor]] = [[], []]
    aligned, cls = [], []
    decoders = [below(p, "decoder."), below(p, "decoder.")]
    if not recipe.share_decoder:
        decoders[1] = {**below(p, "decoder_aug."), "pos_embed": decoders[0]["pos_embed"]}
    for b, (image, ids) in enumerate(zip(images, mask.ids_keep.tolist(), strict=True)):
        own = noise
        if noise is not None:  # of this image
            stacked = recipe.design == "dle"
            own = noise.reshape(2, 3, KEPT, -1)[:, b] if stacked else noise[:, :, b]
        features = asl_features(p, image, ids, recipe, own)
        normed = [decode(q, x, ids) for q, x in zip(decoders, features, strict=True)]
        preds = [linear(y, q, "pred") for q, y in zip(decoders, normed, strict=True)]
        removed = [i for i in range(PATCHES) if i not in ids]
        for k in (0, 1):
            pixels[k] += [
                pixel_error(preds[k][1 + i], patches_of(image)[i], recipe.norm_pix) for i in removed
            ]
        space = preds if recipe.sem_space == "pixel" else normed
        chosen = removed if recipe.sem_patches == "masked" else range(PATCHES)
        aligned += [distance(space[0][1 + i], space[1][1 + i], recipe) for i in chosen]
        tokens = {"encoder": features, "decoder_norm": normed, "decoder_pred": preds}
        if recipe.cls_align != "off":
            a, b_ = tokens[recipe.cls_align]
            cls.append(distance(a[0], b_[0], recipe))
    ori, aug = (torch.stack(each).mean() for each in pixels)
    mae = {"both_mean": (ori + aug) / 2, "both_sum": ori + aug, "ori": ori, "aug": aug}
    sem = torch.stack(aligned).mean()
    if cls:
        sem = sem + torch.stack(cls).mean()
    return mae[recipe.mae_on] + recipe.sem_weight * sem


def test_mae_equals_its_equations(parity: Parity) -> None:
    method = randomised(MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD))
    images, mask = inputs()
    ours = method.step(images, mask).loss
    assert ours.dtype == torch.float64
    compare_gradients("MAE", method, ours, mae_loss(weights_of(method), images, mask), parity)


def test_one_step_of_the_optimiser_equals_adamw(parity: Parity) -> None:
    recipe = MaeRecipe(**COMMON, lr=3e-3)
    method = randomised(MaskedAutoencoder(recipe, MEAN, STD))
    images, mask = inputs()
    optimizer = build_optimizer(no_decay_groups(method, recipe), recipe)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    expected = {}
    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    loss = mae_loss(weights_of(method), images, mask)
    gradients = torch.autograd.grad(loss, [q for _, q in trained])
    for (name, q), g in zip(trained, gradients, strict=True):
        decay = 0.05 if q.ndim > 1 else 0.0
        # first and second moment after one step, bias corrected, are g and g^2
        expected[name] = q.detach() * (1 - 3e-3 * decay) - 3e-3 * g / (g.abs() + 1e-8)
    method.step(images, mask).loss.backward()
    optimizer.step()
    for name, q in trained:
        parity("MAE, weights after one step of AdamW", q.detach(), expected[name], 1e-10)


CHOICES: list[dict[str, Any]] = [
    {},
    {"sem_weight": 0.0},
    {"sem_weight": 0.3, "mae_on": "both_sum"},
    {"mae_on": "ori"},
    {"mae_on": "aug"},
    {"mae_on": "aug", "sem_weight": 0.0},
    {"sem_type": "cosine"},
    {"sem_reduction": "sum"},
    {"sem_patches": "all"},
    {"sem_precision": "full"},
    {"sem_space": "decoder_norm"},
    {"sem_space": "decoder_norm", "sem_patches": "all"},
    {"cls_align": "decoder_pred"},
    {"cls_align": "decoder_norm", "sem_type": "cosine"},
    {"cls_align": "encoder"},
    {"share_decoder": False},
    {"share_decoder": False, "sem_patches": "all", "cls_align": "decoder_pred"},
    {"aee_depth": 2},
    {"aee_pos": "pre_norm"},
    {"aee_norm": True},
    {"aee_layer": "vaswani", "aee_dropout": 0.0},
    {"aee_layer": "vaswani"},
    {"aee_layer": "vaswani", "aee_depth": 2, "aee_dropout": 0.4, "aee_pos": "pre_norm"},
    {"norm_pix": False},
    {"design": "dle"},
    {"design": "dle", "sem_weight": 0.0},
    {"design": "dle", "dle_rate": 0.4, "dle_where": "post_pos"},
    {"design": "dle", "dle_both": False, "share_decoder": False},
    {"design": "dle", "dle_unit": "patch", "dle_rate": 0.4},
    {"design": "dle", "dle_unit": "patch", "dle_rate": 0.4, "dle_where": "post_pos"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_asl_equals_its_equations(choice: dict[str, Any], parity: Parity) -> None:
    recipe = AslRecipe(**COMMON, **choice)
    method = randomised(ArbitrarySelfSupervised(recipe, MEAN, STD))
    images, mask = inputs()
    noise = method.draw_dropout(torch.tensor([4, 11, 30]), mask, Draw(0, 3))
    drops = recipe.design == "dle" or (recipe.aee_layer == "vaswani" and recipe.aee_dropout > 0)
    assert (noise is not None) == drops
    ours = method.step(images, mask, noise).loss
    theirs = asl_loss(weights_of(method), images, mask, recipe, noise)
    name = f"ASL {recipe.design.upper()}, every choice of the recipe"
    compare_gradients(name, method, ours, theirs, parity)


def paired(recipe: AslRecipe) -> tuple[Any, Any]:
    """Build both methods with the same encoder and decoder, in float64."""
    mae = randomised(MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD))
    asl = randomised(ArbitrarySelfSupervised(recipe, MEAN, STD))
    asl.load_state_dict(mae.state_dict(), strict=False)
    return mae, asl


@pytest.mark.parametrize("design", ["aee", "dle"])
def test_asl_without_its_augmentation_is_mae(design: str, parity: Parity) -> None:
    if design == "aee":
        mae, asl = paired(AslRecipe(**COMMON, sem_weight=0.0))
        asl.extra_layer = nn.Identity()
        name = "AEE with identity, alignment off, against MAE"
    else:
        mae, asl = paired(AslRecipe(**COMMON, design="dle", dle_rate=0.0))
        name = "DLE with rate 0 against MAE"
    images, mask = inputs()
    expected, step = mae.step(images, mask), asl.step(images, mask)
    assert step.terms["loss_sem"] == 0
    assert step.terms["branch_distance"] == 0
    parity(f"{name}, loss", step.loss, expected.loss, 1e-10)
    expected.loss.backward()
    step.loss.backward()
    for parameter, q in mae.named_parameters():
        if q.requires_grad:
            ours, theirs = asl.get_parameter(parameter).grad, q.grad
            parity(f"{name}, gradients", ours, theirs, 1e-10)
    for model in (mae, asl):
        recipe = MaeRecipe(**COMMON, lr=1e-3)
        build_optimizer(no_decay_groups(model, recipe), recipe).step()
    for parameter, q in mae.named_parameters():
        ours = asl.get_parameter(parameter).detach()
        parity(f"{name}, weights after one step", ours, q.detach(), 1e-10)


def test_forward_is_the_step_on_the_draws_of_the_batch() -> None:
    for recipe in (
        AslRecipe(**COMMON),
        AslRecipe(**COMMON, design="dle", dle_rate=0.3),
        AslRecipe(**COMMON, aee_layer="vaswani"),
    ):
        torch.manual_seed(1)
        asl = ArbitrarySelfSupervised(recipe, MEAN, STD)
        images, mask = asl.masked(batch(), Draw(3, 8))
        noise = asl.draw_dropout(batch().indices, mask, Draw(3, 8))
        assert torch.equal(asl(batch(), Draw(3, 8)).loss, asl.step(images, mask, noise).loss)
        assert not torch.equal(asl(batch(), Draw(3, 9)).loss, asl.step(images, mask, noise).loss)
        # without dropout when it is not trained
        evaluated: Step = asl.eval()(batch(), Draw(3, 8))
        assert torch.equal(evaluated.loss, asl.step(images, mask).loss)


@pytest.mark.parametrize("design", ["aee", "dle"])
def test_loss_does_not_change_when_the_others_of_the_batch_do(design: str) -> None:
    torch.manual_seed(1)
    method = ArbitrarySelfSupervised(AslRecipe(**COMMON, design=design), MEAN, STD)  # type: ignore[arg-type]
    whole = batch()
    parts = [Views((whole.views[0][i : i + 1],), whole.indices[i : i + 1]) for i in range(3)]
    mean = sum(method(part, Draw(0, 4)).loss for part in parts) / 3
    torch.testing.assert_close(method(whole, Draw(0, 4)).loss, mean)


def test_dropout_of_the_embedding_keeps_its_mean_and_differs_between_branches() -> None:
    asl = ArbitrarySelfSupervised(AslRecipe(**COMMON, design="dle", dle_rate=0.3), MEAN, STD)
    ids = torch.arange(400)
    mask = random_mask(torch.rand(400, PATCHES, generator=torch.Generator().manual_seed(0)), 0.6)
    noise = asl.draw_dropout(ids, mask, Draw(0, 1))
    assert noise is not None
    assert noise.shape == (800, KEPT, 16)
    assert abs(noise.mean().item() - 1) < 0.02
    assert abs((noise == 0).float().mean().item() - 0.3) < 0.01
    first, second = noise.chunk(2)
    assert not torch.equal(first, second)
    again = asl.draw_dropout(ids, mask, Draw(0, 1))
    assert again is not None
    assert torch.equal(noise, again)


@pytest.mark.parametrize("design", ["aee", "dle"])
def test_exported_encoder_has_the_keys_of_mae_and_of_timm(design: str) -> None:
    mae, asl = paired(AslRecipe(**COMMON, design=design))  # type: ignore[arg-type]
    assert asl.encoder_state().keys() == mae.encoder_state().keys()
    vit = mae.recipe.model
    theirs = VisionTransformer(
        vit.image_size, vit.patch_size, embed_dim=vit.embed_dim, depth=vit.depth,
        num_heads=vit.num_heads, num_classes=0,
    )  # fmt: skip
    assert mae.encoder_state().keys() == theirs.state_dict().keys()
