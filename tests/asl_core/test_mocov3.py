"""MoCo v3 against its equations: contrast, weight decay, the teacher's pace, first weights."""

import copy
import math
from dataclasses import replace
from pathlib import Path
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
    norm,
    randomised,
    weights_of,
)
from torch import Tensor

from asl_core.engine.optimizer import build_optimizer, build_schedules
from asl_core.methods.mocov3 import MomentumContrast
from asl_core.modules.encoder import load_encoder, save_encoder
from asl_core.protocol import Draw, RunLength, Views
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.models import Vit

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 1, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32", "projector_hidden": 10, "projector_dim": 6,
}  # fmt: skip


def two_views(seed: int = 9) -> Tensor:
    """Three images in two views, (2, 3, 3, 12, 12), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 3, 12, 12, generator=generator, dtype=torch.float64)


def mlp(p: Weights, x: Tensor, layers: int) -> Tensor:
    """Linear, BatchNorm, ReLU; after the last Linear a BatchNorm alone, without gain and bias."""
    for layer in range(layers):
        x = x @ p[f"{3 * layer}.weight"].T
        centred = x - x.sum(0) / len(x)
        x = centred / (centred.square().sum(0) / len(x) + 1e-5).sqrt()
        if layer < layers - 1:
            x = x * p[f"{3 * layer + 1}.weight"] + p[f"{3 * layer + 1}.bias"]
            x = torch.where(x > 0, x, 0.0)
    return x


def projected(p: Weights, images: Tensor) -> Tensor:
    """[cls] of an encoder after its final norm, behind three layers: (B, 3, H, W) to (B, C)."""
    encoder = below(p, "encoder.")
    cls = [norm(encode(encoder, image, [*range(PATCHES)]), encoder, "norm")[0] for image in images]
    return mlp(below(p, "projector."), torch.stack(cls), 3)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    losses = []
    for i, query in enumerate(queries):
        cosines = [query @ key / (query.norm() * key.norm()) for key in keys]
        shares = torch.stack([torch.exp(cosine / temperature) for cosine in cosines])
        losses.append(-2 * temperature * torch.log(shares[i] / shares.sum()))
    return torch.stack(losses).mean()


def moco_loss(p: Weights, views: Tensor, temperature: float = 0.2) -> Tensor:
    first, second = views
    q1, q2 = (mlp(below(p, "predictor."), projected(p, view), 2) for view in (first, second))
    k1, k2 = (projected(below(p, "teacher."), view).detach() for view in (first, second))
    return contrast(q1, k2, temperature) + contrast(q2, k1, temperature)


def built(**fields: Any) -> Any:
    """With a teacher that is not its student."""
    torch.manual_seed(0)
    return randomised(MomentumContrast(MocoV3Recipe(**{**COMMON, **fields}), MEAN, STD))


@pytest.mark.parametrize("train_patch_embed", [False, True])
def test_moco_equals_its_equations_and_so_does_a_step_of_student_and_teacher(
    train_patch_embed: bool, parity: Parity
) -> None:
    method = built(temperature=0.3, train_patch_embed=train_patch_embed)
    recipe, views = method.recipe, two_views()
    step = method.step(*views)
    theirs = moco_loss(weights_of(method), views, 0.3)
    compare_gradients("MoCo v3", method, step.loss, theirs, parity)

    trained = [(n, q) for n, q in method.named_parameters() if q.requires_grad]
    again = moco_loss(weights_of(method), views, 0.3)
    gradients = torch.autograd.grad(again, [q for _, q in trained])
    optimizer = build_optimizer(method.parameter_groups(), recipe)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    # biases, norms, [cls]: everything decays
    expected = {
        name: q.detach() * (1 - 3e-3 * 0.1) - 3e-3 * g / (g.abs() + 1e-8)
        for (name, q), g in zip(trained, gradients, strict=True)
    }
    teacher = {n: q.clone() for n, q in method.teacher.named_parameters()}
    step.loss.backward()
    optimizer.step()
    method.set_run_length(RunLength(5, 10))
    method.after_step(4)
    for name, q in trained:
        # a bias in front of a softmax over keys has no gradient but rounding
        parity("MoCo v3, weights after one step of AdamW", q.detach(), expected[name], 1e-7)
    momentum = 1 - 0.01 * (1 + math.cos(math.pi * 4 / 10)) / 2
    for name, before in teacher.items():
        follows = momentum * before + (1 - momentum) * method.get_parameter(name)
        after = method.teacher.get_parameter(name)
        parity("MoCo v3, teacher after one step", after, follows.detach(), 1e-12)


def test_keys_are_of_a_teacher_that_has_followed_in_the_same_forward_pass(parity: Parity) -> None:
    """The original's order: queries, then the teacher follows with this step's momentum, then keys.

    Epochs of two steps; rate and momentum at the fraction of an epoch in which a step begins.
    """
    epochs, steps = 3, 6
    method = built(epochs=epochs, warmup_epochs=1, lr=0.05, teacher_momentum=0.7)
    for name in ("encoder", "projector"):
        method.teacher[name].load_state_dict(getattr(method, name).state_dict())
    other = copy.deepcopy(method)
    method.set_run_length(RunLength(2, steps))
    optimizer = build_optimizer(method.parameter_groups(), method.recipe)
    (schedule,) = build_schedules(optimizer, method.recipe, 2, steps)
    students = [q for q in other.parameters() if q.requires_grad]
    official = torch.optim.AdamW(students, weight_decay=0.1)
    for step in range(steps):
        views, epoch = two_views(step), step / 2
        schedule.step_update(step)
        ours = method.step(*views).loss
        ours.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step + 1)

        m = 1 - 0.3 * (1 + math.cos(math.pi * epoch / epochs)) / 2
        rate = epoch if epoch < 1 else (1 + math.cos(math.pi * (epoch - 1) / (epochs - 1))) / 2
        with torch.no_grad():
            for name, q in other.teacher.named_parameters():
                q.copy_(m * q + (1 - m) * other.get_parameter(name))
        for group in official.param_groups:
            group["lr"] = 0.05 * rate
        theirs = moco_loss(weights_of(other), views)
        theirs.backward()
        official.step()
        official.zero_grad()
        parity("MoCo v3, losses of six steps", ours.detach(), theirs.detach(), 1e-8)
    last = {n: q.clone() for n, q in method.teacher.named_parameters()}
    method.after_step(steps)  # at a momentum of 1
    assert all(torch.equal(q, last[n]) for n, q in method.teacher.named_parameters())


def test_one_group_has_all_that_is_trained_and_the_teacher_is_not() -> None:
    method = MomentumContrast(MocoV3Recipe(**COMMON), MEAN, STD)
    (group,) = method.parameter_groups()
    assert group["weight_decay"] == 0.1
    grouped = {id(q) for q in group["params"]}
    names = {n for n, q in method.named_parameters() if id(q) in grouped}
    rest = {n for n, _ in method.named_parameters()} - names
    assert {n for n in rest if not n.startswith("teacher.")} == {
        "encoder.pos_embed", "encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias",
    }  # fmt: skip
    assert {"encoder.cls_token", "encoder.norm.bias", "projector.1.bias"} <= names
    assert not [n for n in names if n.startswith(("projector.7", "predictor.4"))]


def test_it_begins_with_the_published_weights() -> None:
    vit = Vit(image_size=32, patch_size=4, embed_dim=96, depth=2, num_heads=4)
    torch.manual_seed(0)
    method = MomentumContrast(MocoV3Recipe(**{**COMMON, "model": vit}), MEAN, STD)
    state = method.encoder_state()
    xavier = {
        "patch_embed.proj.weight": 48 + 96, "blocks.1.attn.proj.weight": 96 + 96,
        "blocks.1.mlp.fc1.weight": 96 + 384, "blocks.1.mlp.fc2.weight": 384 + 96,
    }  # fmt: skip
    matrices = {name: state[name] for name in xavier}
    for letter, matrix in zip("qkv", state["blocks.1.attn.qkv.weight"].split(96), strict=True):
        matrices[letter], xavier[letter] = matrix, 96 + 96
    for name, fans in xavier.items():
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < matrices[name].abs().max() <= bound, name
        assert float(matrices[name].std()) == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    assert all(not q.any() for name, q in state.items() if name.endswith("bias"))
    assert 0 < state["cls_token"].abs().max() < 5e-6
    # projector and predictor are as torch makes Linears
    first = method.projector.state_dict()["0.weight"]
    assert first.abs().max() <= 1 / math.sqrt(96)
    assert float(first.std()) == pytest.approx(1 / math.sqrt(3 * 96), rel=0.05)
    for name in ("encoder", "projector"):
        own, his = getattr(method, name).state_dict(), method.teacher[name].state_dict()
        assert all(torch.equal(q, own[n]) for n, q in his.items())


def test_positions_have_the_row_first_and_transfer_keeps_them(tmp_path: Path) -> None:
    method: Any = MomentumContrast(MocoV3Recipe(**COMMON), MEAN, STD)
    save_encoder(tmp_path, method.encoder_state(), TINY)
    encoder = load_encoder(tmp_path)
    positions = encoder.pos_embed[0]  # (10, 16)
    assert not positions[0].any()
    for row in range(3):
        for column in range(3):
            angles = [[z * 10000 ** (-k / 4) for k in range(4)] for z in (row, column)]
            expected = [f(a) for half in angles for f in (math.sin, math.cos) for a in half]
            found = positions[1 + 3 * row + column].tolist()
            assert found == pytest.approx(expected, abs=1e-6)
    images = two_views()[0].float()
    assert torch.equal(encoder(images), method.encoder(images))
    larger = load_encoder(tmp_path, image_size=24).pos_embed[0, 1:].unflatten(0, (6, 6))
    # along a row of patches the row's half stays what it is, along a column the column's
    torch.testing.assert_close(larger[:, :, :8], larger[:, :1, :8].expand(6, 6, 8))
    torch.testing.assert_close(larger[:, :, 8:], larger[:1, :, 8:].expand(6, 6, 8))


def test_the_student_is_exported() -> None:
    method = built()
    exported = method.encoder_state()
    assert all(torch.equal(q, exported[n]) for n, q in method.encoder.state_dict().items())
    assert not torch.equal(exported["cls_token"], method.teacher["encoder"].cls_token)


def test_the_views_are_those_of_byol_resized_bilinearly() -> None:
    plan = MocoV3Recipe(dataset="none").view_plan()
    for view in plan.views:
        assert (view.size, view.scale, view.interpolation) == (224, (0.08, 1.0), "bilinear")
        assert view.colour is not None
        assert (view.colour.jitter, view.colour.grey) == ((0.4, 0.4, 0.2, 0.1), 0.2)
    first, second = (view.colour for view in plan.views)
    assert first is not None
    assert second is not None
    assert (first.blur, second.blur, first.solarise, second.solarise) == (1.0, 0.1, 0.0, 0.2)
    small = MocoV3Recipe(dataset="none", blur=False).view_plan()
    colours = [view.colour for view in small.views]
    assert colours == [replace(first, blur=0.0), replace(second, blur=0.0)]


def test_forward_compares_both_views_of_the_batch() -> None:
    torch.manual_seed(0)
    method = MomentumContrast(MocoV3Recipe(**COMMON), MEAN, STD)
    generator = torch.Generator().manual_seed(0)
    first, second, other = (
        torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8, generator=generator)
        for _ in range(3)
    )
    indices = torch.arange(4)
    pairs = [(first, second), (second, first), (first, other), (other, second)]
    with torch.no_grad():
        losses = [float(method(Views(pair, indices), Draw(0, 0)).loss) for pair in pairs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len({losses[0], *losses[2:]}) == 3


def test_batch_norm_is_over_one_view_at_a_time() -> None:
    """What the second view is must not reach the first one's queries and keys."""
    method = built()
    (first, second), other = two_views(), two_views(3)[1]
    for outputs in (method.queries, method.keys):
        one, another = (outputs(torch.cat([first, view]))[0] for view in (second, other))
        torch.testing.assert_close(one, another, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"teacher_momentum": 1.5}, r"teacher_momentum must be in \[0, 1\]"),
        ({"projector_hidden": 0}, "projector_hidden must be at least 1"),
        ({"projector_dim": 0}, "projector_dim must be at least 1"),
        ({"crop_scale_min": 0.0}, "crop_scale_min"),
        ({"batch_size": 1}, "compared with others"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MocoV3Recipe(**{**COMMON, **fields})
