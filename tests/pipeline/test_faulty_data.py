"""What stages make of data in which some or all is not to be used."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import HEIGHT, UNUSABLE, WIDTH, annotation, good, picture, put_images
from coco_sets import put_json as put_small_json
from PIL import Image

from asl_core.data.manifest import Manifest
from asl_core.data.packing import SplitWriter
from asl_core.data.prepare import prepare
from asl_core.data.sources.source import Item
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.datasets import Ade20k, Coco, Dataset, Icons
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import (
    Detection,
    FineTune,
    LinearProbe,
    Segmentation,
)
from pipeline.stages import analyze, detect, finetune, knn, linprobe, segment
from pipeline.stages.request import StageRequest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' masks do not know NumPy 2's copy keyword yet."""

GOOD = 50
VIT = Vit(image_size=32, patch_size=8, embed_dim=24, depth=8, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
DETECTION = Detection(
    dataset="toy", epochs=1, batch_size=10, image_size=32, window_size=2, pyramid_channels=16,
    anchor_sizes=(8, 12, 16, 24, 32), rpn_batch=32, roi_batch=16, proposals=30, box_head_dim=24,
    precision="fp32",
)  # fmt: skip
SEGMENTATION = Segmentation(
    dataset="toy", epochs=1, batch_size=10, lr=1e-3, warmup_epochs=0, crop_size=32,
    slide_stride=24, channels=8, auxiliary_channels=4, precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


@pytest.fixture
def request_of(encoder: Path, tmp_path: Path) -> Iterator[Callable[..., StageRequest[Any]]]:
    journals = []

    def make(stage: str, recipe: object, dataset: Path) -> StageRequest[Any]:
        work = tmp_path / f"work-{dataset.name}"
        (work / "out").mkdir(parents=True)
        journals.append(Journal.open(work / "journal"))
        inputs = {"dataset": dataset, "encoder": encoder, "held_out": work}
        resources = Resources(device="cpu", threads=1)
        return StageRequest(
            stage, "mae", recipe, inputs, work, {"details": work / "out"}, journals[-1], resources
        )

    yield make
    for journal in journals:
        journal.close()


def packed(recipe: Dataset, root: Path, name: str) -> tuple[Path, Manifest]:
    folder = root / name
    return folder, prepare(recipe, root, folder, name="toy")


# --- one of each fault among good images


def faulty_pictures() -> dict[str, bytes]:
    """Return files that are no pictures of HEIGHT x WIDTH pixels as they are stored."""
    sideways, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture(0, WIDTH, HEIGHT))).save(sideways, format="PNG", exif=exif)
    return {
        "cut.png": picture(1)[:-60],
        "empty.png": b"",
        "other.png": picture(2, HEIGHT + 1),
        "sideways.png": sideways.getvalue(),
        "text.png": b"no picture",
    }


def put_coco(root: Path, faults: bool) -> None:
    """Write 50 good images with two objects each into both splits; on request faults too."""
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        files = {f"{number:02d}.png": picture(number) for number in range(GOOD)}
        annotations = [
            annotation(1000 + 2 * number + k, number, bbox=[x, 3, 7, 5], category_id=3 + 2 * k,
                       segmentation=[[x, 3, x + 7, 3, x + 7, 8, x, 8]])
            for number in range(GOOD) for k, x in enumerate((1, 8))
        ]  # fmt: skip
        if faults:
            files |= faulty_pictures()
            annotations[0]["segmentation"].append([5, 10, 21, 40])
            unusable = [changes for changes, _ in UNUSABLE.values()]
            annotations = [
                *(annotation(10 + i, i % GOOD, **each) for i, each in enumerate(unusable)),
                *annotations,
                *(annotation(500 + i, GOOD + i) for i in range(len(files) - GOOD)),
            ]
        content = {
            "images": [
                {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
                for number, name in enumerate(files)
            ],
            "annotations": annotations,
            "categories": [{"id": 3, "name": "ant"}, {"id": 5, "name": "bee"}],
        }
        for name, image in files.items():
            (root / split / name).write_bytes(image)
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def test_faulty_objects_and_images_change_nothing_of_what_detect_finds_in_the_good_ones(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]]
) -> None:
    found = {}
    for name in ("sound", "faulty"):
        put_coco(tmp_path / f"{name}-source", faults=name == "faulty")
        recipe = Coco(path=f"{name}-source", max_rejected_share=0.2)
        folder, manifest = packed(recipe, tmp_path, name)
        request = request_of("detect", DETECTION, folder)
        metrics = detect.run(request)
        found[name] = (manifest.digests, metrics, (request.out / "detections.json").read_bytes())
    assert found["faulty"] == found["sound"]
    assert len(json.loads(found["sound"][2])) > GOOD
    assert [name.partition("/")[2] for name, _ in manifest.rejected["test"]] == [*faulty_pictures()]
    left_out = [note for note in manifest.notes if "val2017.json: objects left out: " in note]
    counts = [int(note.split("left out: ")[1].partition(",")[0]) for note in left_out]
    assert sum(counts) == len(UNUSABLE)


def put_ade20k(root: Path, faults: bool) -> None:
    """Write 50 good images with maps into both splits; on request one of each fault too."""
    (root / "classes.json").write_text('["wall", "sky", "sea"]')
    for split in ("training", "validation"):
        images, maps = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number in range(GOOD):
            semantic = np.random.default_rng(number).integers(0, 4, (3, 4)).astype(np.uint8)
            (images / f"{number:02d}.png").write_bytes(picture(number))
            Image.fromarray(semantic.repeat(4, 0).repeat(4, 1)).save(maps / f"{number:02d}.png")
        if faults:
            sound = (maps / "00.png").read_bytes()
            for name, image in faulty_pictures().items():
                (images / name).write_bytes(image)
                (maps / name).write_bytes(sound)
            for name in ("nomap.png", "ninth.png", "colours.png", "torn.png", "size.png"):
                (images / name).write_bytes(picture(7))
            Image.new("L", (WIDTH, HEIGHT), 9).save(maps / "ninth.png")
            Image.new("RGB", (WIDTH, HEIGHT)).save(maps / "colours.png")
            Image.new("L", (HEIGHT, WIDTH), 1).save(maps / "size.png")
            (maps / "torn.png").write_bytes(sound[:30])


def test_faulty_images_and_maps_change_nothing_of_how_segment_scores_the_good_ones(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]]
) -> None:
    found = {}
    for name in ("sound", "faulty"):
        (tmp_path / f"{name}-source").mkdir()
        put_ade20k(tmp_path / f"{name}-source", faults=name == "faulty")
        recipe = Ade20k(path=f"{name}-source", max_rejected_share=0.3)
        folder, manifest = packed(recipe, tmp_path, name)
        request = request_of("segment", SEGMENTATION, folder)
        metrics = segment.run(request)
        found[name] = (manifest.digests, metrics, (request.out / "classes.json").read_bytes())
    assert found["faulty"] == found["sound"]
    assert len(manifest.rejected["test"]) == 10


# --- no truth at all


def refused(stage: Any, request: StageRequest[Any]) -> str:
    """Return the line with which a stage refuses its data, before it has trained."""
    with pytest.raises(InputError) as raised:
        stage.run(request)
    assert "\n" not in str(raised.value)
    assert not (request.work / "ckpt").exists()
    assert not any((request.work / "out").iterdir())
    return str(raised.value)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("crowd", [True, False])
def test_detect_refuses_a_split_without_an_object_before_it_trains(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]], split: str, crowd: bool
) -> None:
    content = good()
    content["annotations"] = [annotation(1, iscrowd=1)] * crowd
    put_images(tmp_path)
    put_small_json(tmp_path, good())
    put_small_json(tmp_path, content, {"train": "train2017", "test": "val2017"}[split])
    folder, _ = packed(Coco(path="."), tmp_path, "packed")
    said = refused(detect, request_of("detect", DETECTION, folder))
    assert f"has no object in its {split} split" in said


@pytest.mark.parametrize("split", ["train", "test"])
def test_segment_refuses_a_split_without_a_labelled_pixel_before_it_trains(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]], split: str
) -> None:
    put_ade20k(tmp_path, faults=False)
    maps = tmp_path / "annotations" / {"train": "training", "test": "validation"}[split]
    for number, path in enumerate(maps.iterdir()):
        Image.new("L", (WIDTH, HEIGHT), 255 * (number % 2)).save(path)
    folder, _ = packed(Ade20k(path="."), tmp_path, "packed")
    said = refused(segment, request_of("segment", SEGMENTATION, folder))
    assert f"has no labelled pixel in its {split} split" in said


CLASSIFYING = {
    linprobe: LinearProbe(dataset="toy", batch_size=4, image_size=32),
    finetune: FineTune(dataset="toy", batch_size=4, image_size=32),
    knn: NearestNeighbours(dataset="toy", k=1, image_size=32),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("stage", CLASSIFYING, ids=lambda stage: stage.__name__[16:])
def test_a_classifying_stage_refuses_images_without_labels(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]], stage: Any, split: str
) -> None:
    folder, _ = packed(Icons(image_size=32, train=8, test=4), tmp_path, "packed")
    with SplitWriter(folder, split, with_instances=False) as writer:
        for number in range(8):
            writer.add(Item(f"{number}", number, picture(number, 32, 32)), 32, 32)
        writer.finish()
    said = refused(stage, request_of(stage.__name__, CLASSIFYING[stage], folder))
    assert f"has 8 images without a label in its {split} split" in said


@pytest.mark.parametrize("stage", [*CLASSIFYING, analyze], ids=lambda stage: stage.__name__[16:])
def test_a_stage_refuses_a_split_without_images(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]], stage: Any
) -> None:
    folder, manifest = packed(Icons(image_size=32, train=8, test=4), tmp_path, "packed")
    with SplitWriter(folder, "test", with_instances=False) as writer:
        writer.finish()
    content = json.loads((folder / "manifest.json").read_text())
    content["counts"]["test"] = 0
    (folder / "manifest.json").write_text(json.dumps(content))
    recipe = CLASSIFYING.get(stage, TokenAnalysis(dataset="toy"))
    said = refused(stage, request_of(stage.__name__, recipe, folder))
    assert "dataset toy in " in said
    assert "has no image in its test split" in said
    assert manifest.counts["test"] == 4
