"""Where images come from: one dataclass per source, told apart by `source`.

Paths may be relative; the caller resolves them against its data root, so that a recipe, and with
it the identity of what was made from it, is the same on every machine.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from asl_core.recipes.class_lists import CLASS_LISTS
from asl_core.recipes.packing import Packing, Place, on_disk
from asl_core.recipes.packing import Regions as Regions  # for those that look for it here
from asl_core.recipes.undivided import HuggingFace, Images, WebDataset


@dataclass(frozen=True, kw_only=True)
class Embedded(Packing):
    """Pictures composed from scikit-learn's digits and photographs; needs no network."""

    image_size: int = 64
    """Side in pixels."""
    train: int = 1500
    """Number of training images; the first ones stay the same when there are more."""
    test: int = 300
    """Number of test images; they share no digit and no part of a photograph with training."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, lowest in (("image_size", 16), ("train", 1), ("test", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Scenes(Embedded):
    """Several digits of different sizes on a photograph: boxes, masks, semantic maps."""

    source: Literal["scenes"] = "scenes"
    objects: tuple[int, int] = (3, 6)
    """Fewest and most objects in an image; COCO has 7.3 on average, CIFAR 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects must be (fewest, most) with 1 <= fewest, got {self.objects}")


@dataclass(frozen=True, kw_only=True)
class Icons(Embedded):
    """One centred digit on a photograph: a class label."""

    source: Literal["icons"] = "icons"


@dataclass(frozen=True, kw_only=True)
class FromDisk(Packing):
    """A data set that lies in a folder."""

    READS: ClassVar[tuple[str, ...]] = (".",)
    """What is read in the folder; all of it where a source does not say."""

    path: str
    """The folder; relative to the data root, or absolute. `~` and $VARIABLES are expanded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path is empty; give the folder of the data set")

    def folder(self, data_root: Path) -> Path:
        """Return where it lies on this machine."""
        return on_disk(self.path, data_root)

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return what is read in the folder."""
        folder = self.folder(data_root)
        return tuple((str(Path(self.path, name)), (folder / name,)) for name in self.READS)

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return the folder."""
        return (self.folder(data_root),)


@dataclass(frozen=True, kw_only=True)
class Parquet(FromDisk):
    """train.parquet and test.parquet as Hugging Face writes them: image bytes and a label.

    Shards are read as well: train-*.parquet, test-*.parquet or validation-*.parquet. All files
    must name the same classes; where they number them otherwise, labels follow the names.
    """

    source: Literal["parquet"] = "parquet"
    image_column: str = "image"
    """Name of the column struct{bytes, path}, or of plain bytes."""
    label_column: str = "label"
    """Name of the column of integers, whose class names come from the schema's metadata, or of
    strings, which are the names."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FromDisk):
    """train/<class>/** and val/<class>/**, as ImageNet is kept; classes in sorted order."""

    READS: ClassVar[tuple[str, ...]] = ("train", "val")

    source: Literal["imagefolder"] = "imagefolder"
    classes: str | tuple[str, ...] | None = None
    """The class folders that are used: a name in CLASS_LISTS, imagenet-100, or their names; absent:
    all of them. Labels count in sorted order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.classes, str) and self.classes not in CLASS_LISTS:
            raise ValueError(
                f"classes must be a list of class folders or one of {', '.join(CLASS_LISTS)}, "
                f"got {self.classes!r}"
            )
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            twice = next(c for c in self.class_names if self.class_names.count(c) > 1)
            raise ValueError(f"classes names {twice!r} twice; name each class once")
        if self.class_names == ():
            raise ValueError("classes is empty; name class folders, or leave it out to use all")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the class folders that are used; None: all."""
        return CLASS_LISTS[self.classes] if isinstance(self.classes, str) else self.classes


@dataclass(frozen=True, kw_only=True)
class Coco(FromDisk):
    """COCO's official layout: train2017/, val2017/, annotations/instances_*2017.json."""

    READS: ClassVar[tuple[str, ...]] = ("train2017", "val2017", "annotations")

    source: Literal["coco"] = "coco"
    val_joins_training: bool = False
    """Whether the pictures of val2017, without their annotations, are pre-trained on too: for
    suites that test on something else, with which it is joined as a `union`."""


@dataclass(frozen=True, kw_only=True)
class Ade20k(FromDisk):
    """ADE20K's (SceneParse150's) official layout.

    images/ and annotations/, each with training/ and validation/; names of the classes in
    classes.json, if there, else "1" to "150". Maps are PNGs, grey of 8 bits or with a palette.
    """

    READS: ClassVar[tuple[str, ...]] = ("images", "annotations", "classes.json")

    source: Literal["ade20k"] = "ade20k"


Member = Scenes | Icons | Parquet | ImageFolder | Coco | Ade20k | Images | WebDataset | HuggingFace


@dataclass(frozen=True, kw_only=True)
class Union_(Packing):
    """The images of several sources, train with train and test with test.

    Labels and annotations survive only where all members have the same classes. The share of
    rejected images is that of the union; the members' own limits do not count.
    """

    source: Literal["union"] = "union"
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise ValueError("members is empty; list at least one source")
        if any(member.selection for member in self.members):
            raise ValueError("selection of a member has no effect; give it to the union")
        if any(member.regions for member in self.members):
            raise ValueError("regions of a member have no effect; give them to the union")

    def places(self, data_root: Path) -> tuple[Place, ...]:
        """Return what the members read."""
        return tuple(place for member in self.members for place in member.places(data_root))

    def needed(self, data_root: Path) -> tuple[Path, ...]:
        """Return what the members need."""
        return tuple(path for member in self.members for path in member.needed(data_root))


Dataset = Member | Union_
"""What an entry of `datasets` in params.yaml may be."""


def as_mapping(dataset: Dataset) -> dict[str, Any]:
    """Return a recipe as plain values.

    What came later only where it is set, so that a dataset without it is to the byte what it was
    before.
    """
    return asdict(dataset, dict_factory=_without_absent)


def as_packed(dataset: Dataset) -> dict[str, Any]:
    """Return a recipe as plain values, as a manifest has it.

    Without the place of images whose dataset follows from their files alone (`Undivided`): where
    they are moved, it stays what it is to the byte.
    """
    return asdict(dataset, dict_factory=_without_place)


def _without_absent(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    later = ("regions", "classes")
    return {name: value for name, value in fields if name not in later or value is not None}


def _without_place(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _without_absent(fields)
    if "holdout" in found:
        found.pop("path")
    return found


def folders_of(dataset: Dataset, data_root: Path) -> list[Path]:
    """Return the folders and files on this machine that a data set is packed from."""
    return list(dataset.needed(data_root))
