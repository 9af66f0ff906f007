"""Sources on disk: official layouts are read, what is wrong is said in one line."""

# pyright: reportOptionalMemberAccess=false

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from pycocotools.coco import COCO as ReferenceCOCO

from asl_core.data.manifest import Manifest
from asl_core.data.masks import encode_masks
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.recipes.datasets import (
    Ade20k,
    Coco,
    Dataset,
    Icons,
    ImageFolder,
    Parquet,
    Scenes,
    Union_,
)

# pycocotools under NumPy 2; nothing a caller could do
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def picture(seed: int, height: int = 9, width: int = 13, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def pack(recipe: Dataset, tmp_path: Path) -> Manifest:
    return prepare(recipe, tmp_path, tmp_path / "packed", name="toy")


def packed(tmp_path: Path, split: str) -> PackedDataset:
    return PackedDataset(tmp_path / "packed", split)


def refused(recipe: Dataset, tmp_path: Path) -> str:
    """Return the message with which the source is refused; it leaves no manifest."""
    with pytest.raises(InputError) as raised:
        pack(recipe, tmp_path)
    assert not (tmp_path / "packed/manifest.json").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- parquet


def put_parquet(path: Path, images: Sequence[bytes | None], labels: list[int], names: Any) -> None:
    table = pa.table(
        {
            "image": pa.array([{"bytes": image, "path": "x.jpg"} for image in images]),
            "label": pa.array(labels, pa.int64()),
        }
    )
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_parquet_keeps_labels_names_and_order(tmp_path: Path) -> None:
    images = [picture(seed) for seed in range(5)]
    put_parquet(tmp_path / "set/train.parquet", images[:3], [1, 0, 2], ["ant", "bee", "cat"])
    put_parquet(tmp_path / "set/test.parquet", images[3:], [2, 1], ["ant", "bee", "cat"])
    manifest = pack(Parquet(path="set", normalisation="cifar10"), tmp_path)
    assert manifest.classes == ("ant", "bee", "cat")
    assert manifest.counts == {"train": 3, "test": 2}
    assert manifest.mean == (0.4914, 0.4822, 0.4465)
    train = packed(tmp_path, "train")
    assert [sample.label for sample in train] == [1, 0, 2]
    expected = np.asarray(Image.open(io.BytesIO(images[1])))
    difference = train[1].image.permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= 2  # two JPEG decoders


def test_parquet_in_parts_and_without_names(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train-00000-of-00002.parquet", [picture(0)], [3], None)
    put_parquet(tmp_path / "train-00001-of-00002.parquet", [picture(1)], [5], None)
    put_parquet(tmp_path / "validation-00000-of-00001.parquet", [picture(2)], [0], None)
    manifest = pack(Parquet(path="."), tmp_path)
    assert manifest.classes == ("0", "1", "2", "3", "4", "5")
    assert packed(tmp_path, "train").labels.tolist() == [3, 5]


@pytest.mark.parametrize(("withheld", "tested"), [(-1, [1]), (0, [0])])
def test_parquet_without_test_labels_is_tested_on_the_validation_split(
    tmp_path: Path, withheld: int, tested: list[int]
) -> None:
    put_parquet(tmp_path / "train.parquet", [picture(0), picture(1)], [0, 1], ["a", "b"])
    put_parquet(tmp_path / "test-00000-of-00001.parquet", [picture(2)], [withheld], ["a", "b"])
    put_parquet(tmp_path / "validation-00000-of-00001.parquet", [picture(3)], [1], ["a", "b"])
    pack(Parquet(path="."), tmp_path)
    assert packed(tmp_path, "test").labels.tolist() == tested


def test_parquet_errors_say_what_is_there(tmp_path: Path) -> None:
    assert "has no train.parquet" in refused(Parquet(path=str(Path(__file__).parent)), tmp_path)
    put_parquet(tmp_path / "train.parquet", [picture(0)], [0], ["a"])
    assert "has no test.parquet" in refused(Parquet(path="."), tmp_path)
    put(tmp_path / "test.parquet", b"PAR1 and then nothing")
    assert "test.parquet is not a readable Parquet file" in refused(Parquet(path="."), tmp_path)
    put_parquet(tmp_path / "test.parquet", [picture(0)], [0], ["a"])
    message = refused(Parquet(path=".", image_column="img"), tmp_path)
    assert "no column 'img'; it has image, label" in message


# --- what cannot be used


def test_bad_files_are_listed_with_their_reason_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images: list[bytes | None] = [picture(seed) for seed in range(8)]
    images[2], images[4], images[5] = picture(2, 40, 50)[:-400], b"no picture", None
    put_parquet(tmp_path / "train.parquet", images, [0] * 6 + [7, 1], ["a", "b"])
    put_parquet(tmp_path / "test.parquet", [picture(9)], [1], ["a", "b"])
    with caplog.at_level(logging.INFO):
        manifest = pack(Parquet(path=".", max_rejected_share=0.5), tmp_path)
    assert manifest.counts == {"train": 4, "test": 1}
    names, reasons = zip(*manifest.rejected["train"], strict=True)
    assert names == tuple(f"train.parquet row {row}" for row in (2, 4, 5, 6))
    assert reasons[0].startswith("cannot be decoded: ")
    assert reasons[1].startswith("is neither JPEG, PNG, WebP nor GIF: it begins with 'no picture'")
    assert reasons[2:] == (
        "no image bytes, and no such file in the folder: x.jpg",
        "label 7 is not one of 0 to 1",
    )
    assert "toy train: 4 of 8 images rejected" in caplog.text
    assert packed(tmp_path, "train").image_ids.tolist() == [0, 1, 3, 7]


def test_too_large_a_share_of_bad_files_is_an_error(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", [picture(0), b"x", b"y"], [0, 0, 0], ["a"])
    put_parquet(tmp_path / "test.parquet", [picture(9)], [0], ["a"])
    message = refused(Parquet(path=".", max_rejected_share=0.66), tmp_path)
    assert "toy train: 2 of 3 images cannot be used (allowed share 0.66)" in message
    assert "is neither JPEG, PNG, WebP nor GIF (2); the first train.parquet row 1: is " in message
    assert "raise max_rejected_share" in message


def test_a_source_without_a_valid_image_is_refused_whatever_the_share(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", [b"x"], [0], ["a"])
    put_parquet(tmp_path / "test.parquet", [picture(9)], [0], ["a"])
    message = refused(Parquet(path=".", max_rejected_share=0.999), tmp_path)
    assert "1 of 1 images cannot be used" in message


def test_a_source_without_any_image_is_refused(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", [picture(9)], [0], ["a"])
    pq.write_table(pq.read_table(tmp_path / "train.parquet").slice(0, 0), tmp_path / "test.parquet")
    assert "toy test: the source has no images" in refused(Parquet(path="."), tmp_path)


@pytest.mark.parametrize("recipe", [Parquet, ImageFolder, Coco, Ade20k])
def test_a_missing_or_empty_folder_is_refused(tmp_path: Path, recipe: Any) -> None:
    assert "nowhere does not exist" in refused(recipe(path="nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in refused(recipe(path="empty"), tmp_path)
    put(tmp_path / "file", b"")
    assert "file is not a folder" in refused(recipe(path="file"), tmp_path)
    with pytest.raises(ValueError, match="path is empty"):
        recipe(path="")


# --- imagefolder


def test_image_folder_labels_are_the_sorted_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(["train/wolf/a.png", "train/ape/b.jpg", "train/ape/c.jpg",
                                   "val/wolf/d.jpg"]):  # fmt: skip
        put(tmp_path / name, picture(number, kind="PNG" if name.endswith("png") else "JPEG"))
    put(tmp_path / "train/ape/.hidden", b"not looked at")
    manifest = pack(ImageFolder(path="."), tmp_path)
    assert manifest.classes == ("ape", "wolf")
    assert packed(tmp_path, "train").labels.tolist() == [0, 0, 1]
    assert packed(tmp_path, "test").labels.tolist() == [1]


def test_image_folder_refuses_a_class_that_training_lacks(tmp_path: Path) -> None:
    put(tmp_path / "train/ape/b.jpg", picture(0))
    put(tmp_path / "val/yak/b.jpg", picture(0))
    assert "1 class folder that" in refused(ImageFolder(path="."), tmp_path)
    assert "'yak'" in refused(ImageFolder(path="."), tmp_path)


# --- coco


def put_coco(folder: Path) -> dict[str, Any]:
    """Two annotated images (one without objects) and an unlisted one in each split."""
    mask = np.zeros((1, 20, 30), dtype=bool)
    mask[0, 4:11, 6:17] = True
    crowd = {"size": [20, 30], "counts": [200, 40, 360]}
    content = {
        "images": [
            {"id": 42, "file_name": "000042.jpg", "height": 20, "width": 30},
            {"id": 7, "file_name": "000007.jpg", "height": 16, "width": 18},
        ],
        "annotations": [
            {"id": 900, "image_id": 42, "category_id": 90, "bbox": [6, 4, 11, 7], "area": 77.0,
             "iscrowd": 0, "segmentation": {"size": [20, 30],
                                            "counts": encode_masks(mask)[0].decode()}},
            {"id": 12, "image_id": 42, "category_id": 3, "bbox": [1.5, 2, 8.25, 9], "area": 36.5,
             "iscrowd": 0, "segmentation": [[1.5, 2, 9.75, 2, 9.75, 11]]},
            {"id": 13, "image_id": 42, "category_id": 3, "bbox": [10, 0, 2, 20], "area": 40,
             "iscrowd": 1, "segmentation": crowd},
        ],
        "categories": [{"id": 90, "name": "yak"}, {"id": 3, "name": "ant"},
                       {"id": 17, "name": "cow"}],
    }  # fmt: skip
    for split in ("train2017", "val2017"):
        put(folder / f"{split}/000042.jpg", picture(0, 20, 30))
        put(folder / f"{split}/000007.jpg", picture(1, 16, 18))
        put(folder / f"{split}/000099.jpg", picture(2, 8, 9))
        put(folder / f"annotations/instances_{split}.json", json.dumps(content).encode())
    return content


def test_coco_labels_are_contiguous_by_category_id(tmp_path: Path) -> None:
    put_coco(tmp_path)
    manifest = pack(Coco(path="."), tmp_path)
    assert manifest.thing_classes == ("ant", "cow", "yak")
    objects = packed(tmp_path, "test")[0].instances
    assert objects.labels.tolist() == [2, 0, 0]
    assert objects.crowd.tolist() == [False, False, True]
    assert objects.boxes[1].tolist() == [1.5, 2, 9.75, 11]
    assert objects.masks[0].nonzero().aminmax(dim=0).max.tolist() == [10, 16]
    assert objects.masks[2].sum() == 40
    assert packed(tmp_path, "test").instance_counts.tolist() == [2, 0]


def test_coco_images_without_entry_serve_pretraining_only(tmp_path: Path) -> None:
    put_coco(tmp_path)
    manifest = pack(Coco(path="."), tmp_path)
    assert manifest.counts == {"train": 3, "test": 2}
    assert manifest.annotated == {"train": 2, "test": 2}
    train = packed(tmp_path, "train")
    assert train.annotated_indices == [0, 1]
    assert train[2].instances is None
    assert len(train[1].instances.labels) == 0  # listed, and nothing in it
    assert train[1].instances.masks.shape == (0, 16, 18)
    assert len(train.coco_ground_truth()["images"]) == 2
    assert any("not in instances_val2017.json: not used" in note for note in manifest.notes)


def test_coco_validation_can_join_the_training_split_as_pictures_alone(tmp_path: Path) -> None:
    put_coco(tmp_path)
    coco = Coco(path=".", val_joins_training=True)
    assert "toy test: the source has no images" in refused(coco, tmp_path)
    manifest = pack(Union_(members=(coco, Icons(image_size=16, train=3, test=2))), tmp_path)
    assert manifest.counts == {"train": 9, "test": 2}
    assert manifest.annotated == {"train": 5, "test": 2}  # icons are
    train = packed(tmp_path, "train")
    assert len(set(train.image_ids.tolist())) == 9
    assert any("3 images of val2017 for pre-training too" in note for note in manifest.notes)
    assert any(
        "not in instances_val2017.json: for pre-training only" in note for note in manifest.notes
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_ground_truth_scored_as_detections_has_ap_one(tmp_path: Path, kind: Any) -> None:
    content = put_coco(tmp_path)
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    for split in ("train2017", "val2017"):
        put(tmp_path / f"annotations/instances_{split}.json", json.dumps(content).encode())
    pack(Coco(path="."), tmp_path)
    truth = packed(tmp_path, "test").coco_ground_truth()
    detections = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1}
        for a in truth["annotations"]
    ]
    if kind == "bbox":
        detections = [{k: v for k, v in d.items() if k != "segmentation"} for d in detections]
    evaluator = COCOeval_faster(COCO(truth), COCO(truth).loadRes(detections), kind)
    evaluator.run()
    assert evaluator.stats[0] == pytest.approx(1.0)


def test_coco_masks_are_those_of_pycocotools(tmp_path: Path, capsys: Any) -> None:
    put_coco(tmp_path)
    pack(Coco(path="."), tmp_path)
    reference = ReferenceCOCO(str(tmp_path / "annotations/instances_val2017.json"))
    annotations = reference.loadAnns([900, 12, 13])
    masks = packed(tmp_path, "test")[0].instances.masks
    for mask, annotation in zip(masks, annotations, strict=True):
        assert np.array_equal(mask.numpy(), reference.annToMask(annotation).astype(bool))


def test_coco_image_of_another_size_than_its_entry_is_rejected(tmp_path: Path) -> None:
    put_coco(tmp_path)
    put(tmp_path / "train2017/000007.jpg", picture(1, 18, 16))
    message = refused(Coco(path="."), tmp_path)
    assert "000007.jpg: is 16x18, but its annotations are for 18x16" in message


def test_coco_errors_name_file_and_count(tmp_path: Path) -> None:
    content = put_coco(tmp_path)
    json_file = tmp_path / "annotations/instances_val2017.json"

    def message(**changes: Any) -> str:
        put(json_file, json.dumps(content | changes).encode())
        return refused(Coco(path="."), tmp_path)

    ghost = {"id": 5, "file_name": "ghost.jpg", "height": 1, "width": 1}
    assert "instances_val2017.json names 1 image missing from" in message(
        images=[*content["images"], ghost]
    )
    assert "the first ghost.jpg" in message(images=[*content["images"], ghost])
    stray = content["annotations"][0] | {"category_id": 5}
    assert "1 annotation with a category_id that is not listed" in message(annotations=[stray])
    assert "has no list 'annotations'" in message(annotations=None)
    assert "categories[0] has no 'name'" in message(categories=[{"id": 90}])
    put(json_file, b"{ not json")
    assert "instances_val2017.json is not JSON" in refused(Coco(path="."), tmp_path)
    json_file.unlink()
    assert "instances_val2017.json does not exist" in refused(Coco(path="."), tmp_path)


# --- ade20k


def put_ade20k(folder: Path, semantic: np.ndarray, mode: str = "L") -> None:
    file = io.BytesIO()
    Image.fromarray(semantic, mode="L").convert(mode).save(file, format="PNG")
    for split in ("training", "validation"):
        put(folder / f"images/{split}/x.jpg", picture(0, *semantic.shape))
        put(folder / f"annotations/{split}/x.png", file.getvalue())


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_ade20k_moves_zero_to_ignored_and_the_rest_down(tmp_path: Path) -> None:
    semantic = np.array([[0, 1, 2], [3, 2, 0]], dtype=np.uint8).repeat(6, 0).repeat(5, 1)
    put_ade20k(tmp_path, semantic)
    put(tmp_path / "classes.json", json.dumps({"1": "wall", "2": "sky", "3": "sea"}).encode())
    manifest = pack(Ade20k(path="."), tmp_path)
    assert manifest.semantic_classes == ("wall", "sky", "sea")
    mine = packed(tmp_path, "test")[0].semantic.numpy()
    assert np.array_equal(mine, np.where(semantic == 0, 255, semantic.astype(int) - 1))


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_ade20k_without_names_has_150_classes(tmp_path: Path) -> None:
    semantic = np.full((6, 8), 150, dtype=np.uint8)
    semantic[:2] = 255  # what others mark as not labelled
    put_ade20k(tmp_path, semantic)
    assert len(pack(Ade20k(path="."), tmp_path).semantic_classes or ()) == 150
    assert packed(tmp_path, "train")[0].semantic.unique().tolist() == [149, 255]


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_ade20k_maps_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    put_ade20k(tmp_path, np.full((6, 8), 151, dtype=np.uint8))
    assert "has label 151, but there are 150 classes" in refused(Ade20k(path="."), tmp_path)
    put_ade20k(tmp_path, np.zeros((6, 8), dtype=np.uint8), mode="RGB")
    assert "its semantic map is not grey: RGB" in refused(Ade20k(path="."), tmp_path)
    put(tmp_path / "annotations/training/x.png", b"\x89PNG broken")
    assert "its semantic map is no PNG" in refused(Ade20k(path="."), tmp_path)
    (tmp_path / "annotations/training/x.png").rename(tmp_path / "annotations/training/y.png")
    assert "no semantic map: x.png" in refused(Ade20k(path="."), tmp_path)
    put(tmp_path / "classes.json", b'{"2": "no first"}')
    assert "classes.json is neither" in refused(Ade20k(path="."), tmp_path)


# --- union


def test_a_union_of_different_kinds_keeps_images_only(tmp_path: Path) -> None:
    members = (Scenes(image_size=16, train=3, test=1), Icons(image_size=16, train=4, test=2))
    manifest = pack(Union_(members=members), tmp_path)
    assert manifest.counts == {"train": 7, "test": 3}
    assert (manifest.classes, manifest.thing_classes, manifest.semantic_classes) == (None,) * 3
    sample = packed(tmp_path, "train")[1]
    assert (sample.label, sample.instances, sample.semantic) == (None, None, None)


def test_a_union_of_one_kind_keeps_annotations_under_new_numbers(tmp_path: Path) -> None:
    members = (Scenes(image_size=16, train=3, test=1), Scenes(image_size=24, train=2, test=1))
    pack(Union_(members=members), tmp_path)
    train = packed(tmp_path, "train")
    assert train.image_ids.tolist() == [0, 1, 2, 3, 4]
    assert train[4].instances.masks.shape[1:] == (24, 24)
    assert len(train.coco_ground_truth()["images"]) == 5


def test_a_union_names_the_member_of_a_bad_file(tmp_path: Path) -> None:
    put_parquet(tmp_path / "train.parquet", [picture(0), b"x"], [0, 0], ["a"])
    put_parquet(tmp_path / "test.parquet", [picture(0)], [0], ["a"])
    members = (Icons(image_size=16, train=2, test=1), Parquet(path="."))
    manifest = pack(Union_(members=members, max_rejected_share=0.3), tmp_path)
    assert [name for name, _ in manifest.rejected["train"]] == ["1-parquet/train.parquet row 1"]
    assert manifest.counts["train"] == 3
    with pytest.raises(ValueError, match="members is empty"):
        Union_(members=())


def test_a_file_named_twice_in_different_case_is_read_twice(tmp_path: Path) -> None:
    for name in ("train/a/X.JPG", "train/a/x.jpg", "val/a/y.JPEG"):
        put(tmp_path / name, picture(0))
    assert pack(ImageFolder(path="."), tmp_path).counts["train"] == 2


def test_a_selection_takes_the_place_of_the_official_test_split(tmp_path: Path) -> None:
    images = [picture(number) for number in range(20)]
    put_parquet(tmp_path / "train.parquet", images, list(range(20)), None)
    put_parquet(tmp_path / "test.parquet", [picture(99)], [99], None)
    manifest = pack(Parquet(path=".", selection=6), tmp_path)
    assert manifest.counts == {"train": 14, "test": 6}
    labels = {split: [s.label for s in packed(tmp_path, split)] for split in ("train", "test")}
    assert sorted(labels["train"] + labels["test"]) == list(range(20))
    assert labels["test"] == sorted(labels["test"]) != list(range(6))
    assert "held out for choices" in manifest.notes[-1]
    first = labels["test"]
    manifest = pack(Parquet(path=".", selection=7), tmp_path)  # one more joins the same six
    assert set(first) < {sample.label for sample in packed(tmp_path, "test")}
    with pytest.raises(
        InputError, match="dataset toy: selection 20 leaves nothing to train on, of 20"
    ):
        pack(Parquet(path=".", selection=20), tmp_path)
    with pytest.raises(ValueError, match="give it to the union"):
        Union_(members=(Parquet(path=".", selection=2),))


def test_a_recipe_s_note_reaches_the_manifest(tmp_path: Path) -> None:
    recipe = Icons(image_size=16, train=2, test=2, note="drawn for a test")
    manifest = prepare(recipe, tmp_path, tmp_path / "icons", name="icons")
    assert manifest.notes[-1] == "drawn for a test"
