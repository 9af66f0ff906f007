"""The supervised baseline: mixed pairs, their classes, and the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crops import before_norm
from equations import (
    MEAN,
    STD,
    TINY,
    Parity,
    below,
    compare_gradients,
    linear,
    norm,
    randomised,
    weights_of,
)
from timm.models.vision_transformer import VisionTransformer

from asl_core.data.prepare import prepare
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.methods.supervised import SupervisedEncoder
from asl_core.pretrain import pretrain
from asl_core.protocol import Draw, Views
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.supervised import SupervisedRecipe

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32",
}  # fmt: skip


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_loss_is_a_cross_entropy_with_smoothed_classes(
    mixed: bool, pooling: Any, parity: Parity
) -> None:
    recipe = SupervisedRecipe(**COMMON, pooling=pooling)
    method = randomised(SupervisedEncoder(recipe, MEAN, STD, num_classes=5))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 12, 12, generator=generator).double()
    keep = torch.rand(2, 2, 4, generator=generator).double() * 2
    classes = torch.tensor([0, 3, 3, 1])
    shares = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    shares[torch.arange(4), classes] += 0.9
    targets = shares if mixed else classes
    p, losses = weights_of(method), []
    for i, image in enumerate(images):
        tokens = before_norm(below(p, "encoder."), image, keep[:, :, i])
        pooled = tokens[0] if pooling == "cls" else tokens[1:].mean(0)
        logits = linear(norm(pooled, p, "encoder.norm"), p, "head")
        losses.append(-(shares[i] * torch.log(torch.exp(logits) / torch.exp(logits).sum())).sum())
    ours = method.step(images, targets, keep).loss
    compare_gradients("supervised", method, ours, torch.stack(losses).mean(), parity)


def test_weight_decay_spares_what_timm_spares() -> None:
    recipe = SupervisedRecipe(**COMMON)
    method = SupervisedEncoder(recipe, MEAN, STD, num_classes=5)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in method.parameter_groups()
        for parameter in group["params"]
    }
    assert decay.keys() == set(names.values())
    vit = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    spared = {f"encoder.{name}" for name in vit.no_weight_decay()} & decay.keys()
    assert spared == {"encoder.cls_token", "encoder.pos_embed"}
    for name, parameter in method.named_parameters():
        expected = 0 if parameter.ndim <= 1 or name in spared else recipe.weight_decay
        assert decay[name] == expected, name


def batch(count: int) -> Views:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 5
    return Views((images,), torch.arange(100, 100 + count), labels=labels)


def test_neighbours_are_mixed_with_one_weight_for_all() -> None:
    recipe = SupervisedRecipe(**COMMON, cutmix=0.0, label_smoothing=0.0, drop_path=0.0)
    method = SupervisedEncoder(recipe, MEAN, STD, num_classes=5)
    images, targets, _ = method.prepared(batch(4), Draw(2, 3))
    with seeded_globals(derive_seed(2, "mixup", 3)):
        np.random.rand()  # whether to mix at all
        weight = float(np.random.beta(0.8, 0.8))
    plain, _, _ = method.eval().prepared(batch(4), Draw(2, 3))
    order, partners = [0, 2, 3, 1], [1, 3, 2, 0]
    expected = weight * plain[order] + (1 - weight) * plain[partners]
    torch.testing.assert_close(images, expected)
    one_hot = torch.eye(5)[batch(4).labels]
    assert one_hot is not None
    torch.testing.assert_close(targets, weight * one_hot[order] + (1 - weight) * one_hot[partners])


def test_half_a_batch_is_mixed_as_it_is_in_the_whole() -> None:
    method = SupervisedEncoder(SupervisedRecipe(**COMMON), MEAN, STD, num_classes=5)
    whole, parts = batch(8), []
    for first in (0, 4):
        part = slice(first, first + 4)
        assert whole.labels is not None
        views = Views((whole.views[0][part],), whole.indices[part], labels=whole.labels[part])
        parts.append(method(views, Draw(0, 5)).loss)
    torch.testing.assert_close(method(whole, Draw(0, 5)).loss, sum(parts) / 2)


def test_a_dataset_without_classes_and_torn_pairs_are_refused(tmp_path: Path, icons: Path) -> None:
    data = tmp_path / "scenes"
    prepare(Scenes(image_size=32, train=8, test=4), data, data, name="scenes")
    with Journal.open(tmp_path) as journal:
        context = RunContext(tmp_path / "ckpt", journal, Resources(device="cpu"))
        with pytest.raises(InputError, match="supervised wants classes, and dataset scenes"):
            pretrain(SupervisedRecipe(**COMMON), data, context)
        odd = RunContext(tmp_path / "ckpt", journal, Resources(device="cpu", micro_batch_size=3))
        with pytest.raises(InputError, match="micro_batch_size, 3, must be a multiple of 2"):
            pretrain(SupervisedRecipe(**COMMON), icons, odd)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 3}, "batch_size must be even"),
        ({"mixup": -1.0}, "mixup must be at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"random_erasing": 2.0}, "random_erasing must be in"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupervisedRecipe(**{**COMMON, **fields})
