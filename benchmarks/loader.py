"""Images a second and core through the loader, beside decoding alone.

    python benchmarks/loader.py [FOLDER_OF_JPEGS] [--images 256] [--rounds 5] [--image-size 224]

Packs the folder's JPEGs (without one: generated pictures) and goes through them with one thread,
every path in every round, so that what else the machine does meets them all. What counts are the
ratios of the best rounds; the rates themselves move with the machine.
"""

import argparse
import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image

from asl_core.data.loaders import TrainingLoader
from asl_core.data.manifest import Manifest
from asl_core.data.packing import SplitWriter
from asl_core.data.prepare import check_item
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.data.shards import PackedDataset
from asl_core.data.sources.source import Item, Rejected
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.recipes.views import View, ViewPlan

MEAN, STD = NORMALISATIONS["imagenet"]
BATCH = 32


def read_pictures(folder: Path | None, count: int) -> list[bytes]:
    """Return encoded images: the folder's, repeated as needed, or generated ones of 500x375."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*.jpg") if path.is_file())
        if not files:
            raise SystemExit(f"{folder} has no .jpg files; give a folder that has")
        return [files[number % len(files)].read_bytes() for number in range(count)]
    return [_generate(number) for number in range(count)]


def _generate(number: int) -> bytes:
    """Return a JPEG with detail at several scales, as photographs have."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((375, 500, 3), dtype=np.float32)
    for cells, weight in ((6, 90), (40, 40), (190, 12)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        scaled = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        pixels += np.asarray(scaled, dtype=np.float32) * (weight / 142)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format="JPEG", quality=90)
    return file.getvalue()


def pack(pictures: list[bytes], folder: Path) -> PackedDataset:
    """Pack the pictures as a training split."""
    with SplitWriter(folder, "train", with_instances=False) as writer:
        for number, picture in enumerate(pictures):
            checked = check_item(Item(name=str(number), image_id=number, image=picture))
            if isinstance(checked, Rejected):
                raise SystemExit(f"picture {number}: {checked.reason}")
            writer.add(*checked)
        digest = writer.finish()
    Manifest(
        name="benchmark", source={}, licence="", classes=None, thing_classes=None,
        semantic_classes=None, mean=MEAN, std=STD, counts={"train": len(pictures)},
        annotated={"train": 0}, digests={"train": digest}, rejected={"train": []},
    ).write(folder)  # fmt: skip
    return PackedDataset(folder, "train")


def build_paths(
    pictures: list[bytes], dataset: PackedDataset, image_size: int
) -> dict[str, Callable[[], None]]:
    """Return, by name, functions that go through all pictures once."""
    tensors = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in pictures]
    transform = pretrain_transform(ViewPlan(views=(View(size=image_size),)))
    common = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                image_size, scale=(0.2, 1), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = [decode_image(each, ImageReadMode.RGB) for each in tensors[:BATCH]]

    def decode_only() -> None:
        for encoded in tensors:
            decode_image(encoded, ImageReadMode.RGB)

    def crop_only() -> None:
        for number in range(len(tensors)):
            transform(Sample(number, number, images[number % len(images)]))

    def pillow() -> None:
        for encoded in pictures:
            common(Image.open(io.BytesIO(encoded)).convert("RGB"))

    def read_only() -> None:
        for number in range(len(dataset)):
            dataset.read_image(number)

    def loader() -> None:
        batches = TrainingLoader(
            dataset, transform, collate_views, seed=0, batch_size=BATCH, epochs=1
        )
        for _ in batches.iterate(0):
            pass

    return {
        "decode from memory": decode_only,
        "decode from the shards": read_only,
        "crop and flip alone": crop_only,
        "loader: read, decode, crop, flip, batch": loader,
        "Pillow and float transforms, from memory": pillow,
    }


def measure(paths: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Return the best rate of each path, images/s; the paths take turns in a random order."""
    best = dict.fromkeys(paths, 0.0)
    for _ in range(rounds + 1):  # the first round warms up caches and counts as any other
        for name in random.sample(list(paths), len(paths)):
            start = time.perf_counter()
            paths[name]()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Images a second and core through the loader.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = max(arguments.images // BATCH, 1) * BATCH  # the loader drops a batch that is not whole
    load_before = os.getloadavg()[0]
    pictures = read_pictures(arguments.folder, count)
    with tempfile.TemporaryDirectory() as folder:
        paths = build_paths(pictures, pack(pictures, Path(folder)), arguments.image_size)
        rates = measure(paths, count, arguments.rounds)
    size = sum(map(len, pictures)) / count / 1e3
    print(f"{count} images, {size:.0f} kB on average, crops of {arguments.image_size}, one thread")
    print(f"load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after")
    decode = rates["decode from memory"]
    for name, rate in rates.items():
        print(f"{name:42s} {rate:8.0f} images/s  {rate / decode:5.2f} of decoding alone")
    limit = 1 / (1 / decode + 1 / rates["crop and flip alone"])
    share = rates["loader: read, decode, crop, flip, batch"] / limit
    print(f"the loader reaches {share:.2f} of what decoding and cropping alone allow")


if __name__ == "__main__":
    main()
