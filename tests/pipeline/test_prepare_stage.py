"""The prepare stage: what it writes, returns and records."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchvision.io import decode_image

from asl_core.data.shards import PackedDataset
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.recipes.datasets import ImageFolder, Parquet, Scenes
from asl_core.recipes.optimisation import Resources
from pipeline.jobs.journal import read_records
from pipeline.stages.prepare import run
from pipeline.stages.request import StageRequest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def request_for_scenes(tmp_path: Path) -> Iterator[StageRequest]:
    outputs = {role: tmp_path / "out" / role for role in ("dataset", "details")}
    for folder in outputs.values():
        folder.mkdir(parents=True)
    journal = Journal.open(tmp_path / "journal")
    yield StageRequest(
        stage="prepare",
        key="toy",
        recipe=Scenes(image_size=16, train=5, test=2),
        inputs={"data_root": tmp_path / "data"},
        work=tmp_path / "work",
        outputs=outputs,
        journal=journal,
        resources=Resources(),
    )
    journal.close()


def test_metrics_are_counts(request_for_scenes: StageRequest) -> None:
    metrics = run(request_for_scenes)
    assert metrics.pop("size_mb") > 0
    assert metrics == {
        "train_images": 5, "train_annotated": 5, "train_rejected": 0,
        "test_images": 2, "test_annotated": 2, "test_rejected": 0,
    }  # fmt: skip


def test_the_output_is_a_dataset_of_the_entrys_name(request_for_scenes: StageRequest) -> None:
    run(request_for_scenes)
    dataset = PackedDataset(request_for_scenes.outputs["dataset"], "test")
    assert dataset.manifest.name == "toy"
    assert len(dataset) == 2


def test_digests_of_both_splits_and_a_picture_are_recorded(
    request_for_scenes: StageRequest, tmp_path: Path
) -> None:
    run(request_for_scenes)
    digests = PackedDataset(request_for_scenes.outputs["dataset"], "train").manifest.digests
    text = "".join(path.read_text() for path in sorted((tmp_path / "journal").iterdir()))
    assert all(digest in text for digest in digests.values())
    assert len(read_records(tmp_path / "journal")) >= 4
    preview = decode_image(str(request_for_scenes.out / "pictures/samples.png"))
    assert preview.float().std() > 10


def test_a_missing_folder_is_named_under_the_data_root(request_for_scenes: StageRequest) -> None:
    request = dataclasses.replace(request_for_scenes, recipe=Parquet(path="cifar"))
    with pytest.raises(InputError, match=r"data/cifar does not exist"):
        run(request)


def test_images_that_cannot_be_used_are_listed_in_the_run_s_own_folder(
    request_for_scenes: StageRequest, tmp_path: Path
) -> None:
    for name in ("train/ape/x.jpg", "val/ape/y.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(b"no image")
    request = dataclasses.replace(request_for_scenes, recipe=ImageFolder(path="."))
    with pytest.raises(InputError, match=r"1 of 1 images cannot be used .*work/rejected\.txt"):
        run(request)
    assert (tmp_path / "work/rejected.txt").read_text().startswith("train/ape/x.jpg\tis neither")
    assert not list(request.outputs["dataset"].iterdir())
