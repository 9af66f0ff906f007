"""What pre-training keeps of its predictions on test images; it trains as if it did not."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.held_out import (
    held_out_files,
    held_out_predictions,
    read_held_out,
    snapshot_steps,
    write_held_out,
)
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.masking import draw_mask
from asl_core.pretrain import build_method, picture_reconstructions, pretrain
from asl_core.protocol import Draw
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
COMMON: dict[str, Any] = {
    "dataset": "icons", "model": TINY, "epochs": 2, "batch_size": 8, "lr": 1e-2,
    "warmup_epochs": 1, "precision": "fp32", "seed": 3, "snapshots": 3, "held_out_images": 5,
}  # fmt: skip
REMOVED, VALUES = 12, 48  # three quarters of 16 patches of 4 x 4 pixels


def asl(icons: Path, **fields: Any) -> ArbitrarySelfSupervised:
    recipe = AslRecipe(**COMMON, **fields)
    return build_method(recipe, PackedDataset(icons, "train"))


def global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_predictions_are_those_of_the_removed_patches(icons: Path) -> None:
    method = asl(icons)
    held_out = held_out_predictions(method, icons, 5)
    assert {name: tuple(x.shape) for name, x in held_out.items()} == dict.fromkeys(
        ("target", "ori", "aug"), (5, REMOVED, VALUES)
    )
    assert {x.dtype for x in held_out.values()} == {torch.float16}
    dataset = PackedDataset(icons, "test")
    chosen = [0, 3, 6, 9, 12]  # spread over 16
    images = torch.stack([dataset.read_image(i) for i in chosen])
    images = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    mask = draw_mask(torch.tensor(chosen), Draw(0, 0), 16, 0.75)
    with torch.no_grad():
        expected = method.predictions(images, mask)
        loss = reconstruction_loss(expected["ori"], method.target(images, mask))
    for name, tensor in expected.items():
        torch.testing.assert_close(held_out[name].float(), tensor, rtol=1e-3, atol=1e-3)
    kept = (held_out["ori"].float() - held_out["target"].float()).square().mean()
    assert kept.item() == pytest.approx(loss.item(), rel=1e-3)


def test_reconstructions_paste_visible_patches_and_stay_in_range(icons: Path) -> None:
    method = asl(icons)
    pictures = picture_reconstructions(method, icons, 4)
    assert list(pictures) == [
        "input", "masked", "prediction (original)", "prediction (augmented)"
    ]  # fmt: skip
    dataset = PackedDataset(icons, "test")
    images = torch.stack([dataset.read_image(i) for i in (0, 4, 8, 12)])
    torch.testing.assert_close(pictures["input"], images / 255, atol=1e-5, rtol=0)
    mask = draw_mask(torch.arange(4), Draw(0, 0), 16, 0.75)
    pixels = mask.removed.reshape(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for name, picture in pictures.items():
        assert picture.min() >= 0, name
        assert picture.max() <= 1, name
        same = (picture - pictures["input"]).abs() < 1e-4
        assert same[~pixels.expand_as(same)].all(), name
    assert not torch.equal(pictures["masked"], pictures["prediction (original)"])
    assert not torch.equal(pictures["prediction (augmented)"], pictures["prediction (original)"])
    mae = MaskedAutoencoder(MaeRecipe(**COMMON), method.mean, method.std)
    assert list(picture_reconstructions(mae, icons, 2)) == ["input", "masked", "prediction"]


def test_every_method_is_asked_for_the_same_patches(icons: Path) -> None:
    mae = MaskedAutoencoder(MaeRecipe(**COMMON | {"seed": 8}), (0.4,) * 3, (0.3,) * 3)
    first = held_out_predictions(asl(icons), icons, 4)
    mean, std = (
        PackedDataset(icons, "test").manifest.mean,
        PackedDataset(icons, "test").manifest.std,
    )
    mae.mean, mae.std = mean, std
    second = held_out_predictions(mae, icons, 4)
    assert second.keys() == {"target", "ori"}
    assert torch.equal(first["target"], second["target"])


def test_a_split_with_fewer_images_is_used_whole(icons: Path) -> None:
    assert len(held_out_predictions(asl(icons), icons, 1000)["ori"]) == 16


def test_dropout_is_off_and_method_and_random_numbers_are_left_as_they_were(icons: Path) -> None:
    method = asl(icons, design="dle", dle_rate=0.5)
    method.train()
    method.decoder.eval()  # a part that never trains, as a teacher
    modes = [module.training for module in method.modules()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = global_draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    held_out = held_out_predictions(method, icons, 4)
    assert global_draws() == expected
    assert torch.equal(held_out["ori"], held_out["aug"])
    assert [module.training for module in method.modules()] == modes
    assert all(parameter.grad is None for parameter in method.parameters())


def train(icons: Path, work: Path, held_out: Path | None, **fields: Any) -> str:
    """Train and return a digest of all weights."""
    resources = Resources(device="cpu", checkpoint_minutes=0, log_every_steps=2)
    recipe = AslRecipe(**COMMON, design="dle", dle_rate=0.3, **fields)
    with Journal.open(work / "journal") as journal:
        context = RunContext(work / "ckpt", journal, resources)

        def keep(method: Any, step: int) -> None:
            if held_out is not None:
                write_held_out(method, icons, recipe.held_out_images, held_out, step)

        method = pretrain(recipe, icons, context, at_snapshot=keep)
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_training_does_not_change_by_a_bit_when_predictions_are_kept(
    icons: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out/held_out"
    with_them = train(icons, tmp_path / "a", folder)
    assert with_them == train(icons, tmp_path / "b", None)
    files = held_out_files(folder)
    assert list(files) == [3, 7, 10]  # of 10 steps
    first, last = read_held_out(files[3]), read_held_out(files[10])
    assert torch.equal(first["target"], last["target"])
    assert not torch.equal(first["ori"], last["ori"])


def test_a_run_that_goes_on_ends_with_the_files_of_one_left_alone(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    train(icons, tmp_path / "a", tmp_path / "alone/held_out")

    def die_after(self: ArbitrarySelfSupervised, step: int) -> None:
        if step == 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ArbitrarySelfSupervised, "after_step", die_after, raising=False)
        with pytest.raises(Killed):
            train(icons, tmp_path / "b", tmp_path / "resumed/held_out")
    assert list(held_out_files(tmp_path / "resumed/held_out")) == [3]
    train(icons, tmp_path / "b", tmp_path / "resumed/held_out")
    alone, resumed = (held_out_files(tmp_path / f"{n}/held_out") for n in ("alone", "resumed"))
    assert {s: p.read_bytes() for s, p in alone.items()} == {
        s: p.read_bytes() for s, p in resumed.items()
    }


@pytest.mark.parametrize(
    ("total", "snapshots", "steps"),
    [
        (10, 0, [10]),
        (10, 1, [10]),
        (10, 3, [3, 7, 10]),
        (4, 8, [1, 2, 3, 4]),
        (7, 7, [*range(1, 8)]),
    ],
)
def test_snapshots_are_spaced_evenly_and_the_last_step_is_one(
    total: int, snapshots: int, steps: list[int]
) -> None:
    assert snapshot_steps(total, snapshots) == steps


def test_an_imported_encoder_has_none(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text("{}")
    assert held_out_files(tmp_path) == {}


def test_damaged_files_are_named(icons: Path, tmp_path: Path) -> None:
    write_held_out(asl(icons), icons, 2, tmp_path / "held_out", 5)
    assert [path.name for path in (tmp_path / "held_out").iterdir()] == ["step-000005.safetensors"]
    path = held_out_files(tmp_path / "held_out")[5]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot read .*step-000005.*run its pre-training again"):
        read_held_out(path)
