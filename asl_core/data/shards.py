"""Reading a packed dataset: any image at any time, from any number of processes."""

import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image

from asl_core.data import layout
from asl_core.data.manifest import Manifest, read_manifest
from asl_core.data.masks import as_coco, decode_masks
from asl_core.data.region_maps import decode_maps
from asl_core.data.samples import Instances, Sample
from asl_core.errors import InputError

_FLOAT_BYTES = 4


class PackedDataset(Dataset[Sample]):
    """One split of a packed dataset, its images decoded on request.

    Args:
        folder: Of the dataset.
        split: "train" or "test".
        regions: Whether samples come with their maps of regions, where the split has any.

    Attributes:
        folder: Where it lies.
        manifest: What the dataset holds.
        split: "train" or "test".
        labels: Class of each image, -1 where there is none; (N,), int64.
        annotated: Whether someone annotated the image; the others serve pre-training only;
            (N,), bool.
        image_ids: (N,), int64.

    Raises:
        InputError: The folder is no packed dataset, or is damaged, or the split has no image.
    """

    def __init__(self, folder: Path, split: str, *, regions: bool = False) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self.split = split
        if split not in self.manifest.counts:
            raise InputError(f"{folder} has no split {split!r}; it has train and test")
        if not self.manifest.counts[split]:
            raise InputError(
                f"dataset {self.manifest.name} in {folder} has no image in its {split} split; "
                "prepare it from a source that has"
            )
        self.folder = folder
        self._index = _load(folder / layout.INDEX.format(split=split))
        self.labels: NDArray[np.int64] = self._index["label"]
        self.annotated: NDArray[np.bool_] = self._index["annotated"]
        self.image_ids: NDArray[np.int64] = self._index["image_id"]
        self._instances: dict[str, NDArray[Any]] | None = None
        if self.has_instances:
            self._instances = _load(folder / layout.INSTANCES.format(split=split))
            self._masks = layout.RandomAccessFile(folder / layout.MASKS.format(split=split))
        self._polygons: dict[str, NDArray[Any]] | None = None
        if self._instances is not None and (folder / layout.POLYGONS.format(split=split)).exists():
            self._polygons = _load(folder / layout.POLYGONS.format(split=split))
            self._points = layout.RandomAccessFile(folder / layout.POINTS.format(split=split))
        self._regions: dict[str, NDArray[Any]] | None = None
        if regions and self.region_scales:
            self._regions = _load(folder / layout.REGIONS.format(split=split))
            self._region_maps = layout.RandomAccessFile(
                folder / layout.REGION_MAPS.format(split=split)
            )
        num_shards = int(self._index["shard"].max()) + 1
        self._shards = [
            layout.RandomAccessFile(folder / layout.SHARD.format(split=split, number=number))
            for number in range(num_shards)
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        label = int(self.labels[index])
        return Sample(
            index=index,
            image_id=int(self.image_ids[index]),
            image=self.read_image(index),
            label=None if label < 0 else label,
            instances=self._read_instances(index),
            semantic=self.read_semantic(index),
            regions=self._read_regions(index),
        )

    @property
    def has_labels(self) -> bool:
        """Whether the images have classes."""
        return self.manifest.classes is not None

    @property
    def has_instances(self) -> bool:
        """Whether the annotated images have boxes and masks."""
        return self.manifest.thing_classes is not None

    @property
    def has_semantic(self) -> bool:
        """Whether the annotated images have semantic maps."""
        return self.manifest.semantic_classes is not None

    @property
    def region_scales(self) -> int:
        """Number of maps of regions that each image of the split has; 0 without."""
        regions = self.manifest.source.get("regions")
        return len(regions["scales"]) if regions and self.split == "train" else 0

    @property
    def num_classes(self) -> int:
        """Number of classes of the images' labels; 0 without labels."""
        return len(self.manifest.classes or ())

    @property
    def annotated_indices(self) -> list[int]:
        """Positions of the images that someone annotated; what detection and segmentation use."""
        return np.flatnonzero(self.annotated).tolist()

    @property
    def instance_counts(self) -> NDArray[np.int64]:
        """Number of objects that are no crowd, by image, (N,); zeros without instances."""
        if self._instances is None:
            return np.zeros(len(self), dtype=np.int64)
        before = np.cumsum(np.concatenate([[0], ~self._instances["crowd"]]))  # (M + 1,)
        return np.diff(before[self._instances["first"]])

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) without decoding."""
        return int(self._index["height"][index]), int(self._index["width"][index])

    def read_image(self, index: int) -> Tensor:
        """Return the image alone, RGB, (3, H, W), uint8."""
        encoded = self._shards[self._index["shard"][index]].read(
            int(self._index["offset"][index]), int(self._index["size"][index])
        )
        return decode_image(encoded, ImageReadMode.RGB)

    def read_semantic(self, index: int) -> Tensor | None:
        """Return the semantic map alone, (H, W), uint8; None where there is none."""
        size = int(self._index["semantic_size"][index])
        if not self.has_semantic or not size:
            return None
        shard = self._shards[self._index["shard"][index]]
        encoded = shard.read(int(self._index["semantic_offset"][index]), size)
        return decode_image(encoded, ImageReadMode.UNCHANGED)[0]

    def _read_regions(self, index: int) -> Tensor | None:
        if self._regions is None:
            return None
        first, last = (int(edge) for edge in self._regions["first"][index : index + 2])
        code = self._region_maps.read(first, last - first).numpy().tobytes()
        try:
            return decode_maps(code, self.region_scales, *self.image_size(index))
        except ValueError as error:
            raise InputError(
                f"{self._region_maps.path} is damaged ({error}); prepare the dataset again"
            ) from error

    def _read_instances(self, index: int) -> Instances | None:
        if self._instances is None or not self.annotated[index]:
            return None
        first, last = (int(edge) for edge in self._instances["first"][index : index + 2])
        boxes = torch.from_numpy(self._instances["box"][first:last].astype(np.float32))  # (K, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            boxes=boxes,
            labels=torch.from_numpy(self._instances["label"][first:last].copy()),
            masks=decode_masks(self._read_codes(first, last), *self.image_size(index)),
            crowd=torch.from_numpy(self._instances["crowd"][first:last].copy()),
            polygons=self._read_polygons(first, last),
        )

    def _read_polygons(self, first: int, last: int) -> tuple[tuple[Tensor, ...], ...] | None:
        """Return the polygons of the instances first to last - 1, in one read."""
        if self._polygons is None:
            return None
        owners = self._polygons["first"][first : last + 1]
        edges = self._polygons["offset"][owners[0] : owners[-1] + 1]
        size = _FLOAT_BYTES * int(edges[-1] - edges[0])
        block = self._points.read(_FLOAT_BYTES * int(edges[0]), size).numpy().view("<f4")
        cuts = edges - edges[0]
        polygons = [torch.from_numpy(block[a:b].copy()) for a, b in pairwise(cuts)]
        bounds = owners - owners[0]
        return tuple(tuple(polygons[a:b]) for a, b in pairwise(bounds))

    def _read_codes(self, first: int, last: int) -> list[bytes]:
        """Return the run-length codes of the instances first to last - 1, in one read."""
        assert self._instances is not None
        edges = self._instances["code_offset"][first : last + 1]
        if first == last:
            return []
        block = self._masks.read(int(edges[0]), int(edges[-1] - edges[0])).numpy().tobytes()
        starts = edges - edges[0]
        return [block[start:end] for start, end in pairwise(starts)]

    def coco_ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """Return the annotated images in COCO's JSON form, for an evaluator.

        category_id is the label + 1, annotation ids count from 1; RLE counts are bytes.

        Raises:
            InputError: The dataset has no instances.
        """
        if self._instances is None or self.manifest.thing_classes is None:
            raise InputError(f"{self.folder} has no instances; choose a dataset that has")
        images, annotations = [], []
        for index in self.annotated_indices:
            height, width = self.image_size(index)
            image_id = int(self.image_ids[index])
            images.append({"id": image_id, "height": height, "width": width})
            first, last = (int(edge) for edge in self._instances["first"][index : index + 2])
            for number, code in enumerate(self._read_codes(first, last), start=first):
                annotations.append(
                    {
                        "id": number + 1,
                        "image_id": image_id,
                        "category_id": int(self._instances["label"][number]) + 1,
                        "bbox": self._instances["box"][number].tolist(),
                        "area": float(self._instances["area"][number]),
                        "iscrowd": int(self._instances["crowd"][number]),
                        "segmentation": as_coco(code, height, width),
                    }
                )
        names = enumerate(self.manifest.thing_classes, start=1)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # opened here, for np.load leaves a file open in which it finds no zip archive
        with path.open("rb") as file, np.load(file) as archive:
            return dict(archive)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; prepare the dataset again") from None
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); prepare the dataset again") from error
