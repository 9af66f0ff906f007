"""COCO's official layout: images with boxes, instance masks and crowd regions."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from asl_core.data.sources.coco_json import CocoFile, CocoImage, read_instances
from asl_core.data.sources.files import item_or_rejected, read_file, require_folder
from asl_core.data.sources.listing import Listing
from asl_core.data.sources.source import Item, Rejected, Source, Split, SplitName
from asl_core.errors import InputError
from asl_core.recipes.datasets import Coco
from asl_core.wording import counted

_NEEDED = "a coco source has train2017/, val2017/ and annotations/instances_*2017.json"
_FOLDERS: dict[SplitName, str] = {"train": "train2017", "test": "val2017"}


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
    contents: dict[SplitName, CocoFile] = {}
    for split, images in _FOLDERS.items():
        image_folder = require_folder(folder / images, _NEEDED)
        json_path = folder / "annotations" / f"instances_{images}.json"
        content = contents[split] = read_instances(json_path)
        notes += content.notes
        unlisted, more = _compare_files(image_folder, json_path, content.images)
        notes += more
        used = list(unlisted) if split == "train" else []
        if unlisted:
            kept = split == "train" or recipe.val_joins_training
            fate = "for pre-training only" if kept else "not used"
            found = counted(len(unlisted), "image")
            notes.append(f"{found} of {images} not in {json_path.name}: {fate}.")
        if split == "train" and recipe.val_joins_training:
            listing = Listing()
            listing.scan(require_folder(folder / _FOLDERS["test"], _NEEDED))
            val = [image.path for image in listing.images]
            found = counted(len(val), "image")
            notes.append(f"{found} of val2017 for pre-training too: no test set any more.")
            used += val
        count = len(content.images) + len(used)
        splits[split] = Split(count, partial(_items, image_folder, content.images, used))
        if split == "test" and recipe.val_joins_training:
            splits[split] = Split(0, lambda: iter(()))
    _compare_categories(folder, contents["train"].categories, contents["test"].categories)
    return Source(
        splits=splits,
        licence=_licence(contents["train"].licences or contents["test"].licences),
        thing_classes=tuple(contents["train"].categories.values()),
        notes=tuple(notes),
    )


def _compare_categories(folder: Path, train: dict[int, str], test: dict[int, str]) -> None:
    for number in sorted(train.keys() | test.keys()):
        if train.get(number) != test.get(number):
            raise InputError(
                f"{folder}: the two JSON files list different categories, first {number}: "
                f"{train.get(number)!r} in train2017, {test.get(number)!r} in val2017; "
                "use one release"
            )


def _licence(names: tuple[str, ...]) -> str:
    if not names:
        return "see cocodataset.org, each its own"
    return f"each image its own: {', '.join(names)}"


def _compare_files(
    folder: Path, json_path: Path, images: tuple[CocoImage, ...]
) -> tuple[list[Path], list[str]]:
    """Return the images of the folder that the JSON does not name, and notes on what is none.

    Raises:
        InputError: The JSON names images that are not in the folder.
    """
    listing = Listing()
    listing.scan(folder)
    found = [image.path for image in listing.images]
    files = {path.name for path in (*found, *listing.others)}
    listed = {image.file_name: None for image in images}  # in their order
    missing = [name for name in listed if name not in files]
    if missing:
        raise InputError(
            f"{json_path} names {counted(len(missing), 'image')} missing from {folder}, "
            f"the first {missing[0]}; restore them or use the matching JSON"
        )
    listing.others = [path for path in listing.others if path.name not in listed]
    return [path for path in found if path.name not in listed], listing.notes(folder.parent)


def _items(
    folder: Path, images: tuple[CocoImage, ...], unlisted: list[Path]
) -> Iterator[Item | Rejected]:
    for image in images:
        name = f"{folder.name}/{image.file_name}"
        yield item_or_rejected(name, partial(_annotated_item, name, folder, image))
    free_id = 1 + max((image.image_id for image in images), default=0)
    for number, path in enumerate(unlisted):
        name = f"{path.parent.name}/{path.name}"
        yield item_or_rejected(name, partial(_plain_item, name, free_id + number, path))


def _plain_item(name: str, image_id: int, path: Path) -> Item:
    return Item(name=name, image_id=image_id, image=read_file(path), annotated=False)


def _annotated_item(name: str, folder: Path, image: CocoImage) -> Item:
    return Item(
        name=name,
        image_id=image.image_id,
        image=read_file(folder / image.file_name),
        size=(image.height, image.width),
        instances=image.instances,
    )
