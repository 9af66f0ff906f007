"""Linear probe and fine-tuning on the embedded icons."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asl_core.data.loaders import TrainingLoader
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, LayerNorm, load_encoder, save_encoder
from asl_core.protocol import Draw
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection, FineTune, LinearProbe, Segmentation
from asl_core.transfer.classification import Predictions
from asl_core.transfer.feature_loader import FeatureLoader
from asl_core.transfer.features import FeatureBatch, extract_features
from asl_core.transfer.finetune import Classifier, finetune
from asl_core.transfer.linear_heads import ProbeHead, ProbeHeads
from asl_core.transfer.linprobe import ProbeResult, linprobe
from asl_core.transfer.probe_step import Progress
from asl_core.transfer.probe_training import ImageProbe

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
CPU = Resources(device="cpu")


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    folder.mkdir()
    encoder = Encoder(TINY)
    nn.init.normal_(encoder.norm.weight)  # a trained norm is not 1 and 0
    nn.init.normal_(encoder.norm.bias)
    save_encoder(folder, encoder.state_dict(), TINY)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    with Journal.open(tmp_path / "journal") as journal:
        yield RunContext(tmp_path / "ckpt", journal, CPU)


def probe_recipe(**changes: object) -> LinearProbe:
    recipe = LinearProbe(
        dataset="icons", epochs=30, batch_size=16, lr=3.0, warmup_epochs=1, augment=False,
        precision="fp32",
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


def test_accuracy_and_confusion_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    predictions = Predictions(torch.arange(3), torch.tensor([0, 1, 1]), logits)
    assert predictions.accuracy(1) == pytest.approx(200 / 3)
    assert predictions.accuracy(2) == pytest.approx(100.0)
    assert predictions.accuracy(5) == 100.0
    assert predictions.confusion().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_worst_predictions_are_the_wrong_ones_by_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0], [1.0, 0.0], [0.0, 3.0]])
    predictions = Predictions(torch.arange(5), torch.tensor([0, 0, 0, 1, 1]), logits)
    assert predictions.worst(10).tolist() == [2, 1, 3]  # 1 and 3 lose alike
    assert predictions.worst(2).tolist() == [2, 1]


def test_probe_head_normalises_with_batch_statistics_only() -> None:
    head = ProbeHead(4, 3, seed=0)
    assert [n for n, _ in head.named_parameters()] == ["linears.0.weight", "linears.0.bias"]
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 5 + 2
    normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(features), [head.linears[0](normed)])


def test_probe_fits_its_training_features(
    icons: Path, encoder_folder: Path, context: RunContext
) -> None:
    recipe = probe_recipe(optimizer="adamw", lr=0.05, epochs=60)
    heads, result = linprobe(recipe, encoder_folder, icons, context)
    train = PackedDataset(icons, "train")
    features = extract_features(
        load_encoder(encoder_folder), train, poolings=("cls",), precision="fp32", resources=CPU
    )
    with torch.no_grad():
        fitted = heads(features.features)["cls"].argmax(1)
    assert (fitted == features.labels).float().mean() > 0.5
    assert len(result.of("cls").labels) == len(PackedDataset(icons, "test"))
    assert 0 <= result.of("cls").accuracy() <= 100


def test_cached_features_equal_the_encoder_on_each_image(icons: Path, encoder_folder: Path) -> None:
    test = PackedDataset(icons, "test")
    encoder = load_encoder(encoder_folder)
    features = extract_features(
        encoder, test, poolings=("mean", "cls"), precision="fp32", resources=CPU, batch_size=7
    )
    mean = torch.tensor(test.manifest.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(test.manifest.std).reshape(1, 3, 1, 1)
    images = (test[3].image[None].float() / 255 - mean) / std
    with torch.no_grad():
        tokens = encoder.eval().layers(images)[-1][0]
        mean, cls = tokens[1:].mean(0), encoder.norm(tokens[0])
    # the mean has a norm of its own, not that of the encoder
    normed = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-6).sqrt()
    expected = torch.stack([normed, cls])
    torch.testing.assert_close(features.features[3], expected, atol=1e-5, rtol=1e-4)
    assert features.indices.tolist() == list(range(len(test)))


def test_probe_with_augmentation_leaves_the_encoder_alone(
    icons: Path, encoder_folder: Path, context: RunContext
) -> None:
    recipe = probe_recipe(augment=True, epochs=1)
    linprobe(recipe, encoder_folder, icons, context)
    encoder = load_encoder(encoder_folder)
    heads = ProbeHeads(recipe, 16, 10)
    probe = ImageProbe(encoder, heads, Progress(1, 10), (0.5,) * 3, (0.5,) * 3)
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {
        "heads.cls.linears.0.weight",
        "heads.cls.linears.0.bias",
    }


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_two_poolings_are_probed_together_as_each_alone(
    optimizer: str, augment: bool, icons: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    def probe(name: str, **fields: object) -> tuple[ProbeHeads, ProbeResult]:
        recipe = probe_recipe(optimizer=optimizer, augment=augment, epochs=2, lr=0.1, **fields)
        with Journal.open(tmp_path / name / "journal") as journal:
            context = RunContext(tmp_path / name / "ckpt", journal, CPU)
            return linprobe(recipe, encoder_folder, icons, context)

    heads, together = probe("both", pooling="mean", both_poolings=True)
    assert list(together.by_pooling) == ["mean", "cls"]
    assert not torch.equal(together.of("mean").logits, together.of("cls").logits)
    for pooling in together.by_pooling:
        alone_heads, alone = probe(pooling, pooling=pooling)
        assert list(alone.by_pooling) == [pooling]
        torch.testing.assert_close(
            heads[pooling].state_dict(), alone_heads[pooling].state_dict(), rtol=0, atol=0
        )
        assert torch.equal(together.of(pooling).logits, alone.of(pooling).logits)


def test_a_norm_that_two_probes_would_share_is_refused() -> None:
    with pytest.raises(ValueError, match="common norm; with both_poolings set"):
        probe_recipe(both_poolings=True, clip_grad=1.0)


def finetune_recipe(**changes: object) -> FineTune:
    recipe = FineTune(
        dataset="icons", epochs=2, batch_size=8, lr=1e-3, warmup_epochs=1, precision="fp32"
    )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


def test_classifier_pools_patches_through_a_fresh_norm(encoder_folder: Path) -> None:
    encoder = load_encoder(encoder_folder)
    final_norm = encoder.norm
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder.layers(images)[-1]
    model = Classifier(encoder, 5, finetune_recipe(), (0.5,) * 3, (0.5,) * 3).eval()
    assert isinstance(final_norm, LayerNorm)
    assert isinstance(encoder.norm, nn.Identity)
    with torch.no_grad():
        expected = model.head(model.fc_norm(tokens[:, 1:].mean(1)))
        torch.testing.assert_close(model.logits(images), expected)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.0, "cutmix": 0.0}])
def test_finetuning_lowers_the_loss_of_its_recipe(
    mixing: dict[str, float],
    icons: Path,
    encoder_folder: Path,
    context: RunContext,
    tmp_path: Path,
) -> None:
    recipe = finetune_recipe(rand_augment=None, random_erasing=0.0, epochs=4, **mixing)
    model, predictions = finetune(recipe, encoder_folder, icons, context)
    assert predictions.logits.shape == (len(PackedDataset(icons, "test")), 10)
    assert model.encoder.pos_embed.requires_grad
    from pipeline.jobs.journal import effective_points

    losses = [v for _, v, _ in effective_points(tmp_path / "journal")["train/loss"]]
    assert losses[-1] < losses[0]


def test_mixed_batch_is_a_function_of_the_step(encoder_folder: Path) -> None:
    from asl_core.data.views import LabelledBatch
    from asl_core.randomness import seed_globals

    model = Classifier(load_encoder(encoder_folder), 5, finetune_recipe(), (0.5,) * 3, (0.5,) * 3)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    batch = LabelledBatch(images, torch.tensor([0, 1, 2, 3]), torch.arange(4))

    def loss(seed: int) -> float:
        seed_globals(seed)
        return model(batch, Draw(0, 0)).loss.item()

    assert loss(1) == loss(1)


def test_odd_batch_with_mixup_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        finetune_recipe(batch_size=7)


def test_pairs_are_not_torn_by_a_micro_batch(
    icons: Path, encoder_folder: Path, context: RunContext
) -> None:
    odd = dataclasses.replace(context, resources=Resources(device="cpu", micro_batch_size=5))
    with pytest.raises(InputError, match="fine-tuning takes images in groups of 2: micro_batch"):
        finetune(finetune_recipe(), encoder_folder, icons, odd)


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        (LinearProbe, {"batch_size": 1}, "batch_size must be at least 2"),
        (LinearProbe, {"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
        (LinearProbe, {"momentum": -0.1}, "momentum must be in"),
        (LinearProbe, {"lr": None, "blr": 0.0}, "blr must be positive"),
        (FineTune, {"betas": (0.9, 1.5)}, r"betas must be in \[0, 1\), got \[0.9, 1.5\]"),
        (FineTune, {"drop_path": 1.0}, "drop_path must be in"),
        (FineTune, {"label_smoothing": 2.0}, "label_smoothing must be in"),
        (FineTune, {"cutmix": -1.0}, "cutmix must be at least 0"),
        (FineTune, {"random_erasing": 1.5}, "random_erasing must be in"),
        (Detection, {"drop_path": -0.5}, "drop_path must be in"),
        (Detection, {"anchor_sizes": (32, 32, 64, 128, 256)}, "anchor_sizes must grow"),
        (Segmentation, {"batch_size": 1}, "batch_size must be at least 2"),
        (Segmentation, {"slide_stride": 0}, "slide_stride must be at least 1"),
        (Segmentation, {"slide_stride": 513}, "slide_stride 513 exceeds crop_size 512"),
        (Segmentation, {"dropout": 1.5}, "dropout must be in"),
        (Segmentation, {"scale_range": (2.0, 0.5)}, "scale_range must be"),
    ],
)  # fmt: skip
def test_recipes_refuse_values_that_make_no_sense(
    recipe: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(dataset="x", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"micro_batch_size": -1}, "micro_batch_size must be at least 1"),
        ({"log_every_steps": 0}, "log_every_steps must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_resources_refuse_values_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(**fields)


def test_probe_of_a_missing_encoder_says_so(
    icons: Path, context: RunContext, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no encoder in .*train it"):
        linprobe(probe_recipe(), tmp_path / "absent", icons, context)


@pytest.mark.parametrize(("batch", "micro"), [(16, 1), (16, 5)])
def test_probe_refuses_a_forward_pass_of_one_image(
    icons: Path, encoder_folder: Path, context: RunContext, batch: int, micro: int | None
) -> None:
    context = dataclasses.replace(
        context, resources=Resources(device="cpu", micro_batch_size=micro)
    )
    with pytest.raises(InputError, match=r"linear probe needs 2 images .*processes 1"):
        linprobe(probe_recipe(batch_size=batch), encoder_folder, icons, context)


def test_features_come_in_the_order_in_which_images_would() -> None:
    numbers = torch.arange(22)
    rows = FeatureBatch(numbers[:, None] * 2.0, numbers % 3, numbers)
    split = {"seed": 4, "batch_size": 8, "epochs": 3, "rank": 1, "world_size": 2}
    features = FeatureLoader(rows, StepPlan(range(22), micro_batch_size=3, **split))
    images = TrainingLoader(range(22), int, torch.tensor, micro_batch_size=3, **split)
    assert features.total_steps == images.total_steps == 6
    for one, other in zip(features.iterate(1), images.iterate(1), strict=True):
        assert [part.indices.tolist() for part in one] == [part.tolist() for part in other]
        assert all(torch.equal(part.features[:, 0], part.indices * 2.0) for part in one)
