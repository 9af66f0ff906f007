"""How near target boxes are to the annotated ones, by size, and what drawing them takes.

    python benchmarks/detection_targets.py DATA [--side 1024] [--passes 3]

DATA is a folder in COCO's layout. Large-scale jitter places each training image; the boxes that the
detector is trained on, and the bounds of the pixels that show each object, are compared with the
annotated box, scaled, of objects that the crop leaves whole. Below: milliseconds an image of
gathering the masks' pixels rows first and columns first, in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torchvision.ops import box_iou, masks_to_boxes

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.randomness import seeded_globals
from asl_core.recipes.datasets import Coco
from asl_core.transfer.detection.augment import LargeScaleJitter, fitted_size, nearest_pixels

SIZES = (8, 16, 32, 64)


def size_class(side: float) -> str:
    """Return between which of `SIZES` the longer side of a box lies."""
    below = 0
    for edge in SIZES:
        if side < edge:
            return f"{below} to {edge} px"
        below = edge
    return f"from {below} px"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare target boxes with annotations.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "coco"
        prepare(Coco(path=str(options.data.resolve())), Path("/"), packed, name="coco")
        dataset = PackedDataset(packed, "train")
        compare_boxes(dataset, options.side, options.passes)
        compare_gathers(dataset, options.side)


def compare_boxes(dataset: PackedDataset, side: int, passes: int) -> None:
    """Print the mean IoU with the scaled annotation, by size."""
    transform = LargeScaleJitter(side, flip=0.0)
    ours, bounds = defaultdict(list), defaultdict(list)
    for seed in range(passes):
        for index in dataset.annotated_indices:
            sample = dataset[index]
            assert sample.instances is not None
            with seeded_globals(1000 * seed + index):
                draw_scale, draw_offset, _ = torch.rand(3, dtype=torch.float64).tolist()
            with seeded_globals(1000 * seed + index):
                target = transform(sample).target
            height, width = sample.image.shape[-2:]
            low, high = transform.scale_range
            resized = fitted_size(height, width, side * (low + (high - low) * draw_scale))
            top, left = (round(max(length - side, 0) * draw_offset) for length in resized)
            scale = torch.tensor([resized[1] / width, resized[0] / height]).repeat(2)
            boxes = sample.instances.boxes[~sample.instances.crowd] * scale
            boxes = boxes - torch.tensor([left, top, left, top])
            shown = torch.tensor([min(side, resized[1]), min(side, resized[0])]).repeat(2)
            whole = boxes[((boxes >= 0) & (boxes <= shown)).all(1)]
            if not len(whole) or not len(target["boxes"]):
                continue
            tight = masks_to_boxes(target["masks"])
            tight[:, 2:] += 1
            best, which = box_iou(whole, target["boxes"]).max(1)
            for box, value, row in zip(whole, best.tolist(), which.tolist(), strict=True):
                if value < 0.3:  # the object shows no pixel's centre
                    continue
                name = size_class(float((box[2:] - box[:2]).max()))
                ours[name].append(value)
                bounds[name].append(box_iou(box[None], tight[row][None]).item())
    print(f"{'longer side':>14} {'objects':>8} {'target':>7} {'bounds of pixels':>17}")
    for name in sorted(ours, key=lambda text: int(text.split()[text.startswith("from")])):
        target, pixels = statistics.fmean(ours[name]), statistics.fmean(bounds[name])
        print(f"{name:>14} {len(ours[name]):>8} {target:7.3f} {pixels:17.3f}")


def compare_gathers(dataset: PackedDataset, side: int) -> None:
    """Print what gathering takes."""
    spent = {"rows first": 0.0, "columns first, bytes": 0.0}
    count = 0
    for index in dataset.annotated_indices[:30]:
        instances = dataset[index].instances
        assert instances is not None
        height, width = instances.masks.shape[-2:]
        size = fitted_size(height, width, side)
        rows = nearest_pixels(height, size[0], 0, size[0])
        columns = nearest_pixels(width, size[1], 0, size[1])
        began = time.perf_counter()
        one = instances.masks[:, rows][:, :, columns]
        middle = time.perf_counter()
        pixels = instances.masks.view(torch.uint8)
        other = pixels.index_select(2, columns).index_select(1, rows).view(torch.bool)
        ended = time.perf_counter()
        assert torch.equal(one, other)
        spent["rows first"] += middle - began
        spent["columns first, bytes"] += ended - middle
        count += 1
    for name, seconds in spent.items():
        print(f"{name}: {1000 * seconds / count:.1f} ms an image")


if __name__ == "__main__":
    main()
