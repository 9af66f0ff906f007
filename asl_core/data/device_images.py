"""A small dataset decoded once, in the memory of the device that computes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError

_LARGEST_SHARE = 0.25  # of the memory that is free; the rest is the network's
_GIB = 2**30


@dataclass(frozen=True)
class DeviceImages:
    """All images of a split, of one size.

    Attributes:
        pixels: (N, H, 3, W), uint8: channels between rows and columns, as `BoxResizer` wants them.
        labels: Class of each image, -1 where there is none, (N,), int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[3]


def load_on_device(
    dataset: PackedDataset, device: torch.device, *, free_bytes: int | None = None
) -> DeviceImages:
    """Decode all images of a split into the memory of a device.

    Args:
        dataset: The split.
        device: Where they are kept; each process has a copy.
        free_bytes: What the device's memory still holds; absent: asked for.

    Raises:
        InputError: The images differ in size, or need more than a quarter of what is free.
    """
    name, split = dataset.manifest.name, dataset.split
    sizes = sorted({dataset.image_size(index) for index in range(len(dataset))})
    if len(sizes) > 1:
        raise InputError(
            f"images_on: device wants images of one size, and the {split} split of {name} has "
            f"{len(sizes)}, from {_shown(sizes[0])} to {_shown(sizes[-1])}; set images_on: disk"
        )
    height, width = sizes[0]
    needed = len(dataset) * 3 * height * width
    free = _free_bytes(device) if free_bytes is None else free_bytes
    if needed > _LARGEST_SHARE * free:
        raise InputError(
            f"images_on: device: the {len(dataset)} images of {name}, {_shown(sizes[0])}, take "
            f"{needed / _GIB:.2f} GiB, more than a quarter of the {free / _GIB:.2f} GiB that are "
            f"free on {device}; set images_on: disk"
        )
    pixels = torch.empty((len(dataset), height, 3, width), dtype=torch.uint8)
    for index, slot in enumerate(pixels):
        slot.copy_(dataset.read_image(index).transpose(0, 1))
    return DeviceImages(pixels.to(device), torch.from_numpy(dataset.labels).to(device))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kilobytes) * 1024
