"""A loss that is not finite, or too little memory, ends the run and says where."""

from pathlib import Path

import pytest
import torch

from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import TrainingError
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.pretrain import pretrain
from asl_core.protocol import Draw, Step, Views
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
RECIPE = MaeRecipe(
    dataset="icons", model=TINY, epochs=3, batch_size=8, lr=1e-3, warmup_epochs=0, precision="fp32"
)


def train(icons: Path, work: Path, checkpoint_minutes: float) -> None:
    with Journal.open(work / "journal") as journal:
        resources = Resources(
            device="cpu", threads=1, log_every_steps=5, checkpoint_minutes=checkpoint_minutes,
            micro_batch_size=4,
        )  # fmt: skip
        pretrain(RECIPE, icons, RunContext(work / "ckpt", journal, resources))


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the loss of the eighth step infinite; gives the samples of that step."""
    samples: list[int] = []
    forward = MaskedAutoencoder.forward

    def spoil(self: MaskedAutoencoder, batch: Views, draw: Draw) -> Step:
        step = forward(self, batch, draw)
        if draw.step != 7:  # counted from 0
            return step
        samples.extend(batch.indices.tolist())
        return Step(step.loss * torch.inf, step.terms)

    monkeypatch.setattr(MaskedAutoencoder, "forward", spoil)
    return samples


def test_run_stops_with_step_samples_and_newest_checkpoint(
    icons: Path, tmp_path: Path, spoilt: list[int]
) -> None:
    with pytest.raises(TrainingError) as caught:
        train(icons, tmp_path, checkpoint_minutes=0)
    message = str(caught.value)
    assert "not finite at step 8," in message
    assert len(spoilt) == 8
    assert f"samples {', '.join(map(str, spoilt))} of" in message
    newest = sorted((tmp_path / "ckpt").iterdir())[-1]
    assert newest.name.startswith("step-000000007-")
    assert str(newest) in message
    assert "\n" not in message
    weights = torch.load(newest, weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_found_at_the_next_log_line_when_no_checkpoint_is_due(
    icons: Path, tmp_path: Path, spoilt: list[int]
) -> None:
    with pytest.raises(TrainingError, match=r"at step 8, .*no checkpoint was written yet"):
        train(icons, tmp_path, checkpoint_minutes=60)
    assert spoilt
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("at", [7, 14])  # of 15 steps: then the run would end with them
def test_weights_that_only_a_gradient_has_spoilt_are_not_kept(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    forward = MaskedAutoencoder.forward

    def spoil(self: MaskedAutoencoder, batch: Views, draw: Draw) -> Step:
        step = forward(self, batch, draw)
        if draw.step == at:
            step.loss.register_hook(lambda gradient: gradient * torch.nan)
        return step

    monkeypatch.setattr(MaskedAutoencoder, "forward", spoil)
    with pytest.raises(TrainingError, match=f"weights are not finite after step {at + 1}, .*from"):
        train(icons, tmp_path, checkpoint_minutes=0)
    newest = sorted((tmp_path / "ckpt").iterdir())[-1]
    assert newest.name.startswith(f"step-{at:09d}-")
    weights = torch.load(newest, weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_says_what_would_fit(
    error: Exception, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MaskedAutoencoder.forward

    def full(self: MaskedAutoencoder, batch: Views, draw: Draw) -> Step:
        if draw.step == 7:
            raise error
        return forward(self, batch, draw)

    monkeypatch.setattr(MaskedAutoencoder, "forward", full)
    with pytest.raises(TrainingError, match="out of memory at step 8 with 4 images at once; set a"):
        train(icons, tmp_path, checkpoint_minutes=0)
    monkeypatch.undo()
    train(icons, tmp_path, checkpoint_minutes=0)  # goes on
