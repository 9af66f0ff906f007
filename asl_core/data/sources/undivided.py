"""Images without a split: side and order follow from the bytes of each image's file alone.

Every file is read twice, once for its digest by many threads, once to be packed. Only digests are
kept in memory, 32 bytes an image, and what the source itself has to know of it.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from asl_core.data.conversion import convert
from asl_core.data.sources.files import counted, item_or_rejected, shown
from asl_core.data.sources.source import Entry, Item, Rejected, Source, Split, SplitName, Unread
from asl_core.errors import InputError
from asl_core.recipes.undivided import Undivided

MAX_FILE_BYTES = 2**30
"""Of one image: a camera's largest have a tenth of that."""
_THREADS = 16
"""On a network filesystem opening a file is waiting."""
_TOGETHER = 16
"""Images that a thread is given at a time: handing over one takes longer than reading it."""
_NO_LABEL = -1

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Images that are there, before any is read.

    Attributes:
        count: How many.
        name: Position -> what a person would look for.
        read: Position -> the image's file; raises OSError or ValueError where there is none.
        labels: Class of each, -1 where it has none; (N,), int64.
        problems: Position -> why an image cannot be used, where that is known already.
        size: Bytes of all; 0 if that is not known.
        notes: What was left out, a sentence each.
    """

    count: int
    name: Callable[[int], str]
    read: Callable[[int], bytes]
    labels: NDArray[np.int64]
    problems: Mapping[int, str] = field(default_factory=dict)
    size: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Surveyed:
    """Images, all of which have been read once.

    Attributes:
        positions: Those that are packed, in the order of their digests; (M,).
        sides: Number in [0, 1) that decides on which side each is; (M,), float64.
        problems: Position -> why an image cannot be used.
        notes: On copies and labels.
    """

    positions: Positions
    sides: NDArray[np.float64]
    problems: Mapping[int, str]
    notes: tuple[str, ...]


def divide(recipe: Undivided, found: Found, classes: tuple[str, ...] | None, title: str) -> Source:
    """Return a source whose test split is a share of the images, the same for the same files.

    Args:
        recipe: Says which share.
        found: All images.
        classes: Names of labels; None: no labels.
        title: Of the source, for messages.

    Raises:
        InputError: There are no images, or so few that one of the splits gets none.
    """
    surveyed = _survey(recipe, found, classes, title)
    tested = surveyed.sides < recipe.holdout
    train, test = surveyed.positions[~tested], surveyed.positions[tested]
    if len(surveyed.positions) and recipe.holdout and not (len(train) and len(test)):
        raise InputError(
            f"{title}: of {counted(len(surveyed.positions), 'image')}, holdout {recipe.holdout:g} "
            f"leaves {len(test)} to test on and {len(train)} to train on; set it "
            f"{'higher' if len(train) else 'lower'}, or add images"
        )
    unusable = np.array(sorted(surveyed.problems), dtype=np.int64)
    splits: dict[SplitName, Split] = {
        "train": _split(recipe, found, np.concatenate([train, unusable]), surveyed),
        "test": _split(recipe, found, test, surveyed),
    }
    note = (
        f"No split of its own: {len(test)} of {counted(len(surveyed.positions), 'image')}, chosen "
        "by their content, are tested on."
    )
    return _source(splits, classes, (note, *found.notes, *surveyed.notes))


def keep_division(
    recipe: Undivided, train: Found, test: Found, classes: tuple[str, ...] | None, title: str
) -> Source:
    """Return a source of two splits that are there already.

    Raises:
        InputError: One of them has no image.
    """
    splits: dict[SplitName, Split] = {}
    notes: list[str] = []
    parts: tuple[tuple[SplitName, Found], ...] = (("train", train), ("test", test))
    for name, found in parts:
        surveyed = _survey(recipe, found, classes, f"{title} {name}")
        unusable = np.array(sorted(surveyed.problems), dtype=np.int64)
        positions = np.concatenate([surveyed.positions, unusable])
        splits[name] = _split(recipe, found, positions, surveyed)
        notes += [f"{name}: {note}" for note in (*found.notes, *surveyed.notes)]
    return _source(splits, classes, tuple(notes))


def numbered(
    labels: Sequence[str | None], declared: Collection[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class of each image, (N,), -1 where it has none, and the names of the classes.

    Classes are sorted, by their value where all names are whole numbers; an empty name is none.

    Args:
        labels: Name of each image's class.
        declared: Names that are classes even where no image has them.
    """
    distinct = {label for label in labels if label} | set(declared)
    numbers = all(name.isascii() and name.isdigit() for name in distinct)
    names = sorted(distinct, key=lambda name: (int(name) if numbers else 0, name))
    number = {name: position for position, name in enumerate(names)}
    found = [number.get(label, _NO_LABEL) if label else _NO_LABEL for label in labels]
    return np.array(found, dtype=np.int64), tuple(map(shown, names))


def _survey(
    recipe: Undivided, found: Found, classes: tuple[str, ...] | None, title: str
) -> _Surveyed:
    """Read all images once; leave out copies and images without a label, as the recipe says."""
    if not found.count:
        raise InputError(f"{title}: there is no image; correct the path, or what is left out of it")
    digests, problems = _read_digests(found, title)
    labels, notes = found.labels, []
    usable = np.ones(found.count, dtype=bool)
    usable[list(problems)] = False
    unlabelled = usable & (labels < 0)
    if classes is not None and unlabelled.any():
        first = found.name(int(unlabelled.argmax()))
        without = counted(int(unlabelled.sum()), "image has no label", "images have no label")
        dropped = recipe.unlabelled == "drop"
        were = "left out" if dropped else "kept, and evaluations with labels refuse them"
        notes.append(f"{without}, the first {first}: {were}.")
        if dropped:
            usable &= ~unlabelled
            if not usable.any():
                raise InputError(f"{title}: no image has a label; correct labels, or set them none")
    words = digests.view(">u8").reshape(found.count, 4)  # (N, 4)
    # of copies, that with a label comes first, and with the first class: never by name or place
    order = np.lexsort((labels, labels < 0, *words.T[::-1]))
    order = order[usable[order]]
    ordered = words[order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
    if again.any():
        notes.append(_copies_note(recipe, found, order, again))
    if recipe.duplicates == "drop":
        order, ordered = order[~again], ordered[~again]
    sides = ordered[:, 0].astype(np.float64) / 2.0**64
    return _Surveyed(order, sides, problems, tuple(notes))


def _copies_note(
    recipe: Undivided, found: Found, order: Positions, again: NDArray[np.bool_]
) -> str:
    first = int(again.argmax())
    dropped = recipe.duplicates == "drop"
    differ = int((found.labels[order][1:] != found.labels[order][:-1])[again[1:]].sum())
    copies = counted(int(again.sum()), "image is a copy", "images are copies")
    other = counted(differ, "of them has", "of them have") + " another label"
    return (
        f"{copies} of others, byte for byte, and {'left out' if dropped else 'kept'}; the first: "
        f"{found.name(int(order[first]))} of {found.name(int(order[first - 1]))}."
        f"{f' {other}.' if differ else ''}"
    )


def _read_digests(found: Found, title: str) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Return the SHA-256 of each image's file, (N, 32), and why some cannot be read."""
    digests = np.zeros((found.count, 32), dtype=np.uint8)
    problems = dict(found.problems)
    wanted = [position for position in range(found.count) if position not in problems]
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=len(wanted), desc=f"{title}: reading", unit="image", disable=None) as bar,
    ):
        parts = (wanted[start : start + _TOGETHER] for start in range(0, len(wanted), _TOGETHER))
        for part in pool.map(partial(_digests, found), parts):
            for position, digest in part:
                if isinstance(digest, str):
                    problems[position] = digest
                else:
                    digests[position] = np.frombuffer(digest, dtype=np.uint8)
            bar.update(len(part))
    return digests, problems


def _digests(found: Found, positions: Sequence[int]) -> list[tuple[int, bytes | str]]:
    return [(position, _digest(found, position)) for position in positions]


def _digest(found: Found, position: int) -> bytes | str:
    """Return the digest of an image's file, or why it cannot be read."""
    try:
        content = found.read(position)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return hashlib.sha256(content).digest() if content else "the file is empty"


def _split(recipe: Undivided, found: Found, positions: Positions, surveyed: _Surveyed) -> Split:
    problems = surveyed.problems
    share = len(positions) / found.count
    return Split(
        len(positions),
        partial(_items, recipe, found, positions, problems),
        rejected=tuple(
            Rejected(found.name(position), problems[position])
            for position in positions.tolist()
            if position in problems
        ),
        # what is made smaller takes a small part of that
        size=int(found.size * share) if recipe.max_side is None else 0,
    )


def _items(
    recipe: Undivided, found: Found, positions: Positions, problems: Mapping[int, str]
) -> Iterator[Entry]:
    for number, position in enumerate(positions.tolist()):
        name = found.name(position)
        if position in problems:
            yield Rejected(name, problems[position])
        else:
            build = partial(_item, recipe, found, name, number, position)
            yield Unread(name, partial(item_or_rejected, name, build))


def _item(recipe: Undivided, found: Found, name: str, number: int, position: int) -> Item:
    converted = convert(found.read(position), recipe.max_side, recipe.quality)
    label = int(found.labels[position])
    return Item(
        name=name,
        image_id=number,
        image=converted.content,
        label=None if label < 0 else label,
        converted=converted.done,
    )


def _source(
    splits: dict[SplitName, Split], classes: tuple[str, ...] | None, notes: tuple[str, ...]
) -> Source:
    licence = "not stated; see where the images come from"
    return Source(splits=splits, licence=licence, classes=classes, notes=notes)
