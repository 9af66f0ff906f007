"""The detector as a whole: losses, gradients, learning."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from asl_core.data.prepare import prepare
from asl_core.data.samples import Instances, Sample
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.protocol import Draw, Step
from asl_core.recipes.datasets import Icons, Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.augment import (
    DetectionBatch,
    FitIntoSquare,
    LargeScaleJitter,
    collate_detection,
)
from asl_core.transfer.detection.evaluate import coco_metrics, coco_results, coco_scores
from asl_core.transfer.detection.heads import Detections
from asl_core.transfer.detection.model import MaskRcnn
from asl_core.transfer.detection.train import detect_test_images, train_detector

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' masks do not know NumPy 2's copy keyword yet."""

LOSSES = {"loss_objectness", "loss_proposal_box", "loss_class", "loss_box", "loss_mask"}
VIT = Vit(image_size=32, patch_size=8, embed_dim=48, depth=8, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip


def tiny_recipe(**changes: object) -> Detection:
    settings: dict = {
        "dataset": "scenes", "epochs": 1, "batch_size": 4, "image_size": 32, "lr": 1e-3,
        "scale_range": (0.8, 1.25), "window_size": 2, "pyramid_channels": 16,
        "anchor_sizes": (8, 12, 16, 24, 32), "rpn_batch": 32, "roi_batch": 16, "proposals": 30,
        "box_head_dim": 24, "precision": "fp32", "warmup_epochs": 0,
    }  # fmt: skip
    return Detection(**{**settings, **changes})


def tiny_model(recipe: Detection | None = None) -> MaskRcnn:
    torch.manual_seed(0)
    encoder = Encoder(VIT, drop_path=0.1)
    return MaskRcnn(encoder, 3, recipe or tiny_recipe(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def rectangle(index: int, count: int = 1) -> Sample:
    """Up to one rectangle of one of three colours on noise."""
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 60, (3, 32, 32), generator=generator, dtype=torch.uint8)
    y, x = torch.randint(0, 14, (2,), generator=generator).tolist()
    h, w = torch.randint(9, 18, (2,), generator=generator).tolist()
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, y : y + h, x : x + w] = True
    label = index % 3
    if count:
        image[label][masks[0]] = 250
    boxes = torch.tensor([[x, y, min(x + w, 32), min(y + h, 32)]] * count).float().reshape(-1, 4)
    labels = torch.full((count,), label)
    return Sample(
        index=index,
        image_id=index + 1,
        image=image,
        instances=Instances(boxes, labels, masks, torch.zeros(count, dtype=torch.bool)),
    )


def batch_of(counts: list[int]) -> DetectionBatch:
    transform = LargeScaleJitter(32, (1.0, 1.0))
    torch.manual_seed(1)
    return collate_detection([transform(rectangle(i, c)) for i, c in enumerate(counts)])


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("counts", [[1, 1], [0, 1], [0, 0]], ids=["full", "half", "empty"])
def test_losses_and_every_gradient_are_there_and_finite(counts: list[int]) -> None:
    # a parameter without gradient stops data-parallel training
    model = tiny_model().train()
    step = model(batch_of(counts), Draw(0, 0))
    assert set(step.terms) == LOSSES
    assert step.loss.item() == pytest.approx(sum(v.item() for v in step.terms.values()))
    step.loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    if not any(counts):
        assert step.terms["loss_mask"] == step.terms["loss_box"] == 0
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


def test_autocast_keeps_losses_and_boxes_in_float32() -> None:
    model = tiny_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = model(batch_of([1, 1]), Draw(0, 0))
        detections = model.eval().detect(batch_of([1, 1]))
    assert {value.dtype for value in [step.loss, *step.terms.values()]} == {torch.float32}
    step.loss.backward()
    assert {part.dtype for part in (detections[0].boxes, detections[0].scores)} == {torch.float32}


def test_detections_stay_inside_the_image_and_above_the_threshold() -> None:
    model = tiny_model().eval()
    wide = rectangle(0)
    items = [FitIntoSquare(32)(Sample(index=0, image_id=1, image=wide.image[:, :16]))]
    (found,) = model.detect(collate_detection(items))
    assert len(found.boxes) > 0
    assert found.boxes[:, 1::2].max() <= 16
    assert found.boxes[:, ::2].max() <= 32
    assert found.scores.min() > 0.05
    assert (found.scores.diff() <= 0).all()
    assert 1 <= found.labels.min() <= found.labels.max() <= 3
    assert found.mask_probabilities.shape == (len(found.boxes), 28, 28)


def test_beside_an_image_is_the_same_grey_in_training_and_at_test() -> None:
    sample = rectangle(0)
    small = dataclasses.replace(sample, image=sample.image[:, :20])
    tested = collate_detection([FitIntoSquare(32)(small)])
    assert tested.sizes == [(20, 32)]
    torch.manual_seed(0)
    trained = collate_detection([LargeScaleJitter(32, (0.5, 0.5), flip=0.0)(sample)])
    model = tiny_model()
    corners = [model.prepare(batch).tensors[0, :, -1, -1] for batch in (tested, trained)]
    assert torch.equal(*corners)
    assert not torch.equal(corners[0], torch.zeros(3))


def test_norms_positions_and_bias_tables_do_not_decay_and_biases_do() -> None:
    model = tiny_model()
    groups = model.parameter_groups(0.1)
    trained = [p for group in groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(trained) == len({id(p) for p in trained})
    free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in free}
    tables = {"backbone.pos_embed", "backbone.window_bias.table", "backbone.global_bias.table"}
    assert {name for name in names if model.get_parameter(name).ndim > 1} == tables
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            owner = model.get_submodule(name.rpartition(".")[0])
            assert (name in names) == ("Norm" in type(owner).__name__), name


def test_a_detector_learns_eight_pictures() -> None:
    model = tiny_model(tiny_recipe(pyramid_channels=32, box_head_dim=64)).train()
    samples = [rectangle(i) for i in range(8)]
    transform = LargeScaleJitter(32, (1.0, 1.0), flip=0.0)
    batch = collate_detection([transform(sample) for sample in samples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(90):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 90)
        optimizer.zero_grad()
        model(batch, Draw(0, step)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = model.eval().detect(collate_detection([FitIntoSquare(32)(s) for s in samples]))
    results = [
        result
        for sample, of_image in zip(samples, found, strict=True)
        for result in coco_results(of_image, sample.image_id, (32, 32), (32, 32))
    ]
    truth = [
        result
        for sample in samples
        if sample.instances is not None
        for result in _as_truth(sample.image_id, sample.instances)
    ]
    ground_truth = {
        "images": [{"id": s.image_id, "height": 32, "width": 32} for s in samples],
        "annotations": [{**r, "id": i + 1, "iscrowd": 0} for i, r in enumerate(truth)],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
    }
    metrics = coco_metrics(coco_scores(ground_truth, results))
    assert metrics["ap_box"] > 50
    assert metrics["ap_mask"] > 50


def _as_truth(image_id: int, instances: Instances) -> list[dict]:
    assert len(instances.boxes) == 1
    x1, y1, x2, y2 = (int(v) for v in instances.boxes[0])
    solid = torch.ones(1, 28, 28)
    exact = Detections(instances.boxes, torch.ones(1), instances.labels + 1, solid)
    (result,) = coco_results(exact, image_id, (32, 32), (32, 32))
    return [{**result, "area": (x2 - x1) * (y2 - y1)}]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=10, test=5, objects=(1, 2)), folder, folder, name="scenes")
    return folder


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Callable[..., RunContext]]:
    """Makes the surroundings of a run in a folder of its own."""
    journals = []

    def make(name: str = "run", num_workers: int = 0) -> RunContext:
        journals.append(Journal.open(tmp_path / name / "journal"))
        resources = Resources(device="cpu", num_workers=num_workers)
        return RunContext(tmp_path / name / "ckpt", journals[-1], resources)

    yield make
    for journal in journals:
        journal.close()


def test_training_and_scoring_run_on_packed_scenes(
    scenes: Path, encoder_folder: Path, context: Callable[..., RunContext]
) -> None:
    recipe = tiny_recipe(epochs=2)
    run = context()
    model = train_detector(recipe, encoder_folder, scenes, run)
    results = detect_test_images(model, recipe, scenes, run.resources)
    truth = PackedDataset(scenes, "test").coco_ground_truth()
    assert set(coco_metrics(coco_scores(truth, results))) == {
        "ap_box", "ap_box50", "ap_box75", "ap_mask", "ap_mask50", "ap_mask75",
    }  # fmt: skip
    known = set(PackedDataset(scenes, "test").image_ids.tolist())
    assert {result["image_id"] for result in results} <= known


def test_the_numbers_do_not_depend_on_the_loader_workers(
    scenes: Path, encoder_folder: Path, context: Callable[..., RunContext]
) -> None:
    states = [
        train_detector(
            tiny_recipe(), encoder_folder, scenes, context(str(n), num_workers=n)
        ).state_dict()
        for n in (0, 1)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_stopped_by_an_error_ends_with_the_same_bits(
    scenes: Path,
    encoder_folder: Path,
    context: Callable[..., RunContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tiny_recipe(epochs=3)
    whole = train_detector(recipe, encoder_folder, scenes, context("whole")).state_dict()
    often = dataclasses.replace(
        context("parts"), resources=Resources(device="cpu", checkpoint_minutes=0.0)
    )
    original = MaskRcnn.forward

    def failing(model: MaskRcnn, batch: DetectionBatch, draw: Draw) -> Step:
        if draw.step == 3:
            raise KeyboardInterrupt
        return original(model, batch, draw)

    monkeypatch.setattr(MaskRcnn, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        train_detector(recipe, encoder_folder, scenes, often)
    monkeypatch.undo()
    parts = train_detector(recipe, encoder_folder, scenes, often).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_pretrained_weights_are_what_training_starts_from(
    scenes: Path, encoder_folder: Path, context: Callable[..., RunContext]
) -> None:
    recipe = tiny_recipe(lr=1e-12, weight_decay=0.0, epochs=1)
    model = train_detector(recipe, encoder_folder, scenes, context())
    saved = load_encoder(encoder_folder)
    for ours, theirs in zip(model.backbone.blocks.parameters(), saved.blocks.parameters(),
                            strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.backbone.pos_embed, saved.pos_embed[:, 1:], rtol=0, atol=1e-6)


def test_a_dataset_without_boxes_is_refused(
    encoder_folder: Path, tmp_path: Path, context: Callable[..., RunContext]
) -> None:
    icons = tmp_path / "icons"
    prepare(Icons(image_size=16, train=6, test=4), icons, icons, name="icons")
    with pytest.raises(InputError, match="no boxes and masks"):
        train_detector(tiny_recipe(), encoder_folder, icons, context())


def test_an_image_size_that_patches_do_not_divide_is_refused(
    scenes: Path, encoder_folder: Path, context: Callable[..., RunContext]
) -> None:
    with pytest.raises(InputError, match="not divisible by patch_size"):
        train_detector(tiny_recipe(image_size=36), encoder_folder, scenes, context())
