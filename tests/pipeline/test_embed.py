"""The commands embed and neighbours, and the stage embed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from asl_core.data.prepare import prepare
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Icons
from asl_core.recipes.embedding import Embedding
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.embedding_files import read_embeddings
from pipeline import cli
from pipeline.stages import embed, embedding_parts
from pipeline.stages.request import StageRequest, StoredRun

VIT = Vit(image_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 30, test: 12, image_size: 16, normalisation: inception}}
experiments: {mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 0}}
embed: {mae: {dataset: icons, splits: [test, train], pooling: cls+mean, layer: -2}}
"""
Say = Callable[..., tuple[int, str]]


def write_encoder(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    return folder


def write_images(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 4}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 16), Image.Resampling.NEAREST).save(path)
    return folder


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in tmp_path and return its exit code and all that it said."""
    monkeypatch.chdir(tmp_path)

    def run(*command: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.run_command([str(each) for each in command])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.mark.slow
def test_a_killed_command_goes_on_and_its_file_is_that_of_one_that_was_not_bit_for_bit(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = write_images(tmp_path / "images", 600), write_encoder(tmp_path / "encoder")
    (images / "1/00001.png").write_bytes(b"\xff\xd8\xff broken")
    program = (
        "import sys, time; from pipeline import cli; from pipeline.stages import embedding_parts\n"
        "embedding_parts.LEAST = 16; save = embedding_parts.Parts.save\n"
        "def slow(*a): save(*a); time.sleep(.1); print('part', flush=True)\n"
        "embedding_parts.Parts.save = slow; sys.exit(cli.run_command(sys.argv[1:]))"
    )
    options = ["encoder", "images", "--batch", "8", "--device", "cpu", "--threads", "1"]
    monkeypatch.setattr(embedding_parts, "LEAST", 16)
    assert say("embed", *options, "-o", "whole.parquet", "--patch-tokens")[0] == 0
    resumed, draws = tmp_path / "resumed.parquet", random.Random(0)
    parts = resumed.with_name("resumed.parquet.parts")
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", program, "embed", *options, "-o", resumed.name,
             "--patch-tokens"],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "part\n"
            time.sleep(draws.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not resumed.exists()
    before = len([*parts.glob("*.npz")])
    assert 3 <= before < 38  # of 600 images in parts of 16
    code, said = say("embed", *options, "-o", resumed.name, "--patch-tokens")
    assert (code, f"{16 * before} of them embedded before" in said) == (0, True)
    assert resumed.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not parts.exists()
    listed = (tmp_path / "resumed.parquet.rejected.txt").read_text()
    assert listed.startswith("1/00001.png\t")
    assert len(read_embeddings(resumed).names) == 599


def test_the_rows_name_the_files_and_the_same_command_again_does_nothing(
    tmp_path: Path, say: Say
) -> None:
    images, _ = write_images(tmp_path / "images", 9), write_encoder(tmp_path / "encoder")
    code, said = say("embed", "encoder", "images", "-o", "out/x.parquet", "--pooling", "cls+mean")
    assert (code, "out/x.parquet: 9 rows of 48 values" in said) == (0, True)
    table = pq.read_table("out/x.parquet")
    assert table.column_names == ["file", "sha256", "height", "width", "embedding"]
    assert table["file"].to_pylist() == sorted(f"{n % 4}/{n:05d}.png" for n in range(9))
    assert set(table["height"].to_pylist()) == {16}
    about = read_embeddings(Path("out/x.parquet")).about
    assert about["encoder"]["place"] == "../encoder"
    assert about["images"] == {"place": "../images", "kind": "files"}
    assert about["made_by"]["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    before = Path("out/x.parquet").stat().st_mtime_ns
    code, said = say("embed", "encoder", "images", "-o", "out/x.parquet", "--pooling", "cls+mean")
    assert (code, "nothing was done" in said) == (0, True)
    assert Path("out/x.parquet").stat().st_mtime_ns == before
    code, said = say("embed", "encoder", "images", "-o", "out/x.parquet", "--layer", "-2")
    assert (code, "was made otherwise; use --force" in said) == (2, True)
    assert (
        say("embed", "encoder", "images", "-o", "out/x.parquet", "--layer", "-2", "--force")[0] == 0
    )
    assert read_embeddings(Path("out/x.parquet")).vectors.shape == (9, 24)
    one = images / "0/00004.png"
    assert say("embed", "encoder", one, images / "1", "-o", "two.npz")[0] == 0
    assert read_embeddings(Path("two.npz")).names == ["0/00004.png", "1/00001.png", "1/00005.png"]


def test_parts_of_something_else_are_not_mixed_in_and_changed_images_are_read_again(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = write_images(tmp_path / "images", 12), write_encoder(tmp_path / "encoder")
    monkeypatch.setattr(embedding_parts, "LEAST", 4)
    command = ["embed", "encoder", "images", "-o", "x.npz", "--batch", "4", "--workers", "0"]
    assert say(*command)[0] == 0
    whole = Path("x.npz").read_bytes()
    Path("x.npz").unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # after all parts, before the file
        patched.setattr("pipeline.stages.embedding.write_rows", stop)
        assert say(*command) == (130, "asl-pipe: interrupted; run the same command to resume\n")
    code, said = say(*command, "--pooling", "mean")
    assert code == 2
    assert (
        "3 parts of an unfinished file with other settings (made_by.pooling cls, now mean)" in said
    )
    write_encoder(tmp_path / "other", seed=1)
    code, said = say("embed", "other", *command[2:])
    assert (code, "made_by.encoder_sha256" in said) == (2, True)
    os.utime(images / "0/00000.png")  # not changed, only touched
    code, said = say(*command)
    assert (code, "12 of them embedded before" in said) == (0, True)
    assert Path("x.npz").read_bytes() == whole
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.stages.embedding.write_rows", stop)
        say(*command, "--force")
    shutil.copy(images / "1/00005.png", images / "0/00000.png")
    os.utime(images / "0/00000.png")
    code, said = say(*command, "--force")
    assert (code, "8 of them embedded before" in said) == (0, True)
    assert read_embeddings(Path("x.npz")).vectors.shape == (12, 24)
    assert Path("x.npz").read_bytes() != whole


def test_bad_input_ends_in_one_line(tmp_path: Path, say: Say) -> None:
    write_images(tmp_path / "images", 2)
    write_encoder(tmp_path / "encoder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "file.pth").write_bytes(b"no checkpoint")
    base = ["embed", "encoder", "images", "-o", "x.parquet"]
    for command, expected in (
        (["embed", "nowhere", *base[2:]], "nowhere is no folder or file, and this is no suite's"),
        (["embed", "empty", *base[2:]], "no encoder in empty"),
        (["embed", "file.pth", *base[2:]], "cannot read file.pth"),
        (["embed", "encoder", "nowhere", "-o", "x.parquet"], "nowhere does not exist"),
        (["embed", "encoder", "empty", "-o", "x.parquet"], "empty: no image is there"),
        (["embed", "encoder", "bad", "-o", "x.parquet"], "none of 1 images can be read"),
        ([*base[:3], "-o", "x.csv"], "x.csv: a file of embeddings ends in .parquet or .npz"),
        ([*base, "--layer", "first"], "--layer first: expected last, or -1"),
        ([*base, "--layer", "-3"], "layer -3 of an encoder of 2 blocks; use -1 to -2"),
        ([*base, "--image-size", "17"], "not divisible by patch_size 8"),
        ([*base, "--normalisation", "imagnet"], "expected one of imagenet, cifar10"),
        ([*base, "--pooling", "max"], "--pooling"),
        ([*base, "--device", "cuda"], "torch sees no GPU"),
        (["neighbours", "x.parquet", "images"], "x.parquet is not a file"),
        (["neighbours", "bad/x.jpg", "images"], "bad/x.jpg is no file of embeddings"),
        (["neighbours", "x.parquet", "images", "-o", "x.png"], "x.png: a page ends in .html"),
        (["neighbours", "x.parquet", "images", "-o", "file.pth/x.html"], "file.pth is a file"),
        ([*base[:3], "-o", "file.pth/x.parquet"], "file.pth is a file; name a new folder"),
        ([*base, "--image-size", "8000000"], "not enough memory for the encoder"),
    ):
        if "cuda" in command and torch.cuda.is_available():
            continue
        code, said = say(*command)
        assert code == 2, (command, said)
        assert expected in said, (command, said)
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1, said
    assert not Path("x.parquet").exists()
    assert (tmp_path / "x.parquet.rejected.txt").read_text().startswith("x.jpg\tcannot be decoded")


def test_the_stage_writes_a_file_and_finds_its_numbers_again(tmp_path: Path) -> None:
    icons, out = tmp_path / "data/icons", tmp_path / "runs/embed/mae"
    prepare(Icons(image_size=16, train=30, test=12), icons, icons, name="icons")
    out.mkdir(parents=True)
    inputs = {"dataset": icons, "encoder": write_encoder(tmp_path / "runs/encoder/mae")}
    recipe = Embedding(dataset="icons", splits=("test", "train"), pooling="cls+mean", layer=-2)
    cpu = Resources(device="cpu")
    with Journal.open(tmp_path / "work/journal") as journal:
        metrics = embed.run(
            StageRequest(
                stage="embed", key="mae", recipe=recipe, inputs=inputs, work=tmp_path / "work",
                outputs={"details": out}, journal=journal, resources=cpu,
            )
        )  # fmt: skip
    assert metrics["embed_images"] == 42
    assert metrics["embed_dimension"] == 48
    found = read_embeddings(out / embed.FILE)
    assert found.names[:1] + found.names[-1:] == ["test/00000000", "train/00000029"]
    table = pq.read_table(out / embed.FILE)
    values = np.linalg.svd(np.array(table["embedding"].to_pylist()), compute_uv=False)
    shares = values[values > 0] / values.sum()
    entropy = -(shares * np.log(shares)).sum()
    assert metrics["embed_effective_rank"] == pytest.approx(np.exp(entropy), rel=1e-4)
    assert table["label"].to_pylist()[0] >= 0
    assert embed.reevaluate(StoredRun(recipe, out, inputs, cpu)) == metrics
    written = "".join(path.read_text() for path in (tmp_path / "work/journal").iterdir())
    assert '"embeddings.parquet"' in written


def test_names_of_experiments_and_datasets_and_pages_of_neighbours(
    tmp_path: Path, say: Say
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text(PARAMS)
    code, said = say("embed", "mae", "icons", "-o", "x.npz")
    assert (code, "runs/encoder/mae does not exist; run `dvc repro pretrain@mae`" in said) == (
        2,
        True,
    )
    encoder = write_encoder(tmp_path / "runs/encoder/mae")
    code, said = say("embed", "mae", "icons", "-o", "x.npz")
    assert (code, "data/icons does not exist; run `dvc repro prepare@icons`" in said) == (2, True)
    code, said = say("embed", "mea", "icons", "-o", "x.npz")
    assert (code, "did you mean 'mae'?" in said) == (2, True)
    recipe = Icons(image_size=16, train=30, test=12, normalisation="inception")
    prepare(recipe, tmp_path / "data/icons", tmp_path / "data/icons", name="icons")
    code, said = say("embed", "mae", "icons/test", "-o", "x.npz")
    assert code == 0
    assert "is not what params.yaml and the code would make now (dvc.lock does not know it)" in said
    file = read_embeddings(Path("x.npz"))
    assert file.names[0] == "test/00000000"
    assert file.about["made_by"]["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    code, said = say("embed", "mae", "icons", "-o", "both.npz")
    assert len(read_embeddings(Path("both.npz")).names) == 42

    code, said = say("neighbours", "x.npz", "test/00000003", "-k", "4", "-o", "p/page.html")
    assert code == 0
    vectors = file.vectors.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[3]
    order = [int(n) for n in np.argsort(-cosines, kind="stable") if n != 3][:4]
    assert [line.split()[-1] for line in said.splitlines() if "test/" in line] == [
        file.names[number] for number in order
    ]
    page = Path("p/page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert "http" not in page
    assert f"{cosines[order[0]]:.3f}" in page
    code, said = say("neighbours", "x.npz", "test/0000003", "-k", "4")
    assert (code, "is no row of x.npz and no file; did you mean 'test/" in said) == (2, True)

    images = write_images(tmp_path / "<images>", 3)
    new = images / "1/00001.png"
    assert say("embed", "mae", images, "-o", "y.parquet", "--batch", "1")[0] == 0
    code, said = say("neighbours", "y.parquet", new, "-k", "9")  # a row, by its content
    assert (code, said.count(".png")) == (0, 3)  # the query and the two others
    code, said = say("neighbours", "x.npz", new)
    assert code == 0
    assert "&lt;images&gt;/1/00001.png" in Path("neighbours.html").read_text()
    assert Path("neighbours.html").read_text().count("<li>") == 10

    (images / "2/00002.png").rename(tmp_path / "moved.png")
    code, said = say("neighbours", "y.parquet", "0/00000.png")
    assert code == 0
    assert "2/00002.png cannot be shown" in said
    assert "--images FOLDER" in said
    shutil.move(encoder, tmp_path / "moved")
    code, said = say("neighbours", "x.npz", new)
    assert (code, "not at" in said, "give --encoder NAME or PATH" in said) == (2, True, True)
    assert say("neighbours", "x.npz", new, "--encoder", "moved")[0] == 0
    code, said = say("neighbours", "x.npz", new, "--encoder", write_encoder(tmp_path / "o", 1))
    assert (code, "is another encoder than x.npz was made by" in said) == (2, True)
    assert json.loads(json.dumps(file.about)) == file.about
