"""Scenes: several digits of different sizes on a photograph, partly hiding each other."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from asl_core.data.masks import encode_masks, tight_boxes
from asl_core.data.sources import digits
from asl_core.data.sources.source import EncodedInstances, Item, Source, Split, SplitName
from asl_core.randomness import numpy_generator
from asl_core.recipes.datasets import Scenes

_SMALLEST, _LARGEST = 0.25, 0.6  # side of an object as a share of the image's
_MIN_VISIBLE = 0.5  # share of each object that stays visible
_ATTEMPTS = 20  # positions tried for one object; an object without a place is left out


def open_scenes(recipe: Scenes, _data_root: Path) -> Source:
    """Return the source; nothing is drawn before its items are asked for, no file is read."""
    return Source(
        splits={
            "train": Split(recipe.train, lambda: _draw_split(recipe, "train", recipe.train)),
            "test": Split(recipe.test, lambda: _draw_split(recipe, "test", recipe.test)),
        },
        licence=digits.LICENCE,
        thing_classes=digits.DIGIT_NAMES,
        semantic_classes=("background", *digits.DIGIT_NAMES),
        notes=("Composed from scikit-learn's digits and photographs.",),
    )


def _draw_split(recipe: Scenes, split: SplitName, count: int) -> Iterator[Item]:
    for number in range(count):
        yield _draw_scene(recipe, split, number)


def _draw_scene(recipe: Scenes, split: SplitName, number: int) -> Item:
    rng = numpy_generator(recipe.seed, f"scenes/{split}", number)
    material = digits.material(split)
    canvas = digits.draw_background(rng, material.photographs, recipe.image_size)
    labels, visible = [], np.zeros((0, recipe.image_size, recipe.image_size), dtype=bool)
    whole: list[int] = []  # pixels of each object before others hid it
    # Large ones first: what comes later lies in front, and a large object hides small ones whole.
    for size in _draw_sizes(rng, recipe):
        label = int(rng.integers(10))
        ink = digits.draw_ink(rng, material.digits[label], size)
        mask = digits.ink_mask(ink)
        position = _find_place(rng, mask, visible, whole)
        if position is None:
            continue
        x, y = position
        digits.paint(rng, canvas, ink, x, y)
        visible = _put_in_front(visible, mask, x, y)
        labels.append(label)
        whole.append(int(mask.sum()))
    return Item(
        name=f"{split}/{number}",
        image_id=number,
        image=digits.encode_picture(canvas),
        size=(recipe.image_size, recipe.image_size),
        instances=_instances(visible, labels),
        semantic=_semantic_png(visible, labels),
    )


def _draw_sizes(rng: np.random.Generator, recipe: Scenes) -> list[int]:
    fewest, most = recipe.objects
    count = int(rng.integers(fewest, most + 1))
    shares = rng.uniform(_SMALLEST, _LARGEST, size=count)
    return sorted((round(share * recipe.image_size) for share in shares), reverse=True)


def _find_place(
    rng: np.random.Generator,
    mask: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    whole: list[int],
) -> tuple[int, int] | None:
    """Return (x, y) at which the mask leaves enough of every object visible, or None."""
    if not mask.any():
        return None
    size, room = len(mask), visible.shape[1] - len(mask) + 1
    remaining = visible.sum(axis=(1, 2))  # (K,)
    for x, y in rng.integers(room, size=(_ATTEMPTS, 2)):
        hidden = (visible[:, y : y + size, x : x + size] & mask).sum(axis=(1, 2))  # (K,)
        if np.all(remaining - hidden >= _MIN_VISIBLE * np.array(whole)):
            return int(x), int(y)
    return None


def _put_in_front(
    visible: NDArray[np.bool_], mask: NDArray[np.bool_], x: int, y: int
) -> NDArray[np.bool_]:
    """Return the visible masks, (K + 1, S, S), after one more object."""
    placed = np.zeros((1, *visible.shape[1:]), dtype=bool)
    placed[0, y : y + len(mask), x : x + len(mask)] = mask
    return np.concatenate([visible & ~placed, placed])


def _instances(visible: NDArray[np.bool_], labels: list[int]) -> EncodedInstances:
    corners = tight_boxes(visible).astype(np.float64)  # (K, 4)
    return EncodedInstances(
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        labels=np.array(labels, dtype=np.int64),
        areas=visible.sum(axis=(1, 2)).astype(np.float64),
        crowd=np.zeros(len(labels), dtype=bool),
        codes=encode_masks(visible),
    )


def _semantic_png(visible: NDArray[np.bool_], labels: list[int]) -> bytes:
    """Return the map 0 = background, 1 + digit elsewhere; visible masks do not overlap."""
    classes = np.array(labels, dtype=np.uint8) + 1
    semantic = (visible * classes[:, None, None]).sum(axis=0).astype(np.uint8)  # (S, S)
    file = io.BytesIO()
    Image.fromarray(semantic).save(file, format="PNG")
    return file.getvalue()
