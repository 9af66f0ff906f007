"""Several processes over gloo train like one."""

import dataclasses
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from miniatures import ASL, MAE, OTHERS, TINY
from process_groups import STOPPED, processes
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from asl_core import distributed
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.checkpoint import CheckpointFolder
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.pretrain import pretrain
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.datasets import Icons
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.transfer import FineTune, LinearProbe
from asl_core.transfer.classification import gather_predictions
from asl_core.transfer.finetune import Classifier, classify
from asl_core.transfer.linprobe import linprobe
from asl_core.transfer.probe_training import FeatureProbe
from pipeline.jobs.journal import effective_points

LONGER = AslRecipe(
    dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1,
    precision="fp32", clip_grad=1.0, seed=3,
)  # fmt: skip
PROBE = LinearProbe(
    dataset="icons", epochs=2, batch_size=16, lr=0.1, warmup_epochs=0, augment=False,
    precision="fp32",
)  # fmt: skip
FINETUNE = FineTune(dataset="icons", batch_size=8, precision="fp32")
ON_DEVICE = dataclasses.replace(ASL, images_on="device")
ALL: dict[str, Pretraining] = {"mae": MAE, "asl": ASL, "asl on the device": ON_DEVICE, **OTHERS}

pytestmark = pytest.mark.distributed


def train(
    rank: int,
    recipe: Pretraining,
    work: Path,
    dataset: Path,
    signals: dict[int, signal.Signals],
    signalled: Iterable[int],
) -> None:
    """Train, sending the signal of a step to itself after it; leave a digest of the weights.

    Leaves the gradients of each step as the optimiser gets them, too.
    """
    gradients: list[list[Tensor]] = []

    def keep(optimizer: Optimizer, *_: object) -> None:
        found = (p.grad for group in optimizer.param_groups for p in group["params"])
        gradients.append([gradient.clone() for gradient in found if gradient is not None])

    def after_step(self: ArbitrarySelfSupervised, step: int) -> None:
        if rank in signalled and step in signals:
            os.kill(os.getpid(), signals[step])

    ArbitrarySelfSupervised.after_step = after_step  # type: ignore[attr-defined]
    log_every = 4 if recipe is LONGER else 1
    resources = Resources(device="cpu", log_every_steps=log_every, checkpoint_minutes=60)
    with Journal.open(work / f"journal-{rank}") as journal, register_optimizer_step_pre_hook(keep):
        method = pretrain(recipe, dataset, RunContext(work / "ckpt", journal, resources))
    torch.save(gradients, work / f"gradients-{rank}.pt")
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    (work / f"sha256-{rank}").write_text(digest.hexdigest())


def losses(work: Path) -> list[tuple[int, float]]:
    points = effective_points(work / "journal-0")["train/loss"]
    return [(step, value) for step, value, _ in points]


@pytest.mark.parametrize("method", ALL)
def test_several_processes_have_the_losses_and_gradients_of_one(
    method: str, icons: Path, tmp_path: Path
) -> None:
    curves, gradients = [], []
    for world_size in (1, 2, 4):
        work = tmp_path / str(world_size)
        work.mkdir()
        assert processes(world_size, train, ALL[method], work, icons, {}, ()) == {0}
        curves.append([value for _, value in losses(work)])
        gradients.append(torch.load(work / f"gradients-{world_size - 1}.pt"))
    assert len(curves[0]) == len(gradients[0]) == 5
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-5)
    expected = gradients[0][0]  # of the first step: later ones are of other weights
    whole = torch.stack([gradient.norm() for gradient in expected]).norm()
    for first, *_ in gradients[1:]:
        differences = [
            (ours - gradient).norm() for ours, gradient in zip(first, expected, strict=True)
        ]
        assert torch.stack(differences).norm() <= 1e-5 * whole
        for difference, gradient in zip(differences, expected, strict=True):
            # what is zero but for rounding, as a bias in front of BatchNorm, has no relative error
            assert difference <= 1e-4 * gradient.norm() + 3e-6 * whole


def test_a_step_that_is_compared_is_not_split(icons: Path, tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        resources = Resources(device="cpu", micro_batch_size=4)
        with pytest.raises(
            InputError, match=r"micro_batch_size 4 in cluster\.yaml would split the 8"
        ):
            pretrain(OTHERS["ccmim"], icons, RunContext(tmp_path / "ckpt", journal, resources))


@pytest.mark.parametrize(("world_size", "signalled"), [(1, [0]), (2, [1]), (2, [0, 1])])
def test_a_stop_between_log_lines_changes_neither_weights_nor_losses(
    world_size: int, signalled: list[int], icons: Path, tmp_path: Path
) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert processes(world_size, train, LONGER, undisturbed, icons, {}, ()) == {0}
    signals = {6: signal.SIGUSR2, 7: signal.SIGTERM}
    for step in signals:
        codes = processes(world_size, train, LONGER, stopped, icons, signals, signalled)
        assert codes == {STOPPED}
        assert list(stopped.glob(f"ckpt/step-{step:09d}-*"))
    assert processes(world_size, train, LONGER, stopped, icons, {}, ()) == {0}
    assert [step for step, _ in losses(stopped)] == [4, 8, 12, 15]
    assert losses(stopped) == losses(undisturbed)
    digests = {path.read_text() for path in tmp_path.glob("*/sha256-*")}
    assert len(digests) == 1


def probe(rank: int, work: Path, encoder: Path, dataset: Path, stop_at: int | None) -> None:
    """Probe, stopping itself after a step; leave the head, and the scores of test images."""

    def after_step(self: FeatureProbe, step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)

    FeatureProbe.after_step = after_step  # type: ignore[attr-defined]
    with Journal.open(work / f"journal-{rank}") as journal:
        context = RunContext(work / "ckpt", journal, Resources(device="cpu"))
        heads, result = linprobe(PROBE, encoder, dataset, context)
    torch.save((heads.state_dict(), result.of("cls").logits), work / f"probe-{rank}.pt")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_encoder(folder, Encoder(TINY).state_dict(), TINY)
    return folder


def test_a_stop_before_the_evaluation_leaves_its_scores_as_they_are(
    encoder: Path, icons: Path, tmp_path: Path
) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert processes(2, probe, undisturbed, encoder, icons, None) == {0}
    assert processes(2, probe, stopped, encoder, icons, 4) == {STOPPED}
    assert list(stopped.glob("ckpt/step-000000004-*"))
    assert processes(2, probe, stopped, encoder, icons, None) == {0}
    # running statistics: each process sees batches of its own
    results = [torch.load(path, weights_only=True) for path in tmp_path.glob("*/probe-*")]
    assert len(results) == 4
    for head, scores in results:
        torch.testing.assert_close(head, results[0][0], rtol=0, atol=0)
        assert torch.equal(scores, results[0][1])


def evaluate(rank: int, encoder: Path, dataset: Path, work: Path) -> None:
    """Score the test images with a probe and with a classifier."""
    torch.manual_seed(0)
    classifier = Classifier(load_encoder(encoder), 10, FINETUNE, (0.5,) * 3, (0.5,) * 3)
    nn.init.normal_(classifier.head.weight)
    test = PackedDataset(dataset, "test")
    classified = classify(classifier, test, "fp32", Resources(device="cpu"))
    with Journal.open(work / f"journal-{rank}") as journal:
        context = RunContext(work / "ckpt", journal, Resources(device="cpu"))
        _, result = linprobe(PROBE, encoder, dataset, context)
    probed = result.of("cls")
    for predictions in (classified, probed):
        assert predictions.indices.tolist() == [0, 1, 2, 3, 4]
    torch.save((classified.logits, probed.logits), work / f"scores-{rank}.pt")


def test_each_test_image_counts_once_with_fewer_images_than_processes(
    encoder: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "data"
    prepare(Icons(image_size=16, train=40, test=5), dataset, dataset, name="icons")
    for world_size in (1, 4, 8):
        assert processes(world_size, evaluate, encoder, dataset, tmp_path / str(world_size)) == {0}
    scores = {path: torch.load(path) for path in tmp_path.glob("*/scores-*")}
    assert len(scores) == 1 + 4 + 8
    expected = scores[tmp_path / "1/scores-0.pt"]
    for each in scores.values():
        torch.testing.assert_close(each[0], expected[0])
        assert each[1].shape == expected[1].shape


def load_newest(rank: int, work: Path, appears_s: float, message: str) -> None:
    """Load a checkpoint from this process's own view of the folder."""
    folder = CheckpointFolder(work / f"seen-by-{rank}", appears_s)
    if message:
        with pytest.raises(InputError, match=message):
            folder.load_newest()
        return
    hidden = work / "hidden"
    if rank == 1 and hidden.exists():
        shown = work / "seen-by-1" / (work / "name").read_text()
        threading.Timer(0.3, hidden.rename, [shown]).start()
    assert folder.load_newest() == (7, {"x": 7})


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """Show the checkpoints of steps 3 and 7 to the first process, only 3 to the second."""
    first = CheckpointFolder(tmp_path / "seen-by-0")
    old, new = first.save(3, {"x": 3}), first.save(7, {"x": 7})
    (tmp_path / "seen-by-1").mkdir()
    shutil.copy(old, tmp_path / "seen-by-1")
    shutil.copy(new, tmp_path / "hidden")
    (tmp_path / "name").write_text(new.name)
    return tmp_path


def test_all_resume_from_the_checkpoint_that_the_first_process_chose(late: Path) -> None:
    assert processes(2, load_newest, late, 60.0, "") == {0}


def test_a_checkpoint_that_one_process_never_sees_is_an_error_of_all(late: Path) -> None:
    message = r"process 1 finds no whole checkpoint .*/step-000000007-\w+\.pt within 0.2 s"
    assert processes(2, load_newest, late, 0.2, message) == {0}


def test_only_damaged_checkpoints_are_an_error_of_all(late: Path) -> None:
    for path in late.glob("seen-by-0/*"):
        path.write_bytes(b"no")
    assert processes(2, load_newest, late, 60.0, "are damaged; delete") == {0}


def gather_uneven_shares(rank: int) -> None:
    # rank 0 has two samples more
    indices = torch.arange(5) if rank == 0 else torch.arange(5, 8)
    joined = gather_predictions(indices, indices % 3, torch.eye(3)[indices % 3])
    assert joined.indices.tolist() == list(range(8))
    assert joined.accuracy() == 100.0


def test_uneven_shares_are_joined_in_order() -> None:
    assert processes(2, gather_uneven_shares) == {0}


def test_gathers_are_the_identity_without_a_group() -> None:
    assert distributed.gather_objects(3) == [3]
    x = torch.ones(2)
    assert distributed.all_reduce_sum(x) is x
    assert distributed.largest(3, 5) == [3, 5]
    assert distributed.any_process(True)
