"""Small data sets in COCO's layout, and a search for JSON that their reader does not stand.

Run as a program it searches, within a limit of memory: `coco_sets.py EXAMPLES`.
"""

import io
import json
import logging
import resource
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from asl_core.data.manifest import Manifest
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.recipes.datasets import Coco
from asl_core.transfer.detection.evaluate import score

HEIGHT, WIDTH = 12, 16
IMAGES = ("a.png", "b.png")
SQUARE = [[2, 3, 9, 3, 9, 8, 2, 8]]
"""A polygon around 7 x 5 pixels; its box is [2, 3, 7, 5]."""


def picture(number: int, height: int = HEIGHT, width: int = WIDTH, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def annotation(number: int, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a sound annotation but for the changes; `...` takes a key away."""
    made = {
        "id": number, "image_id": image_id, "category_id": 3, "bbox": [2, 3, 7, 5], "area": 35,
        "iscrowd": 0, "segmentation": deepcopy(SQUARE),
    } | changes  # fmt: skip
    return {key: value for key, value in made.items() if value is not ...}


def good() -> dict[str, Any]:
    """Return the content of a sound file: two images, four objects in all three forms."""
    runs = [3 + 2 * HEIGHT, *[5, HEIGHT - 5] * 6, 5, WIDTH * HEIGHT - 9 * HEIGHT + 4]
    compressed = "k05700000000000a2"  # the same runs
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate(IMAGES, start=1)
    ]
    return {
        "images": images,
        "annotations": [
            annotation(11), annotation(12, segmentation={"size": [12, 16], "counts": runs}),
            annotation(13, 2, segmentation={"size": [12, 16], "counts": compressed}),
            annotation(14, 2, category_id=5, iscrowd=1),
        ],
        "categories": [{"id": 5, "name": "bee"}, {"id": 3, "name": "ant"}],
        "licenses": [{"id": 1, "name": "CC0"}],
    }  # fmt: skip


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


FAR = [[-1e9, 3, 1e9, 3, 9, 8]]
ZIGZAG = [[c for i in range(200) for c in (0, i % 3, 1e4 * (i % 2), 5)]]

UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "too few runs": ({"segmentation": rle([100, 50])}, "do not add up to the image"),
    "too many runs": ({"segmentation": rle([100, 500])}, "longer than the image"),
    "runs of another total": ({"segmentation": rle([100, 90, 90])}, "do not add up"),
    "a negative run": ({"segmentation": rle([200, -8])}, "longer than the image"),
    "no runs": ({"segmentation": rle([])}, "do not add up"),
    "runs as texts": ({"segmentation": rle(["100", "92"])}, "no whole number"),
    "runs that are true": ({"segmentation": rle([191, True])}, "no whole number"),
    "fractions of runs": ({"segmentation": rle([100.0, 92.0])}, "no whole number"),
    "a huge run": ({"segmentation": rle([10**30])}, "no whole number"),
    "counts that are null": ({"segmentation": rle(None)}, "neither a list nor a string"),
    "a string of another total": ({"segmentation": rle("05:0")}, "do not add up"),
    "an empty string": ({"segmentation": rle("")}, "characters that no RLE has"),
    "a string that is cut off": ({"segmentation": rle("k05700P")}, "is cut off"),
    "a run without end": ({"segmentation": rle("P" * 80 + "0")}, "is cut off"),
    "a string of other characters": ({"segmentation": rle("a b c")}, "characters that no RLE"),
    "a string that is no ASCII": ({"segmentation": rle("k0\ud800\u00e9")}, "characters that no"),
    "a string of a negative run": ({"segmentation": rle("O0")}, "is negative"),
    "no size": ({"segmentation": {"counts": [192]}}, "no size of two whole numbers"),
    "a size of texts": ({"segmentation": rle([192], ["12", "16"])}, "no size of two whole"),
    "a size of three": ({"segmentation": rle([192], [12, 16, 3])}, "no size of two whole"),
    "an RLE of nothing": ({"segmentation": rle([192])}, "its mask has no pixel"),
    "an empty polygon": ({"segmentation": [[]]}, "fewer than three points"),
    "a box as polygon": ({"segmentation": [[5, 10, 21, 40]]}, "fewer than three points"),
    "half a point": ({"segmentation": [[1, 1, 5, 1, 5, 5, 1]]}, "an odd number of coordinates"),
    "a text in a polygon": ({"segmentation": [[1, 1, 5, 1, 5, "5"]]}, "no finite number"),
    "null in a polygon": ({"segmentation": [[1, 1, 5, 1, 5, None]]}, "no finite number"),
    "true in a polygon": ({"segmentation": [[1, 1, 5, 1, 5, True]]}, "no finite number"),
    "nan in a polygon": ({"segmentation": [[1, 1, 5, 1, 5, float("nan")]]}, "no finite number"),
    "inf in a polygon": ({"segmentation": [[1, 1, 5, 1, 5, float("inf")]]}, "no finite number"),
    "a number beyond floats": ({"segmentation": [[1, 1, 5, 1, 5, 10**400]]}, "no finite number"),
    "points that are lists": ({"segmentation": [[[1, 1], [5, 1], [5, 5]] * 2]}, "no finite number"),
    "one polygon, not a list": ({"segmentation": [1, 1, 5, 1, 5, 5]}, "no list of coordinates"),
    "an object for a polygon": ({"segmentation": [rle([192])]}, "no list of coordinates"),
    "far coordinates": ({"segmentation": FAR}, "an outline of more than"),
    "coordinates near the end": (
        {"segmentation": [[0, 0, 1e308, -1e308, 5, 5]]},
        "an outline of more than",
    ),
    "a very long outline": ({"segmentation": ZIGZAG}, "an outline of more than"),
    "far away": ({"segmentation": [[1e9, 1e9, 1e9 + 5, 1e9, 1e9, 1e9 + 5]]}, "outside of the"),
    "beside the image": ({"segmentation": [[17, 3, 20, 3, 20, 8]]}, "outside of the image"),
    "a polygon on a line": ({"segmentation": [[2, 2, 5, 2, 9, 2]]}, "its mask has no pixel"),
    "no segmentation": ({"segmentation": ...}, "neither polygons nor an RLE"),
    "segmentation null": ({"segmentation": None}, "neither polygons nor an RLE"),
    "segmentation empty": ({"segmentation": []}, "neither polygons nor an RLE"),
    "segmentation a text": ({"segmentation": "k0"}, "neither polygons nor an RLE"),
    "segmentation a number": ({"segmentation": 7}, "neither polygons nor an RLE"),
    "no bbox": ({"bbox": ...}, "not four finite numbers"),
    "bbox null": ({"bbox": None}, "not four finite numbers"),
    "bbox of three": ({"bbox": [2, 3, 7]}, "not four finite numbers"),
    "bbox of five": ({"bbox": [2, 3, 7, 5, 1]}, "not four finite numbers"),
    "bbox of texts": ({"bbox": ["2", "3", "7", "5"]}, "not four finite numbers"),
    "bbox nested": ({"bbox": [[2, 3, 7, 5]]}, "not four finite numbers"),
    "bbox with nan": ({"bbox": [2, 3, float("nan"), 5]}, "not four finite numbers"),
    "bbox with inf": ({"bbox": [2, 3, float("inf"), 5]}, "not four finite numbers"),
    "bbox with a huge number": ({"bbox": [2, 3, 10**400, 5]}, "not four finite numbers"),
    "bbox with true": ({"bbox": [2, 3, True, 5]}, "not four finite numbers"),
    "a negative side": ({"bbox": [9, 8, -7, 5]}, "a side of its bbox is not positive"),
    "a side of zero": ({"bbox": [2, 3, 7, 0]}, "a side of its bbox is not positive"),
    "a box out of bounds": ({"bbox": [2, 3, 1e300, 5]}, "out of all bounds"),
    "no area": ({"area": ...}, "its area is no number"),
    "area null": ({"area": None}, "its area is no number"),
    "area a text": ({"area": "35"}, "its area is no number"),
    "area negative": ({"area": -35}, "its area is no number"),
    "area nan": ({"area": float("nan")}, "its area is no number"),
    "area beyond COCO's": ({"area": 1e11}, "its area is no number"),
}
"""Changes with which an annotation cannot be used, and words of the reason."""


def put_images(folder: Path) -> None:
    """Write the pictures of both splits."""
    for split in ("train2017", "val2017"):
        (folder / split).mkdir(parents=True)
        for number, name in enumerate(IMAGES):
            own = number + len(IMAGES) * (split == "val2017")
            (folder / split / name).write_bytes(picture(own))
    (folder / "annotations").mkdir()


def put_json(folder: Path, content: Any, *splits: str) -> None:
    """Write what annotates these splits, or both; bytes go as they are."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    for split in splits or ("train2017", "val2017"):
        (folder / f"annotations/instances_{split}.json").write_bytes(text)


def pack(folder: Path) -> Manifest:
    return prepare(Coco(path="."), folder, folder / "packed", name="toy")


def read(folder: Path) -> list[torch.Tensor]:
    """Return every mask and box of both splits."""
    datasets = (PackedDataset(folder / "packed", split) for split in ("train", "test"))
    objects = [sample.instances for dataset in datasets for sample in dataset]
    return [tensor for each in objects if each is not None for tensor in (each.masks, each.boxes)]


def check(folder: Path) -> bool:
    """Pack, read twice with other memory in between, and score the truth as detections.

    Returns:
        Whether the data set was accepted.
    """
    refusal = None
    try:
        pack(folder)
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        return False
    once = read(folder)
    spoilt = [torch.full((HEIGHT * WIDTH,), 0xA5, dtype=torch.uint8) for _ in range(64)]
    del spoilt
    for one, other in zip(once, read(folder), strict=True):
        assert torch.equal(one, other)
    truth = PackedDataset(folder / "packed", "test").coco_ground_truth()
    kept = [a for a in truth["annotations"] if not a["iscrowd"]]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = [{key: a[key] for key in keys} | {"score": 0.9} for a in kept]
    for kind in ("bbox", "segm"):
        if found:
            scores = score(truth, found, kind)
            assert min(scores.average) > 100 - 1e-6, (kind, scores)
    return True


NUMBERS = st.one_of(
    st.integers(-3, 20), st.integers(), st.floats(), st.floats(-5, 25),
    st.sampled_from([0, 1, -1, 2**31, 2**32 - 1, 2**53, 2**63, 10**30, 1e9, -1e9, 1e300, 1e-310]),
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from([*IMAGES, "ant", "7", "..", "/a.png", ""]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
RUNS = st.lists(st.integers(0, 60) | NUMBERS, max_size=9)
CHARACTERS = st.text(st.characters(min_codepoint=45, max_codepoint=115), max_size=20)
SIZES = st.sampled_from([[HEIGHT, WIDTH]] * 6 + [[WIDTH, HEIGHT], [12.0, 16], ["12", 16], 12, None])
SEGMENTATIONS = st.one_of(
    st.lists(st.lists(NUMBERS, max_size=12), max_size=4),
    st.lists(st.lists(st.floats(-5, 25), min_size=6, max_size=12), max_size=3),
    st.fixed_dictionaries({"size": SIZES, "counts": RUNS | CHARACTERS | VALUES}),
    # runs that do add up, whatever they are
    st.lists(st.integers(0, 30), min_size=1, max_size=8).map(
        lambda runs: {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - sum(runs)]}
    ),
)
BOXES = st.lists(NUMBERS, min_size=3, max_size=5)


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything in a JSON value."""
    if not isinstance(value, dict | list):
        return []
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    own: list[tuple[Any, Any]] = [(value, key) for key in keys]
    return own + [node for key in keys for node in nodes(value[key])]


@st.composite
def contents(draw: st.DrawFn) -> Any:
    """Draw a sound file with a few faults in it."""
    content = good()
    for each in content["annotations"]:
        if draw(st.integers(0, 2)) == 0:
            each["segmentation"] = deepcopy(draw(SEGMENTATIONS))
        if draw(st.integers(0, 5)) == 0:
            each["bbox"] = deepcopy(draw(BOXES))
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(nodes(content)))
        action = draw(st.sampled_from(["replace", "replace", "remove", "wrap", "copy"]))
        if action == "replace":
            container[key] = deepcopy(draw(VALUES | NUMBERS))
        elif action == "remove":
            del container[key]
        elif action == "wrap":
            container[key] = [container[key]]
        elif isinstance(container, list):
            container.append(deepcopy(container[key]))
        if not nodes(content):
            break
    return content


def search(examples: int) -> str:
    """Look for content that is neither refused in a line nor read the same twice."""
    accepted = refused = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_images(folder)

        @seed(0)
        @settings(
            max_examples=examples, deadline=None, database=None, print_blob=False,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=[*HealthCheck],
        )  # fmt: skip
        @given(contents(), st.booleans())
        def reads_the_same_twice_or_is_refused(content: Any, only_test: bool) -> None:
            nonlocal accepted, refused
            put_json(folder, good())
            put_json(folder, content, *(["val2017"] if only_test else []))
            if check(folder):
                accepted += 1
            else:
                refused += 1

        reads_the_same_twice_or_is_refused()
    return f"{accepted + refused} examples, {accepted} accepted, {refused} refused"


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of addresses more, and no others."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    limit_memory(2**30)
    said = search(int(sys.argv[1]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"{said}, peak memory {memory:.0f} MiB\n")
