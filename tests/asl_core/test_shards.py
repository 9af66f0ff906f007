"""Packed datasets: what goes in comes out, in equal bytes, and damage is noticed."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import dataclasses
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from asl_core.data import layout
from asl_core.data.manifest import read_manifest
from asl_core.data.masks import decode_masks, encode_masks, tight_boxes
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.recipes.datasets import Scenes

# pycocotools under NumPy 2; nothing a caller could do
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RECIPE = Scenes(image_size=24, train=7, test=3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "scenes"
    prepare(RECIPE, folder, folder, name="scenes")
    return folder


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_recipes_give_equal_bytes(scenes: Path, tmp_path: Path) -> None:
    prepare(RECIPE, tmp_path, tmp_path / "again", name="scenes")
    assert file_bytes(tmp_path / "again") == file_bytes(scenes)


def test_small_shards_hold_the_same_samples_and_digest(scenes: Path, tmp_path: Path) -> None:
    manifest = prepare(RECIPE, tmp_path, tmp_path, name="scenes", shard_bytes=2000)
    assert len(list(tmp_path.glob("train-*.tar"))) > 2
    assert manifest.digests == read_manifest(scenes).digests
    small, large = PackedDataset(tmp_path, "train"), PackedDataset(scenes, "train")
    for index in range(len(large)):
        assert torch.equal(small[index].image, large[index].image)
        assert torch.equal(small[index].semantic, large[index].semantic)


def test_digest_changes_with_the_seed(scenes: Path, tmp_path: Path) -> None:
    manifest = prepare(
        dataclasses.replace(RECIPE, seed=1), tmp_path, tmp_path / "other", name="scenes"
    )
    digests = read_manifest(scenes).digests
    assert all(manifest.digests[split] != digests[split] for split in ("train", "test"))


def test_shards_are_plain_tar_files_at_the_offsets_of_the_index(scenes: Path) -> None:
    index = np.load(scenes / layout.INDEX.format(split="train"))
    with tarfile.open(scenes / "train-00000.tar") as shard:
        members = shard.getmembers()
        images = [member for member in members if member.name.endswith(".jpg")]
        maps = [member for member in members if member.name.endswith(".semantic.png")]
    assert [member.offset_data for member in images] == index["offset"].tolist()
    assert [member.size for member in images] == index["size"].tolist()
    assert [member.offset_data for member in maps] == index["semantic_offset"].tolist()
    assert {member.mtime for member in members} == {0}


def test_an_unpickled_dataset_reads_the_same_images(scenes: Path) -> None:
    dataset = PackedDataset(scenes, "train")
    first = dataset[5]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5].image, first.image)
    assert torch.equal(copy[5].instances.masks, first.instances.masks)


def test_ground_truth_has_the_boxes_and_masks_of_the_samples(scenes: Path) -> None:
    dataset = PackedDataset(scenes, "test")
    truth = dataset.coco_ground_truth()
    assert [category["name"] for category in truth["categories"]] == [str(i) for i in range(10)]
    for sample in dataset:
        height, width = sample.image.shape[-2:]
        mine = [a for a in truth["annotations"] if a["image_id"] == sample.image_id]
        assert [a["category_id"] - 1 for a in mine] == sample.instances.labels.tolist()
        masks = decode_masks([a["segmentation"]["counts"] for a in mine], height, width)
        assert torch.equal(masks, sample.instances.masks)
        assert [a["area"] for a in mine] == masks.sum(dim=(1, 2)).tolist()
        boxes = torch.tensor([a["bbox"] for a in mine])
        assert torch.equal(boxes[:, :2] + boxes[:, 2:], sample.instances.boxes[:, 2:])
    ids = [a["id"] for a in truth["annotations"]]
    assert len(set(ids)) == len(ids)


def test_instance_counts_are_those_of_the_samples(scenes: Path) -> None:
    dataset = PackedDataset(scenes, "train")
    assert dataset.instance_counts.tolist() == [len(s.instances.labels) for s in dataset]


def test_a_truncated_shard_is_named(scenes: Path, tmp_path: Path) -> None:
    for name, content in file_bytes(scenes).items():
        (tmp_path / name).write_bytes(content[:900] if name == "train-00000.tar" else content)
    with pytest.raises(InputError, match=r"train-00000\.tar is truncated; prepare"):
        PackedDataset(tmp_path, "train")[6]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", None, "does not exist; run the dataset's prepare stage"),
        ("manifest.json", b"{", "is damaged"),
        ("manifest.json", b'{"format": 0}', "is not of format 1"),
        ("train-index.npz", None, "does not exist; prepare the dataset again"),
        ("train-index.npz", b"PK\x03\x04 half", "is damaged"),
        ("train-instances.npz", b"", "is damaged"),
    ],
)
def test_damage_is_one_line_that_names_the_file(
    scenes: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    for each, old in file_bytes(scenes).items():
        (tmp_path / each).write_bytes(old)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        PackedDataset(tmp_path, "train")
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_interrupted_pack_leaves_no_manifest_and_is_cleared(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in file_bytes(scenes).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train-00007.tar").write_bytes(b"left over")
    (tmp_path / "notes.txt").write_text("mine")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("asl_core.data.packing.SplitWriter.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(RECIPE, tmp_path, tmp_path, name="scenes")
    assert not (tmp_path / "manifest.json").exists()
    prepare(RECIPE, tmp_path, tmp_path, name="scenes")
    (tmp_path / "notes.txt").unlink()
    assert file_bytes(tmp_path) == file_bytes(scenes)


def test_masks_survive_their_run_length_code() -> None:
    masks = np.random.default_rng(0).random((3, 5, 8)) < 0.4
    assert np.array_equal(decode_masks(encode_masks(masks), 5, 8).numpy(), masks)
    assert decode_masks((), 5, 8).shape == (0, 5, 8)


def test_tight_boxes_are_those_of_a_search_over_pixels() -> None:
    masks = np.random.default_rng(1).random((4, 6, 9)) < 0.1
    masks[:, 2, 3] = True
    for mask, box in zip(masks, tight_boxes(masks), strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
