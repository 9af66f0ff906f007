"""COCO's official layout: images with boxes, instance masks and crowd regions."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asl_core.data.masks import segmentation_to_rle
from asl_core.data.sources.files import (
    item_or_rejected,
    read_json,
    require_folder,
    visible_files,
)
from asl_core.data.sources.source import EncodedInstances, Item, Rejected, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Coco

_NEEDED = "a coco source has train2017/, val2017/ and annotations/instances_*2017.json"
_FOLDERS: dict[SplitName, str] = {"train": "train2017", "test": "val2017"}
_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation"),
    "categories": ("id", "name"),
}


def open_coco(recipe: Coco, data_root: Path) -> Source:
    """Return the source; category ids become contiguous labels in order of id.

    Files of train2017 that the JSON does not name join the training split for pre-training;
    those of val2017 are left out. If the recipe says so, all pictures of val2017 join it likewise;
    the test split is then empty.

    Raises:
        InputError: A folder or file is missing or empty, a JSON file is broken, or names images
            that are not there.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    splits: dict[SplitName, Split] = {}
    notes: list[str] = []
    names: dict[SplitName, dict[int, str]] = {}
    licence = ""
    for split, images in _FOLDERS.items():
        image_folder = require_folder(folder / images, _NEEDED)
        json_path = folder / "annotations" / f"instances_{images}.json"
        content = _read_annotations(json_path)
        names[split] = {entry["id"]: entry["name"] for entry in content["categories"]}
        unlisted = _compare_files(image_folder, json_path, content["images"])
        used = list(unlisted) if split == "train" else []
        if unlisted:
            kept = split == "train" or recipe.val_joins_training
            fate = "serve pre-training only" if kept else "are not used"
            notes.append(f"{len(unlisted)} images of {images} are not in {json_path.name}: {fate}.")
        if split == "train" and recipe.val_joins_training:
            val = visible_files(require_folder(folder / _FOLDERS["test"], _NEEDED))
            notes.append(f"{len(val)} images of val2017 are pre-trained on: no test set any more.")
            used += val
        count = len(content["images"]) + len(used)
        splits[split] = Split(count, partial(_items, image_folder, content, used))
        if split == "test" and recipe.val_joins_training:
            splits[split] = Split(0, lambda: iter(()))
        licence = licence or _licence(content)
    if names["train"] != names["test"]:
        raise InputError(f"{folder}: the two JSON files list different categories; use one release")
    things = tuple(name for _, name in sorted(names["train"].items()))
    return Source(splits=splits, licence=licence, thing_classes=things, notes=tuple(notes))


def _read_annotations(path: Path) -> dict[str, Any]:
    """Return the content of an instances file whose entries are complete and consistent."""
    content = read_json(path)
    for kind, keys in _KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise InputError(f"{path} has no list {kind!r}; it is not a COCO instances file")
        for number, entry in enumerate(content[kind]):
            absent = [key for key in keys if key not in entry]
            if absent:
                raise InputError(f"{path}: {kind}[{number}] has no {absent[0]!r}; restore the file")
    for key, kind in (("category_id", "categories"), ("image_id", "images")):
        known = {entry["id"] for entry in content[kind]}
        strays = [entry for entry in content["annotations"] if entry[key] not in known]
        if strays:
            raise InputError(
                f"{path}: {len(strays)} annotations have a {key} that is not listed, the first "
                f"is annotation {strays[0]['id']} with {strays[0][key]}; restore the file"
            )
    return content


def _licence(content: dict[str, Any]) -> str:
    names = sorted({entry["name"] for entry in content.get("licenses", ()) if entry.get("name")})
    return (
        "each image its own: " + ", ".join(names) if names else "see cocodataset.org, each its own"
    )


def _compare_files(folder: Path, json_path: Path, images: list[dict[str, Any]]) -> list[Path]:
    """Return the files of the folder that the JSON does not name.

    Raises:
        InputError: The JSON names images that are not in the folder.
    """
    files = {path.name: path for path in visible_files(folder)}
    listed = [entry["file_name"] for entry in images]
    missing = [name for name in listed if name not in files]
    if missing:
        raise InputError(
            f"{json_path} names {len(missing)} images that are not in {folder}, "
            f"the first {missing[0]}; restore them or use the matching JSON"
        )
    return [files[name] for name in sorted(files.keys() - set(listed))]


def _items(
    folder: Path, content: dict[str, Any], unlisted: list[Path]
) -> Iterator[Item | Rejected]:
    labels = {
        category: label
        for label, category in enumerate(sorted(entry["id"] for entry in content["categories"]))
    }
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    for entry in content["images"]:
        name = f"{folder.name}/{entry['file_name']}"
        build = partial(_annotated_item, name, folder, entry, of_image[entry["id"]], labels)
        yield item_or_rejected(name, build)
    free_id = 1 + max((entry["id"] for entry in content["images"]), default=0)
    for number, path in enumerate(unlisted):
        name = f"{path.parent.name}/{path.name}"
        yield item_or_rejected(name, partial(_plain_item, name, free_id + number, path))


def _plain_item(name: str, image_id: int, path: Path) -> Item:
    return Item(name=name, image_id=image_id, image=path.read_bytes(), annotated=False)


def _annotated_item(
    name: str,
    folder: Path,
    entry: dict[str, Any],
    annotations: list[dict[str, Any]],
    labels: dict[int, int],
) -> Item:
    height, width = entry["height"], entry["width"]
    return Item(
        name=name,
        image_id=entry["id"],
        image=(folder / entry["file_name"]).read_bytes(),
        size=(height, width),
        instances=EncodedInstances(
            boxes=np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
            labels=np.array([labels[a["category_id"]] for a in annotations], dtype=np.int64),
            areas=np.array([a["area"] for a in annotations], dtype=np.float64),
            crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            codes=tuple(_code(annotation, height, width) for annotation in annotations),
        ),
    )


def _code(annotation: dict[str, Any], height: int, width: int) -> bytes:
    try:
        return segmentation_to_rle(annotation["segmentation"], height, width)
    except ValueError as error:
        raise ValueError(f"segmentation of annotation {annotation['id']}: {error}") from error
