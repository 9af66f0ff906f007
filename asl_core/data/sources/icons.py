"""Icons: one centred digit on a photograph, and its class."""

from collections.abc import Iterator
from pathlib import Path

from asl_core.data.sources import digits
from asl_core.data.sources.source import Item, Source, Split, SplitName
from asl_core.randomness import numpy_generator
from asl_core.recipes.datasets import Icons

_SMALLEST, _LARGEST = 0.6, 0.9  # side of the object as a share of the image's


def open_icons(recipe: Icons, _data_root: Path) -> Source:
    """Return the source; nothing is drawn before its items are asked for, no file is read."""
    return Source(
        splits={
            "train": Split(recipe.train, lambda: _draw_split(recipe, "train", recipe.train)),
            "test": Split(recipe.test, lambda: _draw_split(recipe, "test", recipe.test)),
        },
        licence=digits.LICENCE,
        classes=digits.DIGIT_NAMES,
        notes=("Composed from scikit-learn's digits and photographs.",),
    )


def _draw_split(recipe: Icons, split: SplitName, count: int) -> Iterator[Item]:
    material = digits.material(split)
    for number in range(count):
        rng = numpy_generator(recipe.seed, f"icons/{split}", number)
        canvas = digits.draw_background(rng, material.photographs, recipe.image_size)
        label = int(rng.integers(10))
        size = round(rng.uniform(_SMALLEST, _LARGEST) * recipe.image_size)
        ink = digits.draw_ink(rng, material.digits[label], size)
        corner = (recipe.image_size - size) // 2
        digits.paint(rng, canvas, ink, corner, corner)
        yield Item(
            name=f"{split}/{number}",
            image_id=number,
            image=digits.encode_picture(canvas),
            label=label,
        )
