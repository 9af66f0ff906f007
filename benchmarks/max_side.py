"""What `max_side` of a source gives: images a second and core through the training loader.

    python benchmarks/max_side.py [FOLDER] [--images 32] [--max-side 512] [--rounds 3]

Packs the folder's images (without one: generated JPEGs of 4000x3000, as a camera's) as they are and
with `max_side`, and goes through both with one thread as training does that sees a crop of 224
pixels of each, both in every round. What counts is the ratio of the best rounds; the rates
themselves move with the machine.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asl_core.data.loaders import TrainingLoader
from asl_core.data.prepare import prepare
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.recipes.undivided import Images
from asl_core.recipes.views import View, ViewPlan

BATCH = 8
SIZE = (4000, 3000)


def generate(folder: Path, count: int) -> None:
    """Write JPEGs with detail at several scales, as photographs have."""
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = Image.new("RGB", SIZE)
        for cells, weight in ((6, 1.0), (60, 0.4), (600, 0.2), (2000, 0.05)):
            coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            scaled = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
            picture = Image.blend(picture, scaled, weight)
        picture.save(folder / f"{number}.jpg", quality=90)


def load(dataset: PackedDataset) -> float:
    """Return the images a second of one pass."""
    transform = pretrain_transform(ViewPlan(views=(View(size=224),)))
    loader = TrainingLoader(dataset, transform, collate_views, seed=0, batch_size=BATCH, epochs=1)
    start, seen = time.perf_counter(), 0
    for _ in loader.iterate(0):
        seen += BATCH
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What max_side of a source gives.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--max-side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.folder
        if folder is None:
            folder = Path(work) / "images"
            folder.mkdir()
            generate(folder, arguments.images)
        datasets: dict[str, PackedDataset] = {}
        sides = {"as they are": None, f"max_side {arguments.max_side}": arguments.max_side}
        for name, side in sides.items():
            target = Path(work) / name
            start = time.perf_counter()
            recipe = Images(path=str(folder.absolute()), max_side=side, holdout=0.1)
            prepare(recipe, Path.cwd(), target, name="images")
            packed = time.perf_counter() - start
            datasets[name] = PackedDataset(target, "train")
            megabytes = sum(path.stat().st_size for path in target.glob("*.tar")) / 1e6
            count = len(datasets[name])
            print(f"{name}: {count} training images, {megabytes:.1f} MB, packed in {packed:.1f} s")
        best = dict.fromkeys(datasets, 0.0)
        for _ in range(arguments.rounds):
            for name, dataset in datasets.items():
                best[name] = max(best[name], load(dataset))
        for name, rate in best.items():
            print(f"{name}: {rate:.1f} images/s")
        first, second = best.values()
        print(f"ratio {second / first:.1f}")


if __name__ == "__main__":
    main()
