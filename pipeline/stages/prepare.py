"""Pack a dataset's source into shards; writes under the stage's output folder only."""

import shutil

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.io import write_png
from torchvision.utils import draw_bounding_boxes, make_grid

from asl_core.data.manifest import Manifest
from asl_core.data.prepare import prepare
from asl_core.data.samples import Sample
from asl_core.data.shards import PackedDataset
from asl_core.recipes.datasets import Dataset
from pipeline.stages.request import StageRequest

_PREVIEW_IMAGES = 24
_PREVIEW_SIDE = 128


def run(request: StageRequest[Dataset]) -> dict[str, float]:
    """Pack the dataset, draw its first images, and record its identity."""
    folder = request.outputs["dataset"]
    manifest = prepare(
        request.recipe, request.inputs["data_root"], folder, name=request.key,
        rejected_list=request.work / "rejected.txt",  # there when the stage has failed
    )  # fmt: skip
    for split, digest in manifest.digests.items():
        request.journal.dataset(request.key, digest, request.recipe.source, split)
    dataset = PackedDataset(folder, "train")
    (request.out / "pictures").mkdir(exist_ok=True)
    write_png(draw_preview(dataset), str(request.out / "pictures/samples.png"))
    request.journal.artifact("pictures/samples.png")
    shutil.copy(folder / "manifest.json", request.out / "manifest.json")
    request.journal.artifact("manifest.json")
    return _counts(manifest) | {
        "size_mb": sum(path.stat().st_size for path in folder.glob("*.*")) / 1e6
    }


def _counts(manifest: Manifest) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split in manifest.counts:
        metrics[f"{split}_images"] = manifest.counts[split]
        metrics[f"{split}_annotated"] = manifest.annotated[split]
        metrics[f"{split}_rejected"] = len(manifest.rejected[split])
    return metrics


def draw_preview(dataset: PackedDataset) -> Tensor:
    """Return the first images side by side, with their boxes, (3, H, W), uint8."""
    count = min(_PREVIEW_IMAGES, len(dataset))
    return make_grid([_draw_tile(dataset[index]) for index in range(count)], nrow=8)


def _draw_tile(sample: Sample) -> Tensor:
    """Return the sample scaled into the corner of a square, (3, S, S)."""
    height, width = sample.image.shape[-2:]
    scale = _PREVIEW_SIDE / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    tile = torch.zeros(3, _PREVIEW_SIDE, _PREVIEW_SIDE, dtype=torch.uint8)
    picture = F.resize(sample.image, size, antialias=True)
    if sample.instances is not None and len(sample.instances.boxes):
        picture = draw_bounding_boxes(picture, sample.instances.boxes * scale)
    tile[:, : size[0], : size[1]] = picture
    return tile
