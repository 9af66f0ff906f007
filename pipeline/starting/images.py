"""What lies in a folder of images, seen from outside: how many, how large, in class folders or not.

A look, not a check: the stage `prepare` opens every file and says what cannot be used.
"""

import io
import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.errors import UserError

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif",
     ".tiff", ".webp")
)  # fmt: skip
"""What the names of images end in."""
_SPLITS = ("train", "val")
_SAMPLED, _DECODED = 300, 24
_LEAST_OF_A_CLASS = 5
_LEAST_IMAGES = 64
_LARGEST_DECODED = 2**25
"""Pixels of an image that is decoded for its time alone."""


@dataclass(frozen=True)
class Look:
    """What a folder has.

    Attributes:
        folder: Where it is.
        count: Files that their names say are images.
        short_side, long_side: Medians of a sample, in pixels.
        one_size: Whether all of the sample have the same size.
        unreadable: Of the sample, those whose first bytes say nothing.
        sampled: How many that were.
        classes: Images of each class, by its folder; none where there are no class folders.
        tested: Of ImageNet's layout, train/<class> and val/<class>, the images in `val`; None: the
            folder has another.
        files: Some of the images, spread over all.
    """

    folder: Path
    count: int
    short_side: int
    long_side: int
    one_size: bool
    unreadable: int
    sampled: int
    classes: dict[str, int]
    tested: int | None
    files: tuple[Path, ...]

    @property
    def is_split(self) -> bool:
        """Whether the images come divided."""
        return self.tested is not None


def look_at(folder: Path, option: str, on_progress: Callable[[int], None]) -> Look:
    """Walk through a folder and open the headers of a sample.

    Args:
        folder: Where images lie, at any depth; links are followed, each folder once.
        option: That named it, for messages.
        on_progress: Called with the number of images found so far.

    Raises:
        UserError: It is no folder, cannot be read, or has too few images.
    """
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise UserError(f"{option} {folder}: {what}; give the folder that the images are in")
    files = _files(folder, on_progress)
    by_top = Counter(name.partition("/")[0] if "/" in name else "" for name in files)
    if len(files) < _LEAST_IMAGES:
        raise UserError(
            f"{option} {folder}: {len(files)} images found at any depth, at least {_LEAST_IMAGES} "
            "are wanted; formats are JPEG, PNG, WebP, AVIF, HEIC, BMP, TIFF and GIF"
        )
    step = max(1, len(files) // _SAMPLED)
    sample = [folder / name for name in files[::step][:_SAMPLED]]
    sizes = [size for size in map(size_of, sample) if size is not None]
    if not sizes:
        raise UserError(f"{option} {folder}: none of {len(sample)} images tried can be opened")
    is_split = set(by_top) == set(_SPLITS) and all(
        len(classes_of(files, f"{name}/")) > 1 for name in _SPLITS
    )
    return Look(
        folder=folder,
        count=len(files),
        short_side=round(statistics.median(min(size) for size in sizes)),
        long_side=round(statistics.median(max(size) for size in sizes)),
        one_size=len(set(sizes)) == 1,
        unreadable=len(sample) - len(sizes),
        sampled=len(sample),
        classes=classes_of(files, f"{_SPLITS[0]}/" if is_split else ""),
        tested=by_top[_SPLITS[1]] if is_split else None,
        files=tuple(sample),
    )


def classes_of(files: Sequence[str], below: str) -> dict[str, int]:
    """Return images by class folder; none where the folders do not look like classes.

    They do where no image lies beside them, there are two or more, and each has five or more.

    Args:
        files: Paths with / between.
        below: What those begin with that count: `train/`, or nothing.
    """
    counts: Counter[str] = Counter()
    for file in files:
        if file.startswith(below):
            name, slash, _ = file[len(below) :].partition("/")
            if not slash:
                return {}
            counts[name] += 1
    if len(counts) < 2 or min(counts.values()) < _LEAST_OF_A_CLASS:
        return {}
    return dict(sorted(counts.items()))


def size_of(file: Path) -> tuple[int, int] | None:
    """Return width and height as the first bytes of a file have them; None where they do not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images that are very large
            with Image.open(file) as image:
                return image.size
    except Exception:  # whatever a decoder may raise on a broken file
        return None


def all_of_one_size(folder: Path, size: tuple[int, int]) -> bool:
    """Say whether every image of a folder that can be opened has a size."""
    found = (size_of(folder / name) for name in _files(folder, lambda _: None))
    return all(each in (None, size) for each in found)


@dataclass(frozen=True)
class Handling:
    """What an image takes one core, in seconds.

    Attributes:
        packing: Reading it, and encoding it again where it is larger than `max_side`.
        loading: Decoding it as it was packed, and cropping it.
    """

    packing: float
    loading: float


def handling_of(files: Sequence[Path], max_side: int | None, side: int) -> Handling:
    """Time what happens to some images, by a library that is about as fast as the loader's.

    Args:
        files: Images.
        max_side: Larger ones are made as small, by their longer side; None: as they are.
        side: Of the crops.
    """
    packing, loading = [], []
    for file in files[:: max(1, len(files) // _DECODED)][:_DECODED]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                started = time.perf_counter()
                content = file.read_bytes()
                with Image.open(io.BytesIO(content)) as image:
                    if image.size[0] * image.size[1] > _LARGEST_DECODED:
                        continue
                    pixels = image.convert("RGB")
                if max_side is not None and max(pixels.size) > max_side:
                    pixels.thumbnail((max_side, max_side))
                    small = io.BytesIO()
                    pixels.save(small, "JPEG", quality=95)
                    content = small.getvalue()
                packed = time.perf_counter()
                with Image.open(io.BytesIO(content)) as image:
                    image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                packing.append(packed - started)
                loading.append(time.perf_counter() - packed)
        except Exception:  # a broken image: packing will say so
            continue
    if not packing:
        return Handling(0.01, 0.01)
    return Handling(statistics.fmean(packing), statistics.fmean(loading))


def _files(folder: Path, on_progress: Callable[[int], None]) -> list[str]:
    """Return the images below a folder, as seen from it; hidden files and folders are left out."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable")

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if parent == str(folder) else f"{parent[len(str(folder)) :].lstrip('/')}/"
        found += [
            f"{below}{name}"
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
        on_progress(len(found))
    return found
