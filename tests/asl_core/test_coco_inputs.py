"""What a COCO file may say: what is read, what is left out and counted, what is refused."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_sets
import numpy as np
import pytest
from coco_sets import (
    FAR,
    HEIGHT,
    SQUARE,
    UNUSABLE,
    WIDTH,
    annotation,
    good,
    pack,
    picture,
    put_images,
    put_json,
    rle,
)
from PIL import Image
from pycocotools.coco import COCO as ReferenceCOCO

from asl_core.data.masks import decode_masks, encode_masks
from asl_core.data.shards import PackedDataset
from asl_core.data.sources.coco_masks import read_segmentation
from asl_core.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' masks do not know NumPy 2's copy keyword yet."""

EXAMPLES = 20_000 if os.environ.get("ASL_LONG_TESTS") else 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a sound data set."""
    put_images(tmp_path)
    put_json(tmp_path, good())
    return tmp_path


@pytest.mark.parametrize(("changes", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_object_that_cannot_be_used_is_left_out_counted_and_named(
    folder: Path, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound = pack(folder).digests
    content = good()
    content["annotations"].insert(1, annotation(77, **changes))
    put_json(folder, content, "val2017")
    with caplog.at_level(logging.WARNING):
        manifest = pack(folder)
    assert manifest.digests == sound
    (note,) = manifest.notes
    assert note.startswith(
        "instances_val2017.json: objects left out: 1, the first in annotation 77"
    )
    assert reason in note
    assert note in caplog.text


def test_a_polygon_that_cannot_be_used_is_left_out_of_its_object(folder: Path) -> None:
    sound = pack(folder).digests
    content = good()
    content["annotations"][0]["segmentation"] += [[], [1, 2, 3], *FAR]
    content["annotations"][3]["segmentation"] += [[5, 5]]
    put_json(folder, content)
    manifest = pack(folder)
    assert manifest.digests == sound
    assert [note for note in manifest.notes if note.startswith("instances_train")] == [
        "instances_train2017.json: polygons left out: 3, the first in annotation 11: fewer than "
        "three points.",
        "instances_train2017.json: polygons left out: 1, the first in annotation 11: an outline of "
        "more than 1048576 pixels.",
    ]


def test_a_file_without_any_usable_object_is_refused(folder: Path) -> None:
    content = good()
    content["annotations"] = [annotation(8, area=-1), annotation(9, segmentation=None)]
    put_json(folder, content, "val2017")
    with pytest.raises(InputError, match=r"val2017.json: none of its 2 objects .*annotation 8"):
        pack(folder)


def test_a_box_far_from_its_mask_is_kept_and_noted(folder: Path) -> None:
    content = good()
    content["annotations"][1]["bbox"] = [9, 8, 16, 13]  # the corners, taken for sides
    content["annotations"][0]["bbox"] = [2.4, 3.4, 6.2, 4.2]  # no farther than rounding
    put_json(folder, content, "val2017")
    manifest = pack(folder)
    assert manifest.notes == (
        "instances_val2017.json: boxes far from their masks, kept as they are: 1, the first in "
        "annotation 12.",
    )
    objects = PackedDataset(folder / "packed", "test")[0].instances
    assert objects is not None
    assert objects.boxes[1].tolist() == [9, 8, 25, 21]


def change(kind: str, number: int, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what gives an entry of the file other values; `...` takes a key away."""

    def apply(content: dict[str, Any]) -> None:
        entry = content[kind][number] | changes
        content[kind][number] = {k: v for k, v in entry.items() if v is not ...}

    return apply


def put(kind: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what puts a value in the place of one of the file's lists."""
    return lambda content: content.__setitem__(kind, value)


def add(kind: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content[kind].append(value)


REFUSED = {
    "image id a text": (change("images", 0, id="1"), r"images\[0\]: id is '1', not an integer"),
    "image id a float": (change("images", 0, id=1.0), r"images\[0\]: id is 1.0, not an integer"),
    "image id true": (change("images", 1, id=True), r"images\[1\]: id is True, not an integer"),
    "image id null": (change("images", 1, id=None), r"images\[1\]: id is None, not an integer"),
    "image id missing": (change("images", 1, id=...), r"images\[1\] has no 'id'"),
    "image id negative": (change("images", 0, id=-1), r"id is -1, not one of 0 to"),
    "image id huge": (change("images", 0, id=2**64), r"id is 18446744073709551616, not one of"),
    "image id a list": (change("images", 0, id=[1]), r"id is \[1\], not an integer"),
    "height a text": (change("images", 0, height="64"), "height is '64', not an integer"),
    "height a float": (change("images", 0, height=12.0), "height is 12.0, not an integer"),
    "height zero": (change("images", 0, height=0), "height is 0, not one of 1 to"),
    "width negative": (change("images", 0, width=-16), "width is -16, not one of 1 to"),
    "width missing": (change("images", 0, width=...), r"images\[0\] has no 'width'"),
    "width beyond images": (change("images", 0, width=2**40), "width is 1099511627776, not one"),
    "an area beyond RLEs": (change("images", 0, width=2**24, height=2**24), "more than an RLE"),
    "file_name a number": (change("images", 0, file_name=7), "file_name is 7, not a text"),
    "file_name empty": (change("images", 0, file_name=""), "file_name '' is empty"),
    "file_name of a control": (change("images", 0, file_name="a\n.png"), r"file_name 'a\\n.png'"),
    "file_name with a zero": (change("images", 0, file_name="a\0"), "characters that are none"),
    "file_name a surrogate": (change("images", 0, file_name="\udcff"), "characters that are none"),
    "file_name upwards": (change("images", 0, file_name="../a.png"), "'../a.png' is not the plain"),
    "file_name the parent": (change("images", 0, file_name=".."), "'..' is not the plain name"),
    "file_name absolute": (change("images", 0, file_name="/a.png"), "'/a.png' is not the plain"),
    "file_name of no file": (change("images", 0, file_name="c.png"), "names 1 image missing from"),
    "two images of one id": (change("images", 1, id=1), r"and images\[1\] have the same id 1"),
    "two images of one file": (
        change("images", 1, file_name="a.png"), r"images\[0\] and images\[1\] .* file_name 'a.png'",
    ),
    "category id a text": (change("categories", 0, id="5"), r"categories\[0\]: id is '5', not an"),
    "two categories of one id": (change("categories", 0, id=3), r"\[1\] have the same id 3"),
    "two categories of one name": (change("categories", 0, name="ant"), r"the same name 'ant'"),
    "category name a number": (change("categories", 0, name=5), "name is 5, not a text"),
    "category name null": (change("categories", 0, name=None), "name is None, not a text"),
    "category name a surrogate": (change("categories", 0, name="\ud800"), "name '.*' is empty or"),
    "other categories in test": (change("categories", 0, name="cow"), "first 5: 'bee' in train"),
    "annotation id a text": (change("annotations", 2, id="13"), r"annotations\[2\]: id is '13'"),
    "annotation id missing": (change("annotations", 2, id=...), r"annotations\[2\] has no 'id'"),
    "two annotations of one id": (
        change("annotations", 3, id=11), r"annotations\[0\] and annotations\[3\] have the same id",
    ),
    "image_id a text": (change("annotations", 2, image_id="2"), "image_id is '2', not an integer"),
    "image_id of none": (change("annotations", 2, image_id=7), "1 annotation with a image_id"),
    "category_id a float": (change("annotations", 2, category_id=3.5), "category_id is 3.5, not"),
    "category_id of none": (change("annotations", 2, category_id=4), "that is not listed, the fir"),
    "iscrowd two": (change("annotations", 2, iscrowd=2), "iscrowd is 2, neither 0 nor 1"),
    "iscrowd a text": (change("annotations", 2, iscrowd="0"), "iscrowd is '0', neither 0 nor 1"),
    "iscrowd null": (change("annotations", 2, iscrowd=None), "iscrowd is None, neither 0 nor 1"),
    "an RLE of another size": (
        change("annotations", 2, segmentation=rle([192], (WIDTH, HEIGHT))),
        r"annotations\[2\] \(id 13\) has an RLE of size \[16, 12\] for an image of \[12, 16\]",
    ),
    "images null": (put("images", None), "has no list 'images'"),
    "images an object": (put("images", {"1": {}}), "has no list 'images'"),
    "annotations missing": (lambda content: content.pop("annotations"), "no list 'annotations'"),
    "an image that is a text": (add("images", "c.png"), r"images\[2\] is 'c.png', not an object"),
    "an annotation that is null": (add("annotations", None), r"\[4\] is None, not an object"),
    "a category that is a list": (add("categories", [9, "x"]), r"\[2\] is \[9, 'x'\], not an obj"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_change_the_meaning_of_a_file_is_refused(
    folder: Path, spoil: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    content = good()
    spoil(content)
    put_json(folder, content, "val2017")
    with pytest.raises(InputError, match=reason) as raised:
        pack(folder)
    assert "\n" not in str(raised.value)
    assert "instances_val2017.json" in str(raised.value) or "two JSON files" in str(raised.value)
    assert not (folder / "packed/manifest.json").exists()


TEXTS = {
    "nothing": (b"", "is not JSON"),
    "no JSON": (b"{ not json", "is not JSON"),
    "a list": (b"[]", "holds no JSON object"),
    "a number": (b"7", "holds no JSON object"),
    "cut off": (json.dumps(good()).encode()[:-40], "is not JSON"),
    "not UTF-8": (json.dumps(good()).encode().replace(b"ant", b"\xe4nt"), "is not JSON"),
    "nested deeply": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "an endless integer": (
        json.dumps(good()).encode().replace(b'"area": 35', b'"area": ' + b"9" * 5000, 1),
        "is not JSON .*limit .4300 digits.",
    ),
    "a key twice": (
        json.dumps(good()).encode().replace(b'"images"', b'"images": [], "images"'),
        "an object has the key 'images' twice",
    ),
}


@pytest.mark.parametrize(("text", "reason"), TEXTS.values(), ids=TEXTS.keys())
def test_a_file_that_is_no_sound_json_is_refused(folder: Path, text: bytes, reason: str) -> None:
    put_json(folder, text, "val2017")
    with pytest.raises(InputError, match=reason) as raised:
        pack(folder)
    assert "\n" not in str(raised.value)
    assert "instances_val2017.json" in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"licenses": None}, {"licenses": [None, {"name": None}, 7]}, {"licenses": {}},
        {"licenses": [{"name": "\ud800"}]}, {"info": float("nan")}, {"more": [[[]]]},
    ],
    ids=str,
)  # fmt: skip
def test_what_nothing_hangs_on_may_be_anything(folder: Path, changes: dict[str, Any]) -> None:
    sound = pack(folder).digests
    put_json(folder, good() | changes)
    assert pack(folder).digests == sound


def test_a_byte_order_mark_and_iscrowd_as_true_are_read(folder: Path) -> None:
    sound = pack(folder).digests
    content = good()
    content["annotations"][0].pop("iscrowd")
    content["annotations"][3]["iscrowd"] = True
    put_json(folder, b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert pack(folder).digests == sound


def turned(path: Path, number: int, orientation: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, format="PNG", exif=exif)


def test_a_picture_whose_sides_exif_swaps_is_refused_with_that_reason(folder: Path) -> None:
    turned(folder / "train2017/a.png", 0, 6, WIDTH, HEIGHT)
    with pytest.raises(
        InputError, match=r"is 12x16, but its annotations are for 16x12: its EXIF orientation 6"
    ):
        pack(folder)


def test_a_picture_that_exif_turns_without_another_size_is_noted(folder: Path) -> None:
    turned(folder / "train2017/a.png", 0, 3, HEIGHT, WIDTH)
    assert pack(folder).notes == (
        "1 annotated train images have an EXIF orientation, which is not applied: their "
        "annotations are taken to be for the pixels as stored. The first is train2017/a.png.",
    )


def test_a_picture_of_another_size_that_exif_does_not_explain_says_no_more(folder: Path) -> None:
    (folder / "train2017/a.png").write_bytes(picture(0, WIDTH, HEIGHT))
    with pytest.raises(InputError, match="annotations are for 16x12; all of them"):
        pack(folder)


def test_the_three_forms_of_a_segmentation_give_one_code() -> None:
    mask = np.zeros((1, HEIGHT, WIDTH), dtype=bool)
    mask[0, 3:8, 2:9] = True
    for each in good()["annotations"]:
        code, left_out, _ = read_segmentation(each["segmentation"], HEIGHT, WIDTH)
        assert code == encode_masks(mask)[0]
        assert not left_out


@pytest.mark.parametrize("number", range(8))
def test_sound_masks_are_those_of_pycocotools_to_the_byte(number: int) -> None:
    generator = np.random.default_rng(number)
    polygons = generator.uniform(-8, 24, (1 + number % 3, 12)).tolist()
    mask = generator.random((1, HEIGHT, WIDTH)) < 0.3
    polygons_too = [SQUARE, polygons, rle(encode_masks(mask)[0].decode())]
    for segmentation in polygons_too:
        reference = ReferenceCOCO()
        reference.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
        expected: Any = reference.annToRLE({"image_id": 1, "segmentation": segmentation})
        code = read_segmentation(segmentation, HEIGHT, WIDTH).code
        counts = expected["counts"]
        assert code == (counts.encode() if isinstance(counts, str) else counts)


def test_empty_runs_within_an_rle_change_nothing() -> None:
    runs = [0, 0, 30, 7, 0, 5, 20, 0, 0, HEIGHT * WIDTH - 62, 0]
    code = read_segmentation(rle(runs), HEIGHT, WIDTH).code
    flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    assert np.array_equal(decode_masks([code], HEIGHT, WIDTH)[0].numpy().T.ravel(), flat)
    assert code == encode_masks(flat.reshape(1, WIDTH, HEIGHT).transpose(0, 2, 1))[0]


@pytest.mark.timeout(7200)  # of the long search; the short one takes seconds
def test_no_content_makes_the_reader_fail_or_read_twice_differently() -> None:
    done = subprocess.run(
        [sys.executable, coco_sets.__file__, str(EXAMPLES)],
        capture_output=True, text=True, check=False, timeout=7000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = [int(word) for word in done.stdout.split() if word.isdigit()]
    examples, accepted, refused = numbers[:3]
    assert examples >= EXAMPLES
    assert min(accepted, refused) > examples / 5


def test_what_is_no_image_beside_the_images_is_noted_and_a_dangling_link_is_a_bad_image(
    folder: Path,
) -> None:
    (folder / "train2017/Thumbs.db").write_bytes(b"thumbs")
    (folder / "val2017/readme.txt").write_bytes(b"text")
    manifest = pack(folder)
    assert manifest.counts == {"train": 2, "test": 2}
    assert manifest.notes == (
        "1 file that is no image was left out, the first train2017/Thumbs.db.",
        "1 file that is no image was left out, the first val2017/readme.txt.",
    )
    (folder / "train2017/c.png").symlink_to("gone.png")
    with pytest.raises(InputError, match=r"train2017/c.png: is a link to gone.png, which does not"):
        pack(folder)
