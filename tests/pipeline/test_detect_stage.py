"""The detect stage, from a packed dataset and an encoder to its files."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.io import decode_image

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection
from pipeline.stages import detect
from pipeline.stages.request import StageRequest, StoredRun

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' masks do not know NumPy 2's copy keyword yet."""

VIT = Vit(image_size=32, patch_size=8, embed_dim=24, depth=8, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
RECIPE = Detection(
    dataset="scenes", epochs=1, batch_size=4, image_size=32, window_size=2, pyramid_channels=16,
    anchor_sizes=(8, 12, 16, 24, 32), rpn_batch=32, roi_batch=16, proposals=30, box_head_dim=24,
    precision="fp32",
)  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    scenes, encoder = tmp_path / "scenes", tmp_path / "encoder"
    prepare(Scenes(image_size=32, train=8, test=4, objects=(1, 2)), scenes, scenes, name="scenes")
    encoder.mkdir()
    torch.manual_seed(0)
    save_encoder(encoder, Encoder(VIT).state_dict(), VIT)
    return {"dataset": scenes, "encoder": encoder}


def test_the_stage_returns_six_metrics_and_writes_weights_detections_and_a_picture(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    journal = Journal.open(tmp_path / "work/journal")
    metrics = detect.run(
        StageRequest(
            stage="detect", key="mae", recipe=RECIPE, inputs=inputs, work=tmp_path / "work",
            outputs={"details": out}, journal=journal, resources=Resources(device="cpu"),
        )
    )  # fmt: skip
    journal.close()
    assert set(metrics) == {
        "ap_box", "ap_box50", "ap_box75", "ap_mask", "ap_mask50", "ap_mask75",
    }  # fmt: skip
    assert all(0 <= value <= 100 for value in metrics.values())
    assert isinstance(json.loads((out / "detections.json").read_text()), list)
    assert safetensors.torch.load_file(out / "detector.safetensors")
    for name in ("detections", "precision_recall"):
        assert decode_image(str(out / f"pictures/{name}.png")).shape[0] >= 3
    stored = StoredRun(RECIPE, out, inputs, Resources(device="cpu"))
    assert detect.reevaluate(stored) == metrics


def test_drawing_shows_objects_where_they_are(inputs: dict[str, Path]) -> None:
    sample = PackedDataset(inputs["dataset"], "test")[0]
    assert sample.instances is not None
    nothing = detect.as_instances([], 32, 32)
    plain = detect.draw(sample, nothing, [], "none, best 0.31")
    drawn = detect.draw(sample, sample.instances, [str(i) for i in range(10)], "")
    assert plain.shape == drawn.shape == (3, 160, 160)
    changed = (plain != drawn).any(dim=0)
    mask = sample.instances.masks.any(dim=0).repeat_interleave(5, 0).repeat_interleave(5, 1)
    assert changed[mask].float().mean() > 0.9
    other = detect.draw(sample, nothing, [], "none")  # the words are on the picture
    assert (plain != other)[:, :17].any()
    assert (plain == other)[:, 17:].all()
    assert (plain[:, 15, :40] == 0).all()
