"""CMAE against its equations, its teacher and its masks."""

from typing import Any

import pytest
import torch
from equations import (
    MEAN,
    PATCHES,
    STD,
    TINY,
    Parity,
    Weights,
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
from torch import Tensor

from asl_core.engine.optimizer import build_optimizer
from asl_core.methods.cmae import ContrastiveMaskedAutoencoder
from asl_core.modules.masking import block_grid_mask
from asl_core.modules.momentum import ema_update
from asl_core.protocol import Draw, Mask, Views
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.models import Vit

EVEN = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
COMMON: dict[str, Any] = {
    "dataset": "none", "epochs": 1, "warmup_epochs": 0, "batch_size": 4, "precision": "fp32",
    "projector_hidden": 10, "projector_dim": 6,
}  # fmt: skip


def mlp(p: Weights, x: Tensor) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear without bias: (B, D) to (B, C)."""
    hidden = linear(x, p, "0")
    centred = hidden - hidden.sum(0) / len(hidden)
    hidden = centred / (centred.square().sum(0) / len(hidden) + 1e-6).sqrt()
    hidden = hidden * p["1.weight"] + p["1.bias"]
    return torch.where(hidden > 0, hidden, 0.0) @ p["3.weight"].T


def features(p: Weights, latent: Tensor, visible: list[int]) -> Tensor:
    """Mean over all patches of what the feature decoder makes of an image, (D,)."""
    x = linear(latent, p, "embed")
    tokens = [x[0] + p["pos_embed"][0, 0]]
    for i in range(PATCHES):
        token = x[1 + visible.index(i)] if i in visible else p["mask_token"][0, 0]
        tokens.append(token + p["pos_embed"][0, 1 + i])
    y = block(torch.stack(tokens), below(p, "blocks.0."), 3)
    return linear(norm(y, p, "norm"), p, "pred")[1:].mean(0)


def cmae_loss(
    p: Weights, images: Tensor, targets: Tensor, mask: Mask, recipe: CmaeRecipe
) -> Tensor:
    """Pixel loss and contrast, a pair of images at a time."""
    encoder, teacher = below(p, "encoder."), below(p, "teacher_encoder.")
    pooled, means = [], []
    for image, target, ids in zip(images, targets, mask.ids_keep.tolist(), strict=True):
        latent = norm(encode(encoder, image, ids), encoder, "norm")
        pooled.append(features(below(p, "feature_decoder."), latent, ids))
        means.append(encode(teacher, target, list(range(PATCHES)))[1:].mean(0))
    queries = mlp(below(p, "predictor."), mlp(below(p, "projector."), torch.stack(pooled)))
    keys = mlp(below(p, "teacher_projector."), torch.stack(means)).detach()
    losses = []
    for i, query in enumerate(queries):
        cosines = [query @ key / (query.norm() * key.norm()) for key in keys]
        shares = torch.stack([torch.exp(cosine / recipe.temperature) for cosine in cosines])
        losses.append(-2 * recipe.temperature * torch.log(shares[i] / shares.sum()))
    contrast = torch.stack(losses).mean()
    return mae_loss(p, images, mask) + recipe.contrast_weight * contrast


def test_cmae_equals_its_equations_and_so_does_a_step_of_student_and_teacher(
    parity: Parity,
) -> None:
    recipe = CmaeRecipe(
        **COMMON, model=TINY, mask="random", mask_ratio=0.6, feature_decoder_depth=1,
        contrast_weight=0.7, teacher_momentum=0.9,
    )  # fmt: skip
    method = randomised(ContrastiveMaskedAutoencoder(recipe, MEAN, STD))
    images, mask = inputs()
    targets = torch.randn(images.shape, generator=torch.Generator().manual_seed(9)).double()
    step = method.step(images, targets, mask)
    theirs = cmae_loss(weights_of(method), images, targets, mask, recipe)
    compare_gradients("CMAE", method, step.loss, theirs, parity)

    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    again = cmae_loss(weights_of(method), images, targets, mask, recipe)
    gradients = torch.autograd.grad(again, [q for _, q in trained])
    optimizer = build_optimizer(method.parameter_groups(), recipe)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    expected = {}
    for (name, q), g in zip(trained, gradients, strict=True):
        gain = name in ("projector.1.weight", "predictor.1.weight")
        decays = gain or (q.ndim > 1 and not name.endswith(("cls_token", "mask_token")))
        decay = 0.05 if decays else 0.0
        expected[name] = q.detach() * (1 - 3e-3 * decay) - 3e-3 * g / (g.abs() + 1e-8)
    teacher = {n: q.clone() for n, q in method.named_parameters() if n.startswith("teacher_")}
    step.loss.backward()
    optimizer.step()
    method.after_step(1)
    for name, q in trained:
        parity("CMAE, weights after one step of AdamW", q.detach(), expected[name], 1e-7)
    for name, before in teacher.items():
        if not name.endswith("pos_embed"):
            follows = 0.9 * before + 0.1 * expected[name.removeprefix("teacher_")]
            after = method.get_parameter(name)
            parity("CMAE, teacher after one step", after, follows, 1e-7)


def test_the_teacher_has_no_final_norm_and_is_not_trained() -> None:
    recipe = CmaeRecipe(**COMMON, model=EVEN)
    method = ContrastiveMaskedAutoencoder(recipe, MEAN, STD)
    names = [n for n, q in method.named_parameters() if n.startswith("teacher_")]
    assert not any("encoder.norm" in name for name in names)
    grouped = {id(q) for group in method.parameter_groups() for q in group["params"]}
    trained = {id(q) for q in method.parameters() if q.requires_grad}
    assert grouped == trained
    assert not {id(method.get_parameter(name)) for name in names} & grouped


def test_a_momentum_of_one_keeps_the_teacher_and_of_zero_copies_the_student() -> None:
    student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = teacher.weight.detach().clone()
    ema_update(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
    ema_update(teacher, student, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight)


def test_blocks_of_four_patches_are_visible_or_removed_together() -> None:
    noise = torch.rand(5, 49, generator=torch.Generator().manual_seed(0))
    mask = block_grid_mask(noise, 0.65, 14)
    assert mask.ids_keep.shape == (5, 68)  # 17 of 49 blocks
    assert mask.ids_removed.shape == (5, 128)
    for keep, removed, row in zip(mask.ids_keep, mask.ids_removed, noise, strict=True):
        assert sorted([*keep.tolist(), *removed.tolist()]) == list(range(196))
        blocks = {(i // 28, i % 14 // 2) for i in keep.tolist()}
        assert len(blocks) == 17
        smallest = {(b // 7, b % 7) for b in row.argsort()[:17].tolist()}
        assert blocks == smallest


def test_the_teacher_sees_another_window_and_other_colours() -> None:
    plan = CmaeRecipe(dataset="none").view_plan()
    student, teacher = plan.views
    assert (student.size, student.crop_size, student.max_shift, student.colour) == (
        224, 256, 0, None,
    )  # fmt: skip
    assert (teacher.box, teacher.crop_size, teacher.max_shift) == ("first", 256, 31)
    assert teacher.colour is not None


def test_forward_compares_the_two_views() -> None:
    method = ContrastiveMaskedAutoencoder(CmaeRecipe(**COMMON, model=EVEN), MEAN, STD)
    generator = torch.Generator().manual_seed(0)
    first, second, other = (
        torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        for _ in range(3)
    )
    indices = torch.arange(4)
    ours = method(Views((first, second), indices), Draw(0, 1))
    elsewhere = method(Views((first, other), indices), Draw(0, 1))
    assert torch.equal(ours.terms["loss_mae"], elsewhere.terms["loss_mae"])
    assert not torch.equal(ours.terms["loss_contrast"], elsewhere.terms["loss_contrast"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": TINY}, "even number of patches a side, not 3"),
        ({"model": EVEN, "teacher_momentum": 1.5}, r"teacher_momentum must be in \[0, 1\]"),
        ({"model": EVEN, "max_shift": 9}, "max_shift must be in"),
        ({"model": EVEN, "crop_size": 12}, "smaller than size 16"),
        ({"model": EVEN, "batch_size": 1}, "compared with others"),
        ({"model": EVEN, "temperature": -1.0}, "temperature must be positive"),
        # of four blocks a fifth is none
        ({"model": EVEN, "mask_ratio": 0.8}, "mask_ratio 0.8 leaves 0 of 16 patches"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CmaeRecipe(**{**COMMON, **fields})
