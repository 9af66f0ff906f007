"""Which test images pictures show: the same for every encoder, whatever its recipe."""

import numpy as np

from asl_core.analysis.tokens import spread
from asl_core.randomness import numpy_generator


def pictured_images(count: int, total: int) -> list[int]:
    """Return `count` of `total` images, or all, evenly spread and in their order."""
    return sorted(spread(min(count, total), total))


def compared_images(pictured: list[int], count: int, total: int) -> list[int]:
    """Return `count` of `total` images, or all: the pictured ones, then others at random.

    By no seed of a recipe: all encoders are compared on the same images. Fewer are the first of
    more.
    """
    others = np.setdiff1d(np.arange(total), pictured)
    drawn = numpy_generator(0, "pictures").permutation(others)
    return [*pictured, *drawn.tolist()][: max(count, len(pictured))]
