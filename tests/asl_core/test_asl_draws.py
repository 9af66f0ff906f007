"""What of an ASL step is drawn, or grows with its number."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from equations import COMMON, KEPT, MEAN, PATCHES, STD, batch, inputs, randomised
from torch import Tensor

from asl_core.losses.alignment import alignment_loss, random_sign_loss
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.modules.masking import random_mask
from asl_core.protocol import Draw, Mask, RunLength
from asl_core.recipes.asl import AslRecipe

CPU = torch.device("cpu")


def recipe_with(**fields: Any) -> AslRecipe:
    return AslRecipe(**{**COMMON, "epochs": 4, **fields})


def method_with(**fields: Any) -> ArbitrarySelfSupervised:
    torch.manual_seed(1)
    return ArbitrarySelfSupervised(recipe_with(**fields), MEAN, STD)


def many(count: int = 400) -> tuple[Tensor, Mask]:
    noise = torch.rand(count, PATCHES, generator=torch.Generator().manual_seed(0))
    return torch.arange(count), random_mask(noise, 0.6)


def dropout(method: ArbitrarySelfSupervised, ids: Tensor, mask: Mask, step: int = 1) -> Tensor:
    noise = method.draw_dropout(ids, mask, Draw(0, step))
    assert noise is not None
    return noise


def test_whole_patches_are_dropped_and_their_mean_is_kept() -> None:
    method = method_with(design="dle", dle_unit="patch", dle_rate=0.3)
    noise = dropout(method, *many())
    assert noise.shape == (800, KEPT, 1)
    assert set(noise.flatten().tolist()) == {0.0, np.float32(1) / np.float32(0.7)}
    assert abs((noise == 0).float().mean().item() - 0.3) < 0.03
    assert not torch.equal(*noise.chunk(2))


def test_dropout_of_the_published_layer_differs_in_layer_part_step_and_sample() -> None:
    method = method_with(aee_layer="vaswani", aee_depth=2, aee_dropout=0.3)
    ids, mask = many()
    noise = dropout(method, ids, mask)
    assert noise.shape == (2, 2, 400, 1 + KEPT, 16)
    assert abs((noise == 0).float().mean().item() - 0.3) < 0.01
    assert abs(noise.mean().item() - 1) < 0.01
    parts = noise.flatten(0, 1)  # (4, B, 1 + V, D)
    correlation = torch.corrcoef(parts.flatten(1))
    assert (correlation - torch.eye(4)).abs().max() < 0.03
    assert not torch.equal(noise, dropout(method, ids, mask, step=2))
    # of a sample, whatever its place and company
    chosen = torch.tensor([7, 3])
    picked = Mask(mask.ids_keep[chosen], mask.ids_removed[chosen])
    assert torch.equal(dropout(method, chosen, picked), noise[:, :, chosen])


@pytest.mark.parametrize(
    "fields",
    [
        {"sem_patches": "masked"},
        {"sem_patches": "all", "sem_reduction": "sum"},
        {"sem_space": "decoder_norm"},
        {"design": "dle"},
    ],
    ids=str,
)
def test_random_signs_have_the_size_of_the_alignments_gradient_and_not_its_direction(
    fields: dict[str, Any],
) -> None:
    method = method_with(sem_sign="random", **fields)
    ids = torch.arange(300)
    signs = method.draw_signs(ids, Draw(0, 5))
    assert signs is not None
    generator = torch.Generator().manual_seed(3)
    ori = torch.randn(signs.shape, generator=generator, dtype=torch.float64)
    aug = torch.randn(signs.shape, generator=generator, dtype=torch.float64)
    aug[0, 0, :3] = ori[0, 0, :3]  # where both agree L1 has no gradient
    reduction = method.recipe.sem_reduction
    grads = []
    for loss in (
        lambda a, b: alignment_loss(a, b, reduction),
        lambda a, b: random_sign_loss(a, b, signs, reduction),
    ):
        a, b = ori.clone().requires_grad_(), aug.clone().requires_grad_()
        value = loss(a, b)
        grads.append((value.item(), *(g.numpy() for g in torch.autograd.grad(value, (a, b)))))
    (value, *plain), (random_value, *random) = grads
    assert random_value == value
    size = 1 / (signs.shape[0] * signs.shape[1])
    size /= signs.shape[2] if reduction == "mean" else 1
    for ours, theirs in zip(random, plain, strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-12, atol=0)
        assert np.abs(ours).max() == pytest.approx(size)
        # five standard deviations of the mean of so many signs
        agreement = (np.sign(ours) * np.sign(theirs)).mean()
        assert abs(agreement) < 5 / math.sqrt(ours.size)
    np.testing.assert_array_equal(random[0], -random[1])


def test_signs_are_a_function_of_seed_step_and_sample() -> None:
    method = method_with(sem_sign="random")
    signs = method.draw_signs(torch.arange(6), Draw(0, 5))
    assert signs is not None
    assert signs.shape == (6, PATCHES - KEPT, 48)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    some = method.draw_signs(torch.tensor([4, 1]), Draw(0, 5))
    assert some is not None
    assert torch.equal(some, signs[[4, 1]])
    for draw in (Draw(0, 6), Draw(1, 5)):
        other = method.draw_signs(torch.arange(6), draw)
        assert other is not None
        assert abs((other * signs).mean().item()) < 5 / math.sqrt(signs.numel())


def test_forward_takes_the_drawn_signs_and_logs_the_alignment_itself() -> None:
    control, plain = method_with(sem_sign="random"), method_with()
    control.load_state_dict(plain.state_dict())
    ours, theirs = control(batch(), Draw(3, 8)), plain(batch(), Draw(3, 8))
    assert torch.equal(ours.terms["loss_sem"], theirs.terms["loss_sem"])
    images, mask = control.masked(batch(), Draw(3, 8))
    signs = control.draw_signs(batch().indices, Draw(3, 8))
    again = control.step(images, mask, None, signs)
    head = control.decoder.pred.weight
    (drawn,) = torch.autograd.grad(ours.loss, head, retain_graph=True)
    assert torch.equal(drawn, torch.autograd.grad(again.loss, head)[0])
    (aligned,) = torch.autograd.grad(theirs.loss, plain.decoder.pred.weight)
    assert not torch.allclose(drawn, aligned)


def test_weight_grows_linearly_step_by_step_and_stays() -> None:
    method = method_with(sem_weight=0.5, sem_warmup_epochs=1.6)
    method.set_run_length(RunLength(steps_per_epoch=5, total_steps=20))
    weights = [method.weight_in(Draw(0, step), CPU) for step in (0, 1, 2, 7, 8, 9, 19)]
    expected = [0.0, 0.0625, 0.125, 0.4375, 0.5, 0.5, 0.5]  # 8 steps of growth
    assert [weight.item() for weight in weights if weight is not None] == expected
    assert method_with().weight_in(Draw(0, 3), CPU) is None


def test_loss_and_gradient_have_the_weight_of_their_step() -> None:
    method = randomised(method_with(sem_weight=0.5, sem_warmup_epochs=2.0))
    method.set_run_length(RunLength(steps_per_epoch=4, total_steps=16))
    images, mask = inputs()
    for step, expected in ((0, 0.0), (2, 0.125), (6, 0.375), (8, 0.5), (15, 0.5)):
        made = method.step(images, mask, weight=method.weight_in(Draw(0, step), CPU))
        assert made.terms["sem_weight"] == expected
        mae, sem = made.terms["loss_mae"], made.terms["loss_sem"]
        assert made.loss.item() == pytest.approx((mae + expected * sem).item(), rel=1e-12)
        head = method.decoder.pred.weight
        parts = [torch.autograd.grad(x, head, retain_graph=True)[0] for x in (mae, sem, made.loss)]
        torch.testing.assert_close(parts[2], parts[0] + expected * parts[1])


def test_forward_knows_the_step() -> None:
    method = method_with(sem_warmup_epochs=2.0)
    method.set_run_length(RunLength(steps_per_epoch=4, total_steps=16))
    made = [method(batch(), Draw(0, step)) for step in (0, 2, 8)]
    assert [step.terms["sem_weight"] for step in made] == [0, 0.25, 1]
    method.after_step(2)
    assert method(batch(), Draw(0, 0)).terms["sem_weight"] == 0.25  # looked at between steps
