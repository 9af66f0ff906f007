"""float16: the loss is scaled, steps that overflow are skipped, and a resume knows of both."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import ASL, MAE, TINY
from process_groups import processes
from torch import Tensor, nn

from asl_core import distributed
from asl_core.engine.context import RunContext
from asl_core.engine.devices import require_precision
from asl_core.engine.journal import Journal
from asl_core.engine.loss_scaling import LossScaler
from asl_core.errors import InputError, TrainingError
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.pretrain import pretrain
from asl_core.protocol import Draw, Step, Views
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.transfer import LinearProbe
from pipeline.jobs.journal import effective_points

HALF = AslRecipe(
    dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-2, warmup_epochs=1, seed=3,
    precision="fp16", clip_grad=1.0,
)  # fmt: skip
SPOILT = 4  # steps before the one whose gradient overflows


def spoil(steps: Callable[[int], bool], rank: int = 0) -> None:
    """Make the gradient of some steps infinite, not their loss; for the rest of the process."""
    for kind in (ArbitrarySelfSupervised, MaskedAutoencoder):

        def forward(self: Any, batch: Views, draw: Draw, plain: Any = kind.forward) -> Step:
            step = plain(self, batch, draw)
            if steps(draw.step) and distributed.rank() == rank:
                step.loss.register_hook(lambda gradient: gradient * torch.inf)
            return step

        kind.forward = forward  # type: ignore[method-assign]


def train(
    work: Path,
    dataset: Path,
    *,
    recipe: Pretraining = HALF,
    steps: Callable[[int], bool] = lambda step: step == SPOILT,
    kill_at: int | None = None,
    rank: int = 0,
) -> None:
    work.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    spoil(steps, rank)

    def after_step(self: Any, step: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    ArbitrarySelfSupervised.after_step = after_step  # type: ignore[attr-defined]
    resources = Resources(device="cpu", checkpoint_minutes=0, log_every_steps=1)
    own = distributed.rank()
    with Journal.open(work / f"journal-{own}") as journal:
        method = pretrain(recipe, dataset, RunContext(work / "ckpt", journal, resources))
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    (work / f"sha256-{own}").write_text(digest.hexdigest())


def train_as(rank: int, work: Path, dataset: Path) -> None:
    train(work, dataset, recipe=replace(HALF, clip_grad=None), rank=1)


def run(work: Path, dataset: Path, **options: Any) -> int | None:
    """Train in a forked process, which a kill ends alone."""
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(work, dataset), kwargs=options
    )
    process.start()
    process.join()
    return process.exitcode


def curve(work: Path, name: str) -> list[float]:
    return [value for _, value, _ in effective_points(work / "journal-0")[f"train/{name}"]]


def test_killed_run_knows_scale_and_skipped_steps(icons: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, icons) == 0
    for step in (SPOILT, SPOILT + 1, 11):  # before the skipped step, after it, later
        assert run(killed, icons, kill_at=step) == -signal.SIGKILL
    assert run(killed, icons) == 0
    assert (killed / "sha256-0").read_text() == (whole / "sha256-0").read_text()
    for name in ("loss", "loss_scale", "skipped_steps", "grad_norm"):
        assert curve(killed, name) == curve(whole, name)
    assert curve(whole, "skipped_steps") == [0.0] * SPOILT + [1.0] * (15 - SPOILT)
    assert curve(whole, "loss_scale") == [2.0**16] * SPOILT + [2.0**15] * (15 - SPOILT)
    norms = curve(whole, "grad_norm")
    assert norms[SPOILT] == 0
    assert all(0 < norm < 100 for i, norm in enumerate(norms) if i != SPOILT)
    saved = torch.load(max((whole / "ckpt").iterdir()), weights_only=True)["scaler"]
    assert saved["skipped"] == 1
    assert saved["scaler"]["_growth_tracker"] == 15 - SPOILT - 1


def test_several_processes_skip_the_step_that_one_of_them_spoils(
    icons: Path, tmp_path: Path
) -> None:
    assert processes(2, train_as, tmp_path, icons) == {0}
    assert len({path.read_text() for path in tmp_path.glob("sha256-*")}) == 1
    assert curve(tmp_path, "skipped_steps")[-1] == 1
    assert torch.isfinite(torch.tensor(curve(tmp_path, "loss"))).all()


def test_whoever_clips_or_edits_sees_gradients_of_their_own_size(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    class Watched(MaskedAutoencoder):
        def edit_gradients(self, step: int) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    # a class of its own: what a class is an instance of is remembered for the whole process
    monkeypatch.setattr("asl_core.pretrain.method_class", lambda _: Watched)
    for precision in ("fp32", "fp16"):
        recipe = replace(MAE, precision=precision, clip_grad=0.01)
        with Journal.open(tmp_path / precision / "journal-0") as journal:
            resources = Resources(device="cpu", log_every_steps=1)
            context = RunContext(tmp_path / precision / "ckpt", journal, resources)
            pretrain(recipe, icons, context)
    assert norms == pytest.approx([0.01] * 10, rel=1e-3)
    exact, half = curve(tmp_path / "fp32", "grad_norm"), curve(tmp_path / "fp16", "grad_norm")
    assert half == pytest.approx(exact, rel=1e-2)
    assert half != exact
    assert "train/loss_scale" not in effective_points(tmp_path / "fp32" / "journal-0")


def test_a_run_that_skips_every_step_ends(icons: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def target() -> None:
        try:
            train(tmp_path, icons, recipe=replace(HALF, epochs=6), steps=lambda step: True)
        except TrainingError as error:
            queue.put(str(error))

    process = context.Process(target=target)
    process.start()
    message = queue.get(timeout=120)
    process.join()
    assert "gradients are not finite though the loss is; steps are skipped, 17 so far" in message
    assert "fallen to 0.5; lower the learning rate or use precision fp32" in message


def line(seed: int) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def do_step(model: nn.Linear, optimizer: Any, scaler: LossScaler, x: Tensor) -> None:
    optimizer.zero_grad()
    scaler.scale(model(x).square().mean()).backward()
    scaler.unscale(optimizer)
    scaler.step(optimizer)


def test_a_scale_changes_no_bit_and_a_skipped_step_leaves_no_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(4, 3, generator=generator) for _ in range(6)]
    plain, plain_optimizer = line(1)
    scaled, scaled_optimizer = line(1)
    none, scaler = LossScaler(), LossScaler("fp16")
    for i, x in enumerate(inputs):
        if i == 2:
            do_step(scaled, scaled_optimizer, scaler, x * torch.nan)
        do_step(plain, plain_optimizer, none, x)
        do_step(scaled, scaled_optimizer, scaler, x)
    assert torch.equal(plain.weight, scaled.weight)
    assert scaler.to_log() == {"loss_scale": 2.0**15, "skipped_steps": 1.0}
    assert none.to_log() == none.state_dict() == {}


def test_growth_of_the_scale_goes_on_where_it_was() -> None:
    x = torch.ones(1, 3)
    model, optimizer = line(2)
    scaler = LossScaler("fp16")
    for _ in range(1500):
        do_step(model, optimizer, scaler, x)
    again = LossScaler("fp16")
    again.load_state_dict(scaler.state_dict())
    for _ in range(499):
        do_step(model, optimizer, again, x)
    assert again.to_log()["loss_scale"] == 2.0**16
    do_step(model, optimizer, again, x)  # the 2,000th
    assert again.to_log() == {"loss_scale": 2.0**17, "skipped_steps": 0.0}


def test_a_torch_without_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for precision in ("fp32", "bf16", "fp16"):
        require_precision(precision, cpu)
    # torch warns, and computes in float32, where it does not know a precision
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    require_precision("fp32", cpu)
    with pytest.raises(InputError, match=r"^precision fp16: torch .* in it on a cpu; use fp32"):
        require_precision("fp16", cpu)


def test_only_mae_and_asl_may_be_float16() -> None:
    assert replace(MAE, precision="fp16").precision == replace(ASL, precision="fp16").precision
    with pytest.raises(ValueError, match="precision fp16 is for pre-training of mae and asl"):
        LinearProbe(dataset="icons", precision="fp16")
