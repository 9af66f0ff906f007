"""A run killed at any step and started again ends with the weights of one left alone."""

import dataclasses
import hashlib
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InterruptedRun
from asl_core.methods import method_class
from asl_core.pretrain import pretrain
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.sim import SimRecipe
from pipeline.jobs.journal import effective_points, read_records

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
RECIPE = AslRecipe(
    dataset="icons", model=TINY, design="dle", epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1,
    precision="fp32", clip_grad=1.0, seed=3,
)  # fmt: skip
ON_DEVICE = dataclasses.replace(RECIPE, images_on="device")
WITH_TEACHERS: dict[str, Pretraining] = {
    "ibot": IbotRecipe(
        dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1, seed=3,
        precision="fp32", out_dim=24, head_hidden_dim=16, head_bottleneck_dim=8, drop_path=0.2,
        freeze_last_layer=1, warmup_teacher_temp_epochs=2, local_crops=1, local_size=8,
    ),
    "sim": SimRecipe(
        dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1, seed=3,
        precision="fp32", predictor_embed_dim=16, predictor_num_heads=2, predictor_depth=1,
    ),
    "mocov3": MocoV3Recipe(
        dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1, seed=3,
        precision="fp32", projector_hidden=24, projector_dim=8, teacher_momentum=0.9,
    ),
    "cae": CaeRecipe(
        dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1, seed=3,
        precision="fp32", tokenizer="kmeans", drop_path=0.2, regressor_depth=1, decoder_depth=1,
    ),
}  # fmt: skip
READINGS: dict[str, AslRecipe] = {
    "layer and warm-up": replace(
        RECIPE, design="aee", aee_layer="vaswani", aee_dropout=0.3, sem_warmup_epochs=2.0
    ),
    "patches and signs": replace(RECIPE, dle_unit="patch", dle_rate=0.3, sem_sign="random"),
    "augmented branch": replace(RECIPE, design="aee", mae_on="aug", precision="bf16",
                                sem_precision="full"),
}  # fmt: skip
TOTAL = 15  # optimiser steps: 3 epochs of 40 images


def train(
    work: Path,
    dataset: Path,
    *,
    kill_at: int | None = None,
    forbid_steps: bool = False,
    minutes: float = 0,
    kill_with: signal.Signals = signal.SIGKILL,
    workers: int = 0,
    micro: int | None = None,
    recipe: Pretraining = RECIPE,
) -> None:
    """Train in this process, sending it a signal after step `kill_at`."""
    work.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    resources = Resources(
        device="cpu", num_workers=workers, checkpoint_minutes=minutes, log_every_steps=4,
        micro_batch_size=micro,
    )  # fmt: skip
    journal = Journal.open(work / "journal")
    context = RunContext(work / "ckpt", journal, resources)

    kind: Any = method_class(recipe.method)
    follow = getattr(kind, "after_step", lambda method, step: None)

    def after_step(self: Any, step: int) -> None:
        assert not forbid_steps
        follow(self, step)
        if step == kill_at:
            os.kill(os.getpid(), kill_with)

    kind.after_step = after_step
    method = pretrain(recipe, dataset, context)
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    (work / "sha256").write_text(digest.hexdigest())


def run(work: Path, dataset: Path, **options: object) -> int | None:
    """Train in a forked process, as a kill would otherwise end the tests."""
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(work, dataset), kwargs=options
    )
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(icons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("undisturbed")
    assert run(work, icons) == 0
    return work


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_with_the_same_weights(
    workers: int, undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    for step in (2, 7, 13):
        assert run(tmp_path, icons, kill_at=step, workers=workers) == -signal.SIGKILL
    assert run(tmp_path, icons, workers=2 - workers) == 0
    assert (tmp_path / "sha256").read_text() == (undisturbed / "sha256").read_text()


@pytest.mark.parametrize("method", WITH_TEACHERS)
def test_teachers_centres_and_frozen_layers_survive_a_kill(
    method: str, icons: Path, tmp_path: Path
) -> None:
    recipe = WITH_TEACHERS[method]
    assert run(tmp_path / "whole", icons, recipe=recipe) == 0
    for step in (2, 7, 13):  # in the first epoch, in which prototypes are frozen, and after it
        code = run(tmp_path / "killed", icons, kill_at=step, recipe=recipe, workers=step % 2)
        assert code == -signal.SIGKILL
    assert run(tmp_path / "killed", icons, recipe=recipe) == 0
    assert len({path.read_text() for path in tmp_path.glob("*/sha256")}) == 1


def test_images_on_the_device_are_cropped_alike_after_a_kill(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    assert run(tmp_path / "whole", icons, recipe=ON_DEVICE) == 0
    for step in (2, 7, 13):
        code = run(tmp_path / "killed", icons, kill_at=step, recipe=ON_DEVICE, workers=step % 2)
        assert code == -signal.SIGKILL
    assert run(tmp_path / "killed", icons, recipe=ON_DEVICE) == 0
    digests = {path.read_text() for path in tmp_path.glob("*/sha256")}
    assert len(digests) == 1
    assert digests != {(undisturbed / "sha256").read_text()}  # other draws than the loader's


@pytest.mark.parametrize("reading", READINGS)
def test_readings_of_asl_survive_a_kill(reading: str, icons: Path, tmp_path: Path) -> None:
    recipe = READINGS[reading]
    assert run(tmp_path / "whole", icons, recipe=recipe) == 0
    for step in (2, 7):  # while the weight grows
        code = run(tmp_path / "killed", icons, kill_at=step, recipe=recipe, workers=step % 2)
        assert code == -signal.SIGKILL
    assert run(tmp_path / "killed", icons, recipe=recipe) == 0
    assert len({path.read_text() for path in tmp_path.glob("*/sha256")}) == 1


def test_killed_run_leaves_one_value_per_step(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    run(tmp_path, icons, kill_at=9)
    run(tmp_path, icons)

    def losses(work: Path) -> list[tuple[int, float]]:
        points = effective_points(work / "journal")["train/loss"]
        return [(step, value) for step, value, _ in points]

    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.parametrize("step", [5, TOTAL])
def test_sigterm_writes_a_checkpoint_and_says_so(step: int, icons: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def target() -> None:
        try:
            train(tmp_path, icons, kill_at=step, kill_with=signal.SIGTERM)
        except InterruptedRun as error:
            queue.put(str(error))

    process = context.Process(target=target)
    process.start()
    message = queue.get(timeout=120)
    process.join()
    assert f"SIGTERM after step {step};" in message
    assert list(tmp_path.glob(f"ckpt/step-{step:09d}-*"))


def test_a_run_that_has_done_its_last_step_does_none_again(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    assert run(tmp_path, icons, minutes=60) == 0
    assert [path.name[:14] for path in (tmp_path / "ckpt").iterdir()] == [f"step-{TOTAL:09d}"]
    (tmp_path / "sha256").unlink()
    assert run(tmp_path, icons, forbid_steps=True) == 0
    assert (tmp_path / "sha256").read_text() == (undisturbed / "sha256").read_text()
    points = effective_points(tmp_path / "journal")["train/loss"]
    assert [step for step, _, _ in points] == [4, 8, 12, TOTAL]


def test_accumulation_changes_rounding_only(undisturbed: Path, icons: Path, tmp_path: Path) -> None:
    assert run(tmp_path, icons, micro=3) == 0
    a, b = (
        [value for _, value, _ in effective_points(work / "journal")["train/loss"]]
        for work in (undisturbed, tmp_path)
    )
    assert a == pytest.approx(b, rel=1e-4)


def test_a_process_that_may_not_write_leaves_the_checkpoints_alone(
    icons: Path, tmp_path: Path
) -> None:
    class GivenUpError(Exception):
        pass

    calls: list[int] = []

    def before_checkpoint() -> None:
        calls.append(len(list(tmp_path.glob("ckpt/step-*"))))
        if len(calls) == 2:
            raise GivenUpError

    torch.set_num_threads(1)
    resources = Resources(device="cpu", checkpoint_minutes=0, log_every_steps=4)
    with Journal.open(tmp_path / "journal") as journal:
        context = RunContext(
            tmp_path / "ckpt", journal, resources, before_checkpoint=before_checkpoint
        )
        with pytest.raises(GivenUpError):
            pretrain(RECIPE, icons, context)
    assert calls == [0, 1]
    (checkpoint,) = (tmp_path / "ckpt").iterdir()
    assert checkpoint.name.startswith("step-000000001-")
    (start,) = [record for record in read_records(tmp_path / "journal") if record.kind == "resume"]
    assert start.body["step"] == 0
    assert start.body["total_steps"] > 2
