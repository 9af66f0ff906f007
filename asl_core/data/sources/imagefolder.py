"""A folder for each class, as ImageNet is kept."""

import dataclasses
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from asl_core.data.sources.files import broken_link, counted, read_file, require_folder, shown
from asl_core.data.sources.listing import ImageFile, Listing, is_image_name, split_of
from asl_core.data.sources.source import Item, Source, Split
from asl_core.errors import InputError
from asl_core.recipes.datasets import ImageFolder

_NEEDED = "an imagefolder source has train/<class>/* and val/<class>/*"


@dataclass(frozen=True)
class _Found:
    """What lies in train/ or val/.

    Attributes:
        folder: Which of them.
        by_class: Class, in sorted order -> its images.
        loose: Images beside the class folders.
        listing: All of it.
    """

    folder: Path
    by_class: dict[str, list[ImageFile]]
    loose: list[ImageFile]
    listing: Listing


def open_image_folder(recipe: ImageFolder, data_root: Path) -> Source:
    """Return the source; the classes are the sorted folders of train/, with all below them.

    As torchvision's ImageFolder does, it looks into folders below a class and follows links.

    Raises:
        InputError: A folder is missing, empty or unreadable, a class of train/ has no images, or
            val/ has a class that train/ lacks; or one of the recipe's classes is not there.
    """
    folder = require_folder(data_root / recipe.path, _NEEDED)
    train = _find(require_folder(folder / "train", _NEEDED), recipe.class_names)
    validation = _find(require_folder(folder / "val", _NEEDED), recipe.class_names)
    classes = tuple(train.by_class)
    _check_train(train)
    _check_validation(validation, train)
    return Source(
        splits={"train": _split(train, classes), "test": _split(validation, classes)},
        licence="not stated in the folder; see where the images come from",
        classes=tuple(map(shown, classes)),
        notes=(
            *train.listing.notes(folder),
            *validation.listing.notes(folder),
            *_alike_notes(classes),
        ),
    )


def _find(folder: Path, wanted: Collection[str] | None) -> _Found:
    listing = Listing()
    folders = listing.scan(folder)
    if wanted is not None:
        folders = _narrowed(folder, folders, wanted)
    loose = list(listing.images)
    by_class: dict[str, list[ImageFile]] = {}
    for each in folders:
        first = len(listing.images)
        listing.walk(each)
        by_class[each.name] = listing.images[first:]
    for image in loose:  # a file that is gone is one image, a folder that is gone is a class
        if not is_image_name(image.path) and (gone := broken_link(image.path)):
            raise InputError(f"{shown(image.path)} is {gone}; restore that or remove the link")
    if not by_class:
        raise InputError(f"{shown(folder)} has no class folders; {_NEEDED}")
    return _Found(folder, by_class, loose, listing)


def _narrowed(folder: Path, found: Collection[Path], wanted: Collection[str]) -> list[Path]:
    """Return the class folders that are wanted, all of which must be there."""
    by_name = {each.name: each for each in found}
    missing = [name for name in sorted(wanted) if name not in by_name]
    if missing:
        raise InputError(
            f"{shown(folder)} lacks {len(missing)} of the {counted(len(wanted), 'class folder')} "
            f"in `classes`, the first {_quoted(missing[0])}{_alike_hint(missing[0], by_name)}; "
            "restore them or correct the list"
        )
    return [by_name[name] for name in sorted(wanted)]


def _check_train(train: _Found) -> None:
    empty = [name for name, images in train.by_class.items() if not images]
    if empty:
        folders = counted(len(empty), "class folder")
        raise InputError(
            f"{shown(train.folder)} has {folders} without an image, the first {_quoted(empty[0])}; "
            "restore the images or remove the folder"
        )


def _check_validation(validation: _Found, train: _Found) -> None:
    unknown = [name for name in validation.by_class if name not in train.by_class]
    if unknown:
        raise InputError(
            f"{shown(validation.folder)} has {counted(len(unknown), 'class folder')} that "
            f"{shown(train.folder)} lacks, the first {_quoted(unknown[0])}"
            f"{_alike_hint(unknown[0], train.by_class)}; use the same classes in both"
        )
    files = [*validation.listing.others, *(image.path for image in validation.loose)]
    for path in files:
        if path.parent == validation.folder and path.name in train.by_class:
            raise InputError(
                f"{shown(path)} is a file, but a class folder in {shown(train.folder)}; "
                "restore the folder or remove the file"
            )


def _split(found: _Found, classes: tuple[str, ...]) -> Split:
    images: list[ImageFile] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = found.by_class.get(name, [])
        images += members
        labels += [label] * len(members)
    for image in found.loose:
        problem = image.problem or "lies in no class folder"
        images.append(dataclasses.replace(image, problem=problem))

    def build(name: str, number: int, path: Path) -> Item:
        return Item(name=name, image_id=number, image=read_file(path), label=labels[number])

    return split_of(images, found.folder.parent, build)


def _quoted(name: str) -> str:
    return f"'{shown(name)}'"


def _same_to_the_eye(name: str) -> str:
    """Return what two names share that differ in case or in the composition of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _alike_hint(name: str, others: Collection[str]) -> str:
    for other in others:
        if _same_to_the_eye(other) == _same_to_the_eye(name):
            return f" (its {_quoted(other)} differs in case or in how accents are encoded)"
    return ""


def _alike_notes(classes: Collection[str]) -> list[str]:
    first: dict[str, str] = {}
    notes: list[str] = []
    for name in classes:
        other = first.setdefault(_same_to_the_eye(name), name)
        if other != name:
            notes.append(
                f"Classes {_quoted(other)} and {_quoted(name)} differ only in case or in how "
                "accents are encoded."
            )
    return notes
