"""SIM against its equations: relative positions, UniGrad, BatchNorm over tokens, the teacher."""

import math
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
    compare_gradients,
    encode,
    inputs,
    linear,
    randomised,
    weights_of,
)
from torch import Tensor

from asl_core.data.block_masks import block_mask
from asl_core.losses.unigrad import token_correlation, unigrad_loss
from asl_core.methods.sim import SiameseImageModel
from asl_core.modules.masking import mask_of
from asl_core.modules.momentum import momentum_at
from asl_core.modules.positions import relative_positions, sincos_positions
from asl_core.protocol import Draw, Mask, RunLength, Views
from asl_core.randomness import seeded_globals
from asl_core.recipes.sim import SimRecipe
from asl_core.recipes.views import BlockMask

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 1, "warmup_epochs": 0, "batch_size": 4,
    "mask_ratio": 0.6, "projector_depth": 1, "predictor_depth": 2, "predictor_embed_dim": 12,
    "predictor_num_heads": 3, "precision": "fp32",
}  # fmt: skip
WIDTH = 12

BOXES = torch.tensor(
    [
        [[3.0, 5.0, 20.0, 16.0, 0.0, 48.0], [7.0, 2.0, 30.0, 24.0, 0.0, 48.0]],
        [[3.0, 5.0, 20.0, 16.0, 0.0, 48.0], [7.0, 2.0, 30.0, 24.0, 1.0, 48.0]],
        [[3.0, 5.0, 20.0, 16.0, 1.0, 48.0], [7.0, 2.0, 30.0, 24.0, 1.0, 48.0]],
    ]
)


def batch_norm(x: Tensor, p: Weights, name: str) -> Tensor:
    """Over images and tokens; (B, T, E)."""
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.sum(0) / len(rows)
    variance = (rows - mean).square().sum(0) / len(rows)
    return (x - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def blocks(x: Tensor, p: Weights, depth: int, heads: int = 3) -> Tensor:
    """Transformer blocks with BatchNorm, an image and a head at a time; (B, T, E)."""
    size = x.shape[-1] // heads
    for number in range(depth):
        q = below(p, f"{number}.")
        images = []
        for image in linear(batch_norm(x, q, "norm1"), q, "attn.qkv"):
            query, key, value = image.split(x.shape[-1], dim=-1)
            outs = []
            for i in range(heads):
                s = slice(i * size, (i + 1) * size)
                weights = (query[:, s] @ key[:, s].T / math.sqrt(size)).softmax(-1)
                outs.append(weights @ value[:, s])
            images.append(linear(torch.cat(outs, -1), q, "attn.proj"))
        x = x + torch.stack(images)
        h = linear(batch_norm(x, q, "norm2"), q, "mlp.fc1")
        x = x + linear(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), q, "mlp.fc2")
    return x


def features_of(box: Tensor, n: int, width: int, grid: int) -> Tensor:
    """What token n of the second view knows of its place, (2 * width,)."""
    (top1, left1, h1, w1, f1, total), (top2, left2, h2, w2, f2, _) = box.tolist()
    n_y, n_x = divmod(n, grid)
    y = h2 / h1 * (n_y + 0.5) + grid * (top2 - top1) / h1 - 0.5
    if f1 == f2:
        x = w2 / w1 * (n_x + 0.5) + grid * (left2 - left1) / w1 - 0.5
    else:
        x = -w2 / w1 * (n_x + 0.5) + grid * (total - left1 - left2) / w1 - 0.5
    values = []
    for z in (y, x, 10 * math.log(h2 / h1), 10 * math.log(w2 / w1)):
        angles = [z * 10000 ** (-k / (width / 4)) for k in range(width // 4)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def sim_loss(
    p: Weights, images: Tensor, second: Tensor, relative: Tensor, mask: Mask, recipe: SimRecipe
) -> Tensor:
    encoder, teacher = below(p, "encoder."), below(p, "teacher.encoder.")
    visible, whole = [], []
    for image, other, ids in zip(images, second, mask.ids_keep.tolist(), strict=True):
        visible.append(encode(encoder, image, ids))
        whole.append(encode(teacher, other, list(range(PATCHES))))
    x = blocks(linear(torch.stack(visible), p, "embed"), below(p, "projector."), 1)
    rows = []
    for i, ids in enumerate(mask.ids_keep.tolist()):
        known = [x[i, 1 + n] + p["pos_embed"][0, 1 + patch] for n, patch in enumerate(ids)]
        asked = [p["mask_token"][0, 0] + linear(relative[i, n], p, "relative") for n in range(9)]
        rows.append(torch.stack([x[i, 0], *known, *asked]))
    y = linear(blocks(torch.stack(rows), below(p, "predictor."), 2), p, "pred")[:, -PATCHES:]
    t = linear(torch.stack(whole), below(p, "teacher."), "embed")
    t = blocks(t, below(p, "teacher.projector."), 1)[:, 1:]
    t = t - t.mean(-1, keepdim=True)
    t = (t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt()).detach()
    pred, target = y.reshape(-1, WIDTH), t.reshape(-1, WIDTH)
    positive = (pred - target).square().sum(1).mean()
    negative = (pred @ target.T).square().mean(1).mean()  # every token against every target
    return (positive + recipe.negative_weight * negative) / WIDTH


def test_sim_equals_its_equations_and_so_does_its_teacher(parity: Parity) -> None:
    recipe = SimRecipe(**COMMON, negative_weight=0.3, teacher_momentum=0.9)
    method = randomised(SiameseImageModel(recipe, MEAN, STD))
    images, mask = inputs()
    second = torch.randn(images.shape, generator=torch.Generator().manual_seed(9)).double()
    relative = relative_positions(BOXES, WIDTH, 3).double()
    step = method.step(images, second, relative, mask)
    theirs = sim_loss(weights_of(method), images, second, relative, mask, recipe)
    compare_gradients("SIM", method, step.loss, theirs, parity)
    method.set_run_length(RunLength(5, 10))
    before = {n: q.clone() for n, q in method.teacher.named_parameters()}
    method.after_step(4)
    momentum = 1 - 0.1 * (1 + math.cos(math.pi * 4 / 10)) / 2
    for name, old in before.items():
        if not name.endswith("pos_embed"):
            follows = momentum * old + (1 - momentum) * method.get_parameter(name)
            after = method.teacher.get_parameter(name)
            parity("SIM, teacher after one step", after, follows.detach(), 1e-12)


def test_what_is_not_trained_has_no_gradient() -> None:
    method = SiameseImageModel(SimRecipe(**COMMON), MEAN, STD)
    frozen = {n.split(".")[0] for n, q in method.named_parameters() if not q.requires_grad}
    assert frozen == {"encoder", "teacher"}
    names = {n for n, q in method.encoder.named_parameters() if not q.requires_grad}
    assert names == {
        "pos_embed", "norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias",
    }  # fmt: skip


def test_relative_positions_are_those_of_each_token(parity: Parity) -> None:
    ours = relative_positions(BOXES, WIDTH, 3)
    theirs = torch.stack(
        [torch.stack([features_of(box, n, WIDTH, 3) for n in range(9)]) for box in BOXES]
    )
    parity("SIM, relative positions (float32)", ours.double(), theirs, 1e-6)


def test_the_same_crop_has_the_positions_of_the_grid() -> None:
    box = torch.tensor([[[4.0, 6.0, 24.0, 24.0, 1.0, 40.0]] * 2])
    own = relative_positions(box, 16, 5)[0]
    row, column, sizes = own[:, :8], own[:, 8:16], own[:, 16:]
    grid = sincos_positions(16, 5)[0, 1:]  # column first
    torch.testing.assert_close(torch.cat([column, row], 1), grid, atol=1e-5, rtol=0)
    assert torch.equal(sizes, torch.tensor([0.0] * 4 + [1.0] * 4).repeat(25, 2))


def test_a_pixel_of_the_second_view_is_found_where_the_first_view_has_it() -> None:
    """Follow a patch's centre through the image, mirrored or not, in pixels."""
    for box in BOXES:
        (top1, left1, h1, w1, f1, total), (top2, left2, h2, w2, f2, _) = box.tolist()
        for n_y, n_x in ((0, 0), (1, 2), (2, 1)):
            across = left2 + (n_x + 0.5) / 3 * w2
            across = total - across if f1 != f2 else across
            x = (across - left1) / w1 * 3 - 0.5
            y = (top2 + (n_y + 0.5) / 3 * h2 - top1) / h1 * 3 - 0.5
            features = relative_positions(box[None], WIDTH, 3)[0, 3 * n_y + n_x]
            assert features[0] == pytest.approx(math.sin(y), abs=1e-5)
            assert features[6] == pytest.approx(math.sin(x), abs=1e-5)


def test_unigrad_of_perfect_predictions_is_what_drives_apart() -> None:
    t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    correlation = token_correlation(t)
    assert unigrad_loss(t, t, correlation, 0.0) == 0
    rows = t.reshape(-1, 4)
    expected = 0.5 * (rows @ rows.T).square().mean() / 4
    torch.testing.assert_close(unigrad_loss(t, t, correlation, 0.5), expected)


def test_momentum_rises_from_its_start_to_one() -> None:
    values = [momentum_at(step, 100, 0.995) for step in range(101)]
    assert values[0] == pytest.approx(0.995)
    assert values[-1] == 1
    assert values == sorted(values)


def test_masks_of_blocks_remove_exactly_what_they_should() -> None:
    mask = BlockMask(grid_size=14, ratios=((118 / 196, 118 / 196),), smallest=16, exact=True)
    seen, edges = torch.zeros(196), []
    for seed in range(200):
        with seeded_globals(seed):
            removed = block_mask(mask)
        assert removed.sum() == 118
        seen += removed
        grid = removed.reshape(14, 14)
        edges.append(float((grid[:, 1:] != grid[:, :-1]).float().mean()))
    assert (seen > 0).all()
    corners, middle = seen.reshape(14, 14)[::13, ::13], seen.reshape(14, 14)[5:9, 5:9]
    assert corners.max() < middle.min()  # as few blocks reach into a corner
    # single patches at random would differ from their neighbour in 2 * .6 * .4 of the cases
    assert sum(edges) / len(edges) < 0.3


def test_a_mask_with_two_ranges_removes_nothing_half_the_time() -> None:
    mask = BlockMask(grid_size=14, ratios=((0.0, 0.0), (0.1, 0.5)), smallest=16, exact=False)
    counts = []
    for seed in range(200):
        with seeded_globals(seed):
            counts.append(int(block_mask(mask).sum()))
    empty = sum(count == 0 for count in counts)
    assert 75 < empty < 125
    assert max(counts) <= 98
    again = mask_of(torch.tensor([[True, False, True, False]]), 2)
    assert (again.ids_keep.tolist(), again.ids_removed.tolist()) == ([[1, 3]], [[0, 2]])


def test_forward_uses_boxes_and_masks_of_the_batch() -> None:
    torch.manual_seed(0)
    method = SiameseImageModel(SimRecipe(**COMMON), MEAN, STD)
    generator = torch.Generator().manual_seed(1)
    views = tuple(
        torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    )
    removed = torch.zeros(3, 1, 9, dtype=torch.bool)
    removed[:, :, :5] = True
    batch = Views(views, torch.arange(3), boxes=BOXES, masks=removed)
    moved = Views(views, torch.arange(3), boxes=BOXES + 1, masks=removed)
    loss = method(batch, Draw(0, 0)).loss
    assert loss.isfinite()
    assert not torch.equal(loss, method(moved, Draw(0, 0)).loss)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 0.02}, "removes 0 of 9 patches"),
        ({"mask_ratio": 0.98}, "removes 9 of 9 patches"),
        ({"teacher_momentum": -0.1}, r"teacher_momentum must be in \[0, 1\]"),
        ({"predictor_embed_dim": 10, "predictor_num_heads": 2}, "multiple of 4"),
        ({"predictor_embed_dim": -64}, "predictor_embed_dim must be at least 1"),
        ({"predictor_num_heads": 0}, "predictor_num_heads must be at least 1"),
        ({"batch_size": 1}, "compared with others"),
        ({"crop_scale_min": 0.0}, "crop_scale_min"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimRecipe(**{**COMMON, **fields})
