"""iBOT against its equations: masked patches, both centres, shared and separate prototypes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from crops import encode_crop, head, products, soft_cross_entropy
from equations import (
    MEAN,
    STD,
    TINY,
    Parity,
    Weights,
    below,
    compare_gradients,
    randomised,
    weights_of,
)
from torch import Tensor

from asl_core.methods.ibot import OnlineTokenizer
from asl_core.protocol import Draw, RunLength, Views
from asl_core.recipes.ibot import IbotRecipe

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "out_dim": 7, "head_hidden_dim": 10, "head_bottleneck_dim": 5, "local_size": 8,
    "precision": "fp32",
}  # fmt: skip
SHAPES = [
    {"shared_head": True},
    {"shared_head": False},
    {"shared_head": False, "shared_head_teacher": False, "patch_out_dim": 6},
]


def arguments(local_crops: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    removed = torch.zeros(4, 9, dtype=torch.bool)
    removed[0, [1, 4]] = removed[2, 5] = removed[3, [0, 1, 8]] = True  # the second has none
    small = torch.randn(2 * local_crops, 3, 8, 8, generator=generator).double()
    return {
        "crops": torch.randn(4, 3, 12, 12, generator=generator).double(),
        "removed": removed,
        "keep": torch.rand(2, 2, 4, generator=generator).double() * 2,
        "small": small if local_crops else None,
        "small_keep": None,
        "temperatures": torch.tensor([0.05, 0.06], dtype=torch.float64),
    }


def ibot_loss(
    p: Weights, recipe: IbotRecipe, args: dict[str, Any], centers: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and means of the teacher's outputs."""
    own = "prototypes." if recipe.shared_head else "patch_prototypes."
    his = "teacher.prototypes." if recipe.shared_head_teacher else "teacher.patch_prototypes."
    logits, raw, raw_patches, patch_losses = [], [], [], []
    for i, image in enumerate(args["crops"]):
        removed = args["removed"][i]
        seen = head(below(p, "teacher.head."), encode_crop(below(p, "teacher.encoder."), image))
        raw.append(products(below(p, "teacher.prototypes."), seen[0]).detach())
        patches = products(below(p, his), seen[1:]).detach()
        raw_patches.append(patches)
        tokens = encode_crop(
            below(p, "encoder."), image, args["keep"][:, :, i], removed, p["hidden_embed"]
        )
        tokens = head(below(p, "head."), tokens)
        logits.append(products(below(p, "prototypes."), tokens[0]))
        mine = products(below(p, own), tokens[1:])
        total, count = torch.zeros((), dtype=torch.float64), 0
        for n in range(9):
            if removed[n]:
                shifted = torch.exp((patches[n] - centers["patch_center"][0, 0]) / 0.06)
                total = total + soft_cross_entropy(mine[n], shifted / shifted.sum(), 0.1)
                count += 1
        patch_losses.append(total / max(count, 1))
    for image in () if args["small"] is None else args["small"]:
        cls = encode_crop(below(p, "encoder."), image)[0]
        logits.append(products(below(p, "prototypes."), head(below(p, "head."), cls)))
    losses = []
    for q in range(2):
        for v in range(len(logits) // 2):
            if v != q:
                for i in range(2):
                    shifted = torch.exp((raw[2 * q + i] - centers["center"][0]) / 0.05)
                    target = shifted / shifted.sum()
                    losses.append(soft_cross_entropy(logits[2 * v + i], target, 0.1))
    loss = recipe.cls_weight * torch.stack(losses).mean()
    loss = loss + recipe.patch_weight * torch.stack(patch_losses).mean()
    means = {
        "center": torch.stack(raw).mean(0)[None],
        "patch_center": torch.stack(raw_patches).mean((0, 1))[None, None],
    }
    return loss, means


@pytest.mark.parametrize("shape", SHAPES, ids=["shared", "teacher's shared", "separate"])
@pytest.mark.parametrize("local_crops", [0, 2])
def test_ibot_equals_its_equations_and_so_do_teacher_and_centres(
    local_crops: int, shape: dict[str, Any], parity: Parity
) -> None:
    recipe = IbotRecipe(
        **COMMON, **shape, local_crops=local_crops, cls_weight=0.7, patch_weight=1.3,
        norm_last_layer=False,
    )  # fmt: skip
    method = randomised(OnlineTokenizer(recipe, MEAN, STD))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in ("center", "patch_center"):
            center = getattr(method, name)
            center.add_(0.1 * torch.randn(center.shape, generator=generator))
    args = arguments(local_crops)
    centers = {name: getattr(method, name).clone() for name in ("center", "patch_center")}
    step = method.step(**args)
    theirs, means = ibot_loss(weights_of(method), recipe, args, centers)
    compare_gradients("iBOT", method, step.loss, theirs, parity)
    method.take_statistics(step.statistics)
    for name, before in centers.items():
        parity("iBOT, centres", getattr(method, name), 0.9 * before + 0.1 * means[name], 1e-12)
    method.set_run_length(RunLength(5, 20))
    before = {n: q.clone() for n, q in method.teacher.named_parameters()}
    method.after_step(1)
    for name, old in before.items():
        follows = 0.996 * old + 0.004 * method.get_parameter(name)
        parity(
            "iBOT, teacher after one step",
            method.teacher.get_parameter(name), follows.detach(), 1e-12,
        )  # fmt: skip


def test_prototypes_of_patches_are_frozen_too() -> None:
    recipe = IbotRecipe(**COMMON, shared_head=False, freeze_last_layer=1)
    method = randomised(OnlineTokenizer(recipe, MEAN, STD))
    method.set_run_length(RunLength(2, 8))
    for step, frozen in ((1, True), (2, False)):
        method.step(**arguments(0)).loss.backward()
        method.edit_gradients(step)
        for layer in (method.prototypes, method.patch_prototypes):
            assert (layer.direction.grad is None) == frozen
        assert method.hidden_embed.grad is not None
        method.zero_grad()


def test_forward_reads_the_masks_of_both_views() -> None:
    torch.manual_seed(0)
    method = OnlineTokenizer(IbotRecipe(**COMMON), MEAN, STD)
    generator = torch.Generator().manual_seed(1)
    views = tuple(
        torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    )
    masks = torch.zeros(3, 2, 9, dtype=torch.bool)
    masks[:, 1, :4] = True
    prepared = method.prepared(Views(views, torch.arange(3), masks=masks), Draw(0, 0))
    assert prepared["removed"].sum(1).tolist() == [0, 0, 0, 4, 4, 4]
    step = method(Views(views, torch.arange(3), masks=masks), Draw(0, 0))
    assert step.terms["loss_patch"] > 0
    nothing = method(Views(views, torch.arange(3), masks=torch.zeros_like(masks)), Draw(0, 0))
    assert nothing.terms["loss_patch"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_out_dim": 5}, "patch_out_dim 5 must be out_dim 7"),
        ({"shared_head_teacher": False}, "a teacher follows its student"),
        ({"mask_ratio_max": 1.0}, "mask_ratio_max 1.0 must be in"),
        ({"mask_ratio_min": 0.0, "mask_ratio_max": 0.0}, "nothing would be masked"),
        ({"mask_ratio_min": 0.0, "mask_ratio_max": 0.1}, "0.1 of 9 patches leaves no room"),
        ({"smallest_block": 5}, "no room for a block of 5"),
        ({"smallest_block": 0}, "smallest_block must be at least 1"),
        ({"model": replace(TINY, image_size=4)}, "0.5 of 1 patches leaves no room"),
        ({"patch_weight": -1.0}, "patch_weight must be at least 0"),
        ({"teacher_patch_temp": 0.0}, "teacher_patch_temp must be positive"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IbotRecipe(**{**COMMON, **fields})
