"""Detection and segmentation in two processes: BatchNorm over both, one model, losses of one."""

import hashlib
from pathlib import Path

import pytest
import torch
from process_groups import processes
from torch import nn

from asl_core.data.prepare import prepare
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.modules.batch_norm import SharedBatchNorm
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection, Segmentation
from asl_core.transfer.detection.train import train_detector
from asl_core.transfer.segmentation.train import train_segmenter
from pipeline.jobs.journal import effective_points

pytestmark = pytest.mark.distributed

VIT = Vit(image_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2)
RESOURCES = Resources(device="cpu", threads=1, log_every_steps=1)
DETECTION = Detection(
    dataset="scenes", epochs=4, batch_size=4, image_size=32, lr=1e-3, scale_range=(1.0, 1.0),
    window_size=2, pyramid_channels=16, anchor_sizes=(4, 8, 12, 16, 24), rpn_batch=4096,
    roi_batch=4096, proposals=30, box_head_dim=24, precision="fp32", warmup_epochs=0,
    drop_path=0.0,
)  # fmt: skip
SEGMENTATION = Segmentation(
    dataset="scenes", epochs=4, batch_size=4, lr=1e-3, warmup_epochs=0, crop_size=32,
    scale_range=(1.0, 1.0), slide_stride=32, channels=8, auxiliary_channels=4, drop_path=0.0,
    dropout=0.0, precision="fp32",
)  # fmt: skip
RECIPES = {"detect": DETECTION, "segment": SEGMENTATION}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=20, test=4), folder, folder, name="scenes")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


def train(rank: int, stage: str, scenes: Path, encoder: Path, work: Path) -> None:
    """Train 20 steps; leave a digest of weights and running statistics, and the losses."""
    own = work / str(rank)
    own.mkdir(parents=True)
    with Journal.open(own / "journal") as journal:
        context = RunContext(work / "ckpt", journal, RESOURCES, stage)
        kind = train_detector if stage == "detect" else train_segmenter
        model: nn.Module = kind(RECIPES[stage], encoder, scenes, context)  # type: ignore[operator]
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    shared = sum(isinstance(module, SharedBatchNorm) for module in model.modules())
    (own / "digest").write_text(f"{digest.hexdigest()} {shared}")


def losses(folder: Path, stage: str) -> list[float]:
    points = effective_points(folder / "0/journal")
    return [value for _, value in sorted((p[0], p[1]) for p in points[f"{stage}/loss"])]


@pytest.mark.parametrize("stage", RECIPES)
def test_two_processes_train_one_model(
    stage: str, scenes: Path, encoder: Path, tmp_path: Path
) -> None:
    for world_size in (1, 2):
        work = tmp_path / str(world_size)
        assert processes(world_size, train, stage, scenes, encoder, work) == {0}
    first, second = ((tmp_path / "2" / rank / "digest").read_text() for rank in "01")
    assert first == second
    assert int(first.split()[1]) > 5, "BatchNorm counts over both"
    one, two = losses(tmp_path / "1", stage), losses(tmp_path / "2", stage)
    assert len(one) == len(two) == 20
    if stage == "segment":  # each process has as many pixels, so the mean of means is the mean
        assert two == pytest.approx(one, rel=2e-4)
        return
    # torchvision's losses are divided by what each process samples of its own images: alike, not
    # equal, and every step takes them further apart
    assert two[0] == pytest.approx(one[0], rel=0.05)
    assert sum(two[-5:]) == pytest.approx(sum(one[-5:]), rel=0.25)
    assert sum(two[-5:]) < 0.8 * sum(two[:5])
