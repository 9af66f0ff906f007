"""ADE20K's official layout: images and semantic maps."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from asl_core.data.samples import IGNORED_LABEL
from asl_core.data.sources.files import (
    item_or_rejected,
    read_json,
    require_folder,
    visible_files,
)
from asl_core.data.sources.source import Item, Rejected, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Ade20k

_NEEDED = "an ade20k source has images/ and annotations/, each with training/ and validation/"
_FOLDERS: dict[SplitName, str] = {"train": "training", "test": "validation"}
_SCENE_PARSE_CLASSES = 150


def open_ade20k(recipe: Ade20k, data_root: Path) -> Source:
    """Return the source: label 0 becomes 255 (ignored), 1..K become 0..K-1.

    Raises:
        InputError: A folder is missing or empty, or classes.json is broken.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    classes = _class_names(folder / "classes.json")
    splits: dict[SplitName, Split] = {}
    for split, name in _FOLDERS.items():
        images = visible_files(require_folder(folder / "images" / name, _NEEDED))
        maps = require_folder(folder / "annotations" / name, _NEEDED)
        splits[split] = Split(len(images), partial(_items, images, maps, len(classes)))
    return Source(
        splits=splits,
        licence="images: see where they come from (ADE20K: research and education, no commerce)",
        semantic_classes=classes,
    )


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the names in {"1": name, ...} or [name, ...]; without the file, "1" to "150"."""
    if not path.exists():
        return tuple(str(label) for label in range(1, _SCENE_PARSE_CLASSES + 1))
    content: Any = read_json(path)
    if isinstance(content, dict):
        content = [content.get(str(label + 1)) for label in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(n, str) for n in content):
        raise InputError(f'{path} is neither {{"1": name, "2": name, ...}} nor a list of names')
    if len(content) >= IGNORED_LABEL:
        raise InputError(f"{path} has {len(content)} classes; a map of bytes holds at most 254")
    return tuple(content)


def _items(images: list[Path], maps: Path, num_classes: int) -> Iterator[Item | Rejected]:
    for number, path in enumerate(images):
        name = f"images/{maps.name}/{path.name}"
        yield item_or_rejected(name, partial(_item, name, number, path, maps, num_classes))


def _item(name: str, number: int, path: Path, maps: Path, num_classes: int) -> Item:
    semantic = _read_map(maps / f"{path.stem}.png", num_classes)
    file = io.BytesIO()
    Image.fromarray(semantic).save(file, format="PNG")
    height, width = semantic.shape
    return Item(
        name=name,
        image_id=number,
        image=path.read_bytes(),
        size=(height, width),
        semantic=file.getvalue(),
    )


def _read_map(path: Path, num_classes: int) -> np.ndarray:
    """Return the map with 0 moved to 255 and the rest down by one, (H, W), uint8.

    255, with which others mark what nobody labelled, stays.
    """
    if not path.is_file():
        raise ValueError(f"no semantic map {path.name}")
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise ValueError(f"semantic map {path.name} has mode {picture.mode}, not bytes")
            labels = np.asarray(picture)
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        raise ValueError(f"semantic map {path.name} is unreadable: {error}") from error
    unlabelled = labels == IGNORED_LABEL
    largest = labels.max(where=~unlabelled, initial=0)
    if largest > num_classes:
        raise ValueError(
            f"semantic map {path.name} has label {largest}, but there are {num_classes} "
            "classes; name them in classes.json"
        )
    return np.where(unlabelled, labels, labels - np.uint8(1))  # wraps 0 to 255
