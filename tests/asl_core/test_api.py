"""From Python: the examples of the docstrings, a run that goes on, and what is refused."""

import doctest
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asl_core import api
from asl_core.api import embed, load_encoder, pretrain
from asl_core.engine.checkpoint import CheckpointFolder
from asl_core.errors import InputError, InterruptedRun
from asl_core.modules.encoder import WEIGHTS_FILE, Encoder
from asl_core.recipes.datasets import Images
from asl_core.recipes.models import Vit

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
SETTINGS: dict[str, Any] = {"model": TINY, "epochs": 3, "batch_size": 8, "lr": 1e-3}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `photos` of 64 pictures, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(64):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("function", [pretrain, load_encoder, embed])
def test_the_examples_of_its_docstring_are_true(function: Callable[..., Any]) -> None:
    if function is not pretrain:
        pretrain("photos", "my-encoder", **{**SETTINGS, "model": "vit-demo-4", "epochs": 1})
    tests = doctest.DocTestFinder(recurse=False).find(function, globs={})
    assert sum(len(test.examples) for test in tests) > 1
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        assert runner.run(test).failed == 0


def test_asl_core_alone_loads_nothing() -> None:
    heavy = ("torch", "torchvision", "timm", "numpy")
    code = f"import sys, asl_core; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_weights(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(photos, "whole", **SETTINGS)
    save = CheckpointFolder.save

    def stop(self: CheckpointFolder, step: int, state: dict[str, Any]) -> Path:
        path = save(self, step, state)
        os.kill(os.getpid(), signal.SIGTERM)
        return path

    resources = api.Resources(device="cpu", checkpoint_minutes=0)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", stop)
        with pytest.raises(InterruptedRun):
            pretrain(photos, "stopped", resources=resources, **SETTINGS)
    assert not Path("stopped", WEIGHTS_FILE).exists()
    with pytest.raises(InputError, match=r"of another run: recipe.lr is 0.001 there and 0.1 here"):
        pretrain(photos, "stopped", **{**SETTINGS, "lr": 0.1})
    pretrain(photos, "stopped", **SETTINGS)
    whole, stopped = (Path(name, WEIGHTS_FILE).read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    assert not Path("stopped/checkpoints").exists()


def test_what_has_ended_is_returned_as_it_is(photos: Path) -> None:
    first = pretrain(photos, "encoder", **SETTINGS)
    before = Path("encoder", WEIGHTS_FILE).stat().st_mtime_ns
    (photos / "00.png").unlink()
    again = pretrain(photos, "encoder", **SETTINGS)
    assert Path("encoder", WEIGHTS_FILE).stat().st_mtime_ns == before
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_a_call_that_failed_before_the_first_step_may_be_corrected(photos: Path) -> None:
    with pytest.raises(InputError, match="batch_size 100 is larger than the training set"):
        pretrain(photos, "encoder", **{**SETTINGS, "batch_size": 100})
    source = Images(path=str(photos.absolute()), holdout=0.25)
    pretrain(source, "encoder", **SETTINGS)
    counts = api.read_manifest(Path("encoder/data")).counts
    assert counts["test"] > 6  # packed again, with a larger part held out


def test_it_begins_with_the_weights_that_it_is_given(photos: Path) -> None:
    first = pretrain(photos, "first", **SETTINGS)
    second = pretrain(photos, "second", initialise="first", **{**SETTINGS, "lr": 1e-12})
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_embeddings_are_those_of_the_encoder(photos: Path) -> None:
    encoder = pretrain(photos, "encoder", **SETTINGS)
    assert isinstance(encoder, Encoder)
    assert not encoder.training
    rows = embed(load_encoder("encoder"), photos, pooling="mean")
    assert len(rows) == 64
    assert rows.vectors.shape == (64, 16)
    one = embed(encoder, [photos / "07.png"], pooling="mean")
    torch.testing.assert_close(one.vectors[0], rows.vectors[rows.names.index("07.png")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "mea"}, r"no method 'mea'; did you mean 'mae'\?"),
        ({"model": "vit-demo4"}, r"no model 'vit-demo4'; did you mean 'vit-demo-4'\?"),
        ({"mask_rato": 0.5}, r"no setting 'mask_rato'; did you mean 'mask_ratio'\?"),
        ({"mask_ratio": 2.0}, r"mae: mask_ratio must be in \(0, 1\), got 2.0"),
        ({"method": "beit"}, "beit predicts codes of a tokenizer"),
        ({"initialise": "nothing"}, "initialise: nothing cannot be read"),
        ({"images": "nothing"}, "nothing does not exist"),
        ({"out": "photos"}, "photos holds other files; name a new folder"),
        ({"out": "photos/00.png"}, "photos/00.png: File exists"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(
    photos: Path, given: dict[str, Any], message: str
) -> None:
    call = {"images": photos, "out": "encoder", **SETTINGS, **given}
    with pytest.raises(InputError, match=message) as refused:
        pretrain(call.pop("images"), call.pop("out"), **call)
    assert "\n" not in str(refused.value)
    assert not Path("encoder", WEIGHTS_FILE).exists()
    assert not Path("photos/.lock").exists()


def test_two_processes_do_not_train_in_one_folder(photos: Path) -> None:
    code = (
        "import fcntl, sys; f = open('encoder/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    Path("encoder").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another process trains in encoder; wait for it"):
            pretrain(photos, "encoder", **SETTINGS)
        assert other.stdin is not None
        other.stdin.close()
    pretrain(photos, "encoder", **SETTINGS)


def test_a_checkpoint_of_others_is_loaded_too(photos: Path) -> None:
    first = pretrain(photos, "encoder", **SETTINGS)
    torch.save({"model": first.state_dict()}, "theirs.pth")
    with pytest.raises(InputError):  # 16 wide: no number of heads follows from it
        load_encoder("theirs.pth")
    size = Vit(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
    torch.save({"model": Encoder(size).state_dict()}, "theirs.pth")
    encoder = load_encoder("theirs.pth", image_size=64)
    assert (encoder.vit.grid_size, encoder.vit.depth) == (8, 2)
    for bad in ("photos/00.png", "photos"):
        with pytest.raises(InputError):
            load_encoder(bad)
