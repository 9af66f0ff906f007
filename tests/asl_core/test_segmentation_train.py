import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.evaluate import predict
from asl_core.transfer.segmentation.train import (
    check_forward_passes,
    semantic_dataset,
    train_segmenter,
)
from pipeline.jobs.journal import read_records
from pipeline.stages import segment
from pipeline.stages.request import StageRequest, StoredRun

VIT = Vit(image_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)
RECIPE = Segmentation(
    dataset="scenes", epochs=1, batch_size=4, lr=1e-3, warmup_epochs=0, crop_size=24,
    slide_stride=16, channels=8, auxiliary_channels=4, precision="fp32",
)  # fmt: skip
RESOURCES = Resources(device="cpu", threads=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=9, test=5), folder, folder, name="scenes")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    with Journal.open(tmp_path / "journal") as journal:
        yield RunContext(tmp_path / "ckpt", journal, RESOURCES)


def test_prediction_has_the_size_of_the_original_map(
    scenes: Path, encoder: Path, context: RunContext
) -> None:
    model = train_segmenter(RECIPE, encoder, scenes, context)
    test = PackedDataset(scenes, "test")
    predictions = list(predict(model, test, RECIPE, RESOURCES, test.annotated_indices))
    assert sorted(each.index for each in predictions) == [0, 1, 2, 3, 4]
    for each in predictions:
        assert each.truth.shape == each.predicted.shape == (32, 32)
        assert torch.equal(each.truth, test[each.index].semantic)


def test_training_is_a_function_of_the_seed(
    scenes: Path, encoder: Path, context: RunContext
) -> None:
    first, again = (
        train_segmenter(RECIPE, encoder, scenes, context).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    trained = load_file(encoder / "encoder.safetensors")["pos_embed"][:, 0]
    assert not torch.equal(first["backbone.pos_embed"][:, 0], trained)


def test_a_dataset_without_maps_is_refused(icons: Path) -> None:
    with pytest.raises(InputError, match="no semantic maps"):
        semantic_dataset(icons, "train")


def test_a_crop_that_the_patches_do_not_divide_is_refused(
    scenes: Path, encoder: Path, context: RunContext
) -> None:
    recipe = Segmentation(
        dataset="scenes", batch_size=4, crop_size=30, slide_stride=20, warmup_epochs=0
    )
    with pytest.raises(InputError, match="cannot be resized: image_size 30"):
        train_segmenter(recipe, encoder, scenes, context)


@pytest.mark.parametrize(("batch", "micro"), [(4, 1), (5, 2)])
def test_a_forward_pass_of_one_image_is_refused(batch: int, micro: int | None) -> None:
    recipe = Segmentation(dataset="scenes", batch_size=batch)
    with pytest.raises(InputError, match="2 images or more"):
        check_forward_passes(recipe, micro, across_processes=False)
    check_forward_passes(recipe, micro, across_processes=True)


def test_stage_writes_weights_scores_and_pictures(
    scenes: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Journal.open(tmp_path / "journal") as journal:
        inputs = {"dataset": scenes, "encoder": encoder}
        outputs = {"details": out}
        request = StageRequest(
            "segment", "mae", RECIPE, inputs, tmp_path, outputs, journal, RESOURCES
        )
        metrics = segment.run(request)
    assert metrics.keys() == {"miou", "macc", "aacc"}
    assert all(0 <= value <= 100 for value in metrics.values())
    artifacts = [r.body["path"] for r in read_records(tmp_path / "journal") if r.kind == "artifact"]
    assert "pictures/segmentations.png" in artifacts
    assert all((out / path).is_file() for path in artifacts)
    assert "head.classifier.1.weight" in load_file(out / "segmenter.safetensors")
    by_class = json.loads((out / "classes.json").read_text())
    assert list(by_class)[:2] == ["background", "0"]
    assert segment.reevaluate(StoredRun(RECIPE, out, inputs, RESOURCES)) == metrics
