"""A rehearsal does the true steps, measures them, and stops; slices are the first images."""

import json
from pathlib import Path

import pytest
import torch
from miniatures import MAE
from torch.utils.data import Subset

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.data.slices import slice_packed
from asl_core.engine.checkpoint import CheckpointFolder
from asl_core.engine.context import Rehearsal, RunContext
from asl_core.engine.journal import Journal
from asl_core.pretrain import pretrain
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.optimisation import Resources

CPU = Resources(device="cpu", threads=1)


def run(folder: Path, dataset: Path, rehearsal: Rehearsal | None) -> dict[str, torch.Tensor]:
    folder.mkdir()
    with Journal.open(folder / "journal") as journal:
        context = RunContext(folder / "ckpt", journal, CPU, rehearsal=rehearsal)
        return pretrain(MAE, dataset, context).state_dict()


def test_a_rehearsal_does_the_first_steps_as_they_would_be(icons: Path, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    tried = run(tmp_path / "tried", icons, Rehearsal(file, steps=3, warm_up=1))
    step, _ = CheckpointFolder(tmp_path / "tried/ckpt").load_newest() or (0, {})
    whole = run(tmp_path / "whole", icons, None)  # 5 steps
    assert step == 3
    assert any(not torch.equal(tried[name], whole[name]) for name in whole)
    again = run(tmp_path / "tried2", icons, Rehearsal(tmp_path / "other.json", steps=5, warm_up=1))
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    measured = json.loads(file.read_text())
    assert len(measured["step_s"]) == len(measured["waited_s"]) == 2
    assert all(0 <= w <= s for w, s in zip(measured["waited_s"], measured["step_s"], strict=True))
    assert (measured["images"], measured["processes"]) == (MAE.batch_size, 1)
    assert measured["checkpoint_bytes"] > 4 * sum(x.numel() for x in tried.values())
    assert measured["peak_device_bytes"] is None
    assert measured["began"] < measured["ended"]


def test_a_run_shorter_than_the_rehearsal_ends_by_itself(icons: Path, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    run(tmp_path / "tried", icons, Rehearsal(file, steps=50, warm_up=2))
    assert len(json.loads(file.read_text())["step_s"]) == 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=9, test=5), folder, folder, name="scenes")
    return folder


def test_a_slice_is_the_beginning_of_a_dataset(scenes: Path, tmp_path: Path) -> None:
    slice_packed(scenes, tmp_path / "slice", {"train": 4, "test": 20})
    for split, count in (("train", 4), ("test", 5)):
        whole, part = PackedDataset(scenes, split), PackedDataset(tmp_path / "slice", split)
        assert len(part) == part.manifest.counts[split] == part.manifest.annotated[split] == count
        for one, other in zip(part, Subset(whole, range(count)), strict=True):
            assert torch.equal(one.image, other.image)
            assert one.semantic is not None
            assert other.semantic is not None
            assert torch.equal(one.semantic, other.semantic)
            assert one.instances is not None
            assert other.instances is not None
            assert torch.equal(one.instances.masks, other.instances.masks)
            assert torch.equal(one.instances.boxes, other.instances.boxes)
        truth = part.coco_ground_truth()
        assert (
            truth["annotations"]
            == whole.coco_ground_truth()["annotations"][: len(truth["annotations"])]
        )


def test_only_the_beginning_of_a_source_is_packed(scenes: Path, tmp_path: Path) -> None:
    recipe = Scenes(image_size=32, train=9, test=5)
    prepare(recipe, tmp_path, tmp_path / "part", name="scenes", beginning={"train": 4, "test": 20})
    part, whole = PackedDataset(tmp_path / "part", "train"), PackedDataset(scenes, "train")
    assert part.manifest.counts == {"train": 4, "test": 5}
    assert all(torch.equal(part[i].image, whole[i].image) for i in range(4))
