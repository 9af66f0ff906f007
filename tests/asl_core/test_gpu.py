"""On a GPU: the numbers of the CPU, bf16, compiled code, resuming, every transfer task."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import ASL, MAE, OTHERS

from asl_core.data.device_images import load_on_device
from asl_core.data.device_loader import DeviceLoader
from asl_core.data.prepare import prepare
from asl_core.data.sampler import StepPlan
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.device_loading import device_loader
from asl_core.engine.journal import Journal
from asl_core.engine.loop import fit
from asl_core.methods import method_class
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.pretrain import build_method, pretrain
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.transfer import Detection, FineTune, LinearProbe, Segmentation
from asl_core.transfer.attentive import attentive_probe, evaluate_attentive
from asl_core.transfer.detection.evaluate import coco_metrics, coco_scores
from asl_core.transfer.detection.train import detect_test_images, train_detector
from asl_core.transfer.finetune import classify, finetune
from asl_core.transfer.linprobe import evaluate_probe, linprobe
from asl_core.transfer.segmentation.evaluate import score
from asl_core.transfer.segmentation.train import semantic_dataset, train_segmenter
from pipeline.jobs.journal import effective_points

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

ON_DEVICE = dataclasses.replace(MAE, images_on="device")
ALL: dict[str, Pretraining] = {"mae": MAE, "asl": ASL, "mae on the device": ON_DEVICE, **OTHERS}
HALVED = [*((name, "bf16") for name in ALL), ("mae", "fp16"), ("asl", "fp16")]
CPU, GPU = Resources(device="cpu", log_every_steps=1), Resources(device="cuda", log_every_steps=1)
SQUARE = Vit(image_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2)


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep convolutions from TF32, which torch allows them; products of matrices have none."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=9, test=5), folder, folder, name="scenes")
    return folder


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_encoder(folder, Encoder(SQUARE).state_dict(), SQUARE)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RunContext]:
    with Journal.open(tmp_path / "journal") as journal:
        yield RunContext(tmp_path / "ckpt", journal, dataclasses.replace(GPU, num_workers=2))


def train(
    recipe: Pretraining, dataset: Path, work: Path, resources: Resources
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the loss of every step and the state at the end."""
    with Journal.open(work / "journal") as journal:
        method = pretrain(recipe, dataset, RunContext(work / "ckpt", journal, resources))
    losses = [value for _, value, _ in effective_points(work / "journal")["train/loss"]]
    return losses, {name: tensor.cpu() for name, tensor in method.state_dict().items()}


def without_drop_path(recipe: Any) -> Any:
    """Leave out what draws from a device's own generator."""
    return dataclasses.replace(recipe, drop_path=0.0) if hasattr(recipe, "drop_path") else recipe


@pytest.mark.parametrize("name", ALL)
def test_losses_are_those_of_the_cpu(name: str, icons: Path, tmp_path: Path) -> None:
    recipe = without_drop_path(ALL[name])
    expected, _ = train(recipe, icons, tmp_path / "cpu", CPU)
    losses, _ = train(recipe, icons, tmp_path / "gpu", GPU)
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "precision"), HALVED)
def test_half_is_close_to_fp32(name: str, precision: Any, icons: Path, tmp_path: Path) -> None:
    expected, _ = train(ALL[name], icons, tmp_path / "fp32", GPU)
    halved = dataclasses.replace(ALL[name], precision=precision)
    losses, state = train(halved, icons, tmp_path / precision, GPU)
    assert losses == pytest.approx(expected, rel=0.1)
    assert losses != expected
    assert not {tensor.dtype for tensor in state.values()} & {torch.bfloat16, torch.float16}


@pytest.mark.parametrize(("name", "precision"), HALVED)
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str, precision: Any, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(ALL[name], precision=precision)
    losses, whole = train(recipe, icons, tmp_path / "whole", GPU)
    kind: Any = method_class(recipe.method)
    follow = getattr(kind, "after_step", lambda method, step: None)

    def stops(self: Any, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        follow(self, step)

    often = dataclasses.replace(GPU, checkpoint_minutes=0, num_workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "after_step", stops, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, icons, tmp_path / "parts", often)
    again, state = train(recipe, icons, tmp_path / "parts", GPU)
    assert again == losses
    assert all(torch.equal(state[key], whole[key]) for key in whole)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["mae", "asl", "mae on the device"])
def test_compiled_code_has_the_losses_of_eager_code(
    name: str, graphs: bool, icons: Path, tmp_path: Path
) -> None:
    expected, _ = train(ALL[name], icons, tmp_path / "eager", GPU)
    compiled = dataclasses.replace(GPU, compile=True, cuda_graphs=graphs)
    losses, _ = train(ALL[name], icons, tmp_path / "compiled", compiled)
    assert losses == pytest.approx(expected, rel=1e-4)


def test_crops_on_the_device_are_those_of_the_cpu(icons: Path) -> None:
    dataset = PackedDataset(icons, "train")
    plan = StepPlan(indices=range(len(dataset)), seed=1, batch_size=8, epochs=2)
    cpu, gpu = (
        DeviceLoader(load_on_device(dataset, torch.device(kind)), plan, MAE.view_plan())
        for kind in ("cpu", "cuda")
    )
    for ours, theirs in zip(gpu.iterate(0), cpu.iterate(0), strict=True):
        assert torch.equal(ours[0].views[0].cpu(), theirs[0].views[0])
        assert torch.equal(ours[0].indices.cpu(), theirs[0].indices)


@pytest.mark.parametrize("graphs", [False, True])
def test_no_step_waits_for_the_device(graphs: bool, icons: Path, tmp_path: Path) -> None:
    changed = dataclasses.replace(ON_DEVICE, epochs=20, clip_grad=1.0, snapshots=0)
    quiet = dataclasses.replace(GPU, log_every_steps=1000, compile=graphs, cuda_graphs=graphs)
    wait = {51: "error", 98: "default"}  # after the last witness, before the end
    set_mode: Any = torch.cuda.set_sync_debug_mode
    try:
        with Journal.open(tmp_path / "journal") as journal:
            context = RunContext(tmp_path / "ckpt", journal, quiet)
            method = build_method(changed, PackedDataset(icons, "train"))
            loader = device_loader(
                PackedDataset(icons, "train"), changed.view_plan(), changed, quiet
            )
            at_steps = {step: partial(set_mode, mode) for step, mode in wait.items()}
            fit(method, loader, changed, context, at_steps=at_steps)
    finally:
        set_mode("default")


@pytest.mark.parametrize("augment", [True, False])
def test_linear_probe(
    augment: bool, icons: Path, encoder_folder: Path, context: RunContext
) -> None:
    recipe = LinearProbe(
        dataset="icons", epochs=2, batch_size=16, lr=0.1, warmup_epochs=0, augment=augment
    )
    heads, result = linprobe(recipe, encoder_folder, icons, context)
    encoder = load_encoder(encoder_folder)
    on_cpu = evaluate_probe(heads, encoder, recipe, icons, CPU, result.training)
    torch.testing.assert_close(
        result.of("cls").logits, on_cpu.of("cls").logits, rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("augment", [True, False])
def test_attentive_probe(
    augment: bool, icons: Path, encoder_folder: Path, context: RunContext
) -> None:
    recipe = AttentiveProbe(
        dataset="icons", epochs=2, batch_size=16, warmup_epochs=0, augment=augment, queries=4,
        grid_rates=(0.1, 1.6), held_out=0.25,
    )  # fmt: skip
    heads, result = attentive_probe(recipe, encoder_folder, icons, context)
    encoder = load_encoder(encoder_folder)
    on_cpu = evaluate_attentive(heads, encoder, recipe, icons, CPU, result.training)
    torch.testing.assert_close(
        result.predictions.logits, on_cpu.predictions.logits, rtol=0.05, atol=0.05
    )


def test_fine_tuning(icons: Path, encoder_folder: Path, context: RunContext) -> None:
    recipe = FineTune(dataset="icons", epochs=1, batch_size=8, warmup_epochs=0)
    model, predictions = finetune(recipe, encoder_folder, icons, context)
    on_cpu = classify(model, PackedDataset(icons, "test"), "fp32", CPU)
    torch.testing.assert_close(predictions.logits, on_cpu.logits, rtol=0.05, atol=0.05)


def test_detection(scenes: Path, encoder_folder: Path, context: RunContext) -> None:
    recipe = Detection(
        dataset="scenes", epochs=2, batch_size=4, image_size=32, lr=1e-3, scale_range=(0.8, 1.25),
        window_size=2, pyramid_channels=16, anchor_sizes=(8, 12, 16, 24, 32), rpn_batch=32,
        roi_batch=16, proposals=30, box_head_dim=24, warmup_epochs=0,
    )  # fmt: skip
    model = train_detector(recipe, encoder_folder, scenes, context)
    whole = dataclasses.replace(recipe, precision="fp32")
    truth = PackedDataset(scenes, "test").coco_ground_truth()
    on_gpu, on_cpu = (
        coco_metrics(coco_scores(truth, detect_test_images(model, whole, scenes, resources)))
        for resources in (GPU, CPU)
    )
    assert on_gpu == pytest.approx(on_cpu, abs=0.5)


def test_segmentation(scenes: Path, encoder_folder: Path, context: RunContext) -> None:
    recipe = Segmentation(
        dataset="scenes", epochs=1, batch_size=4, lr=1e-3, warmup_epochs=0, crop_size=24,
        slide_stride=16, channels=8, auxiliary_channels=4,
    )  # fmt: skip
    model = train_segmenter(recipe, encoder_folder, scenes, context)
    test, whole = semantic_dataset(scenes, "test"), dataclasses.replace(recipe, precision="fp32")
    on_gpu, on_cpu = (score(model, test, whole, device).metrics() for device in (GPU, CPU))
    assert on_gpu == pytest.approx(on_cpu, abs=0.5)
