"""Where images come from: one dataclass per source, told apart by `source`.

Paths may be relative; the caller resolves them against its data root, so that a recipe, and with
it the identity of what was made from it, is the same on every machine.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from asl_core.recipes.class_lists import CLASS_LISTS
from asl_core.recipes.normalisation import NORMALISATIONS, Rgb

Normalisation = Literal["imagenet", "cifar10", "cifar100", "inception"]


_WIDEST_BLUR = 20
"""Pixels. Nothing is left of an image by then, and memory grows with it."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Segmentations of the training images by the algorithm of Felzenszwalb and Huttenlocher.

    Source: R-MAE, `tools/preprocess`, which calls scikit-image's `felzenszwalb`.
    """

    scales: tuple[int, ...]
    """One map for each; larger ones have larger segments, and none has fewer pixels than its
    scale. R-MAE has 500, 1000 and 1500 for COCO, 1000 for ImageNet."""
    sigma: float = 0.8
    """Deviation of the blur before, in pixels; scikit-image's, which R-MAE leaves as it is."""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError(
                f"scales must be one or more numbers of pixels from 1, got {list(self.scales)}"
            )
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales must differ from each other, got {list(self.scales)}")
        if not 0 <= self.sigma <= _WIDEST_BLUR:
            raise ValueError(f"sigma must be from 0 to {_WIDEST_BLUR} pixels, got {self.sigma}")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What every source has."""

    normalisation: Normalisation = "imagenet"
    """Which constants of NORMALISATIONS the models read; COCO and ADE20K use ImageNet's."""
    max_rejected_share: float = 0.001
    """Largest share of a split that may be corrupt or unreadable; more is an error."""
    selection: int = 0
    """Training images, always the same ones, that replace the official test split, for choosing
    hyperparameters. 0: the official split is packed, to be used once at the end."""
    note: str = ""
    """What a reader of the results should know of these images; printed under every table."""
    regions: Regions | None = None
    """Segmentations that are packed beside the training images, for methods that want regions;
    absent: none. A third to half a second of one core for an image of COCO's size and a scale."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share < 1:
            raise ValueError(f"max_rejected_share must be in [0, 1), got {self.max_rejected_share}")
        if self.selection < 0:
            raise ValueError(f"selection must be at least 0, got {self.selection}")

    @property
    def mean(self) -> Rgb:
        """Mean of R, G, B in [0, 1]."""
        return NORMALISATIONS[self.normalisation][0]

    @property
    def std(self) -> Rgb:
        """Standard deviation of R, G, B, for pixels in [0, 1]."""
        return NORMALISATIONS[self.normalisation][1]


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
        return data_root / os.path.expanduser(os.path.expandvars(self.path))


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


Member = Scenes | Icons | Parquet | ImageFolder | Coco | Ade20k


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


Dataset = Member | Union_
"""What an entry of `datasets` in params.yaml may be."""


def as_mapping(dataset: Dataset) -> dict[str, Any]:
    """Return a recipe as plain values, as a manifest has it.

    What came later only where it is set, so that a dataset without it is to the byte what it was
    before.
    """
    return asdict(dataset, dict_factory=_without_absent)


def _without_absent(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    later = ("regions", "classes")
    return {name: value for name, value in fields if name not in later or value is not None}


def folders_of(dataset: Dataset, data_root: Path) -> list[Path]:
    """Return the folders on this machine that a data set is packed from."""
    members = dataset.members if isinstance(dataset, Union_) else (dataset,)
    return [member.folder(data_root) for member in members if isinstance(member, FromDisk)]
