"""Whether the detector learns what it is shown: AP on its own training images, learned by heart.

    python benchmarks/overfit_detector.py DATA OUT [--images 16] [--epochs 250] [--boxes pixels]

DATA is a folder in COCO's layout; its first annotated training images are trained on at 128 pixels,
always in the same place, and then detected in. With `--boxes pixels` the targets are the bounds of
the pixels that nearest sampling leaves of each object, as they once were; detections are compared
with the annotated boxes in any case. The encoder is random. OUT keeps the packed images and
checkpoints: a call that was stopped goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torchvision.ops import masks_to_boxes

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import save_encoder
from asl_core.pretrain import build_method
from asl_core.recipes.datasets import Coco
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.augment import LargeScaleJitter
from asl_core.transfer.detection.evaluate import coco_metrics, coco_scores
from asl_core.transfer.detection.train import (
    detect_test_images,
    instance_dataset,
    train_detector,
)

VIT = Vit(
    image_size=128, patch_size=8, embed_dim=128, depth=4, num_heads=4,
    decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def take(source: Path, count: int, folder: Path) -> None:
    """Lay out the first annotated training images as both splits of a dataset like COCO."""
    content = json.loads((source / "annotations/instances_train2017.json").read_text())
    annotated = {each["image_id"] for each in content["annotations"]}
    content["images"] = [each for each in content["images"] if each["id"] in annotated][:count]
    ids = {each["id"] for each in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        for each in content["images"]:
            name = each["file_name"]
            (folder / split / name).symlink_to((source / "train2017" / name).resolve())
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def pixel_boxes(jitter: LargeScaleJitter, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return a target whose boxes are the bounds of its masks' pixels."""
    target = TARGET(jitter, *args, **kwargs)
    if len(target["masks"]):
        boxes = masks_to_boxes(target["masks"])
        boxes[:, 2:] += 1
        target["boxes"] = boxes
    return target


TARGET = LargeScaleJitter.target


def main() -> None:
    """Train and detect; print AP."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--boxes", choices=("annotated", "pixels"), default="annotated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.out / f"{options.images}-images"
    packed, encoder = folder / "packed", folder / "encoder"
    if not packed.exists():
        take(options.data, options.images, folder / "coco")
        prepare(Coco(path="coco"), folder, packed, name="coco")
    if not encoder.exists():
        torch.manual_seed(0)
        recipe = MaeRecipe(dataset="coco", model=VIT)
        method: Any = build_method(recipe, PackedDataset(packed, "train"))
        encoder.mkdir()
        save_encoder(encoder, method.encoder_state(), recipe.model, recipe.encoder_parts)
    recipe = Detection(
        dataset="coco", epochs=options.epochs, batch_size=min(4, options.images), lr=5e-4,
        weight_decay=0.0, warmup_epochs=2, clip_grad=1.0, drop_path=0.0, image_size=128,
        scale_range=(1.0, 1.0001), flip=False, window_size=8, pyramid_channels=64,
        anchor_sizes=(4, 12, 24, 48, 96), rpn_batch=128, roi_batch=128, proposals=300,
        box_head_dim=256, precision="fp32",
    )  # fmt: skip
    run = folder / f"{options.boxes}-{options.epochs}"
    run.mkdir(exist_ok=True)
    resources = Resources(device="cpu", threads=1, num_workers=0, checkpoint_minutes=3.0)
    chosen = pixel_boxes if options.boxes == "pixels" else TARGET
    with (
        Journal.open(run / "journal") as journal,
        mock.patch.object(LargeScaleJitter, "target", chosen),
    ):
        context = RunContext(run / "ckpt", journal, resources, stage="detect", name=options.boxes)
        model = train_detector(recipe, encoder, packed, context)
        found = detect_test_images(model, recipe, packed, resources)
    scores = coco_scores(instance_dataset(packed, "test").coco_ground_truth(), found)
    for name, value in coco_metrics(scores).items():
        print(f"{name:10} {value:6.1f}")


if __name__ == "__main__":
    main()
