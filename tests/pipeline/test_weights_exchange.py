"""import-encoder, the experiment that it makes, its stages and its row; export-encoder."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from mlflow import MlflowClient
from timm.data.config import resolve_model_data_config

from asl_core.data.prepare import prepare
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.datasets import Icons
from asl_core.recipes.imported import encoder_differences
from asl_core.recipes.models import MODELS, EncoderParts, Vit
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.recipes.published import PUBLISHED, PublishedWeights
from pipeline import cli
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.execution.run import RunServices, run_stage
from pipeline.jobs.journal import read_records
from pipeline.project import Project, find_project
from pipeline.results.port import Identity
from pipeline.tables.collect import collect
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import markdown
from pipeline.tracking.foreground import ForegroundTracker
from pipeline.tracking.mlflow.store import MlflowStore

VIT = Vit(image_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=1)
SIZE = {"size": "vit-b", **encoder_differences(VIT, MODELS["vit-b"])}
PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table1]
datasets: {icons: {source: icons, train: 24, test: 8, image_size: 32}}
experiments:
  mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}
linprobe: {}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""
PROBE = {
    "dataset": "icons", "epochs": 1, "batch_size": 8, "lr": 1.0, "warmup_epochs": 0,
    "augment": False, "precision": "fp32",
}  # fmt: skip

Say = Callable[..., str]


class Cache:
    """Gives each stage its own fingerprint."""

    def identify(self, suite: Path, name: str) -> Identity:
        return Identity(name.replace("@", "-").ljust(64, "0"), {}, code="")

    def find(self, root: Path, fingerprint: str) -> None:
        """Keep nothing."""


class Code:
    """Always the same commit."""

    def tags(self, root: Path) -> dict[str, str]:
        return {"git.commit": "c0ffee", "git.dirty": "false"}


SERVICES = RunServices(cache=Cache(), code=Code())


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "icons"
    prepare(Icons(image_size=32, train=24, test=8), folder, folder, name="icons")
    return folder


@pytest.fixture
def project(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    shutil.copytree(packed, root / "data/icons")
    (root / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(root)
    return find_project(root)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An encoder-only checkpoint in the format of the official MAE."""
    torch.manual_seed(3)
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": Encoder(VIT).state_dict()}, path)
    return path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command line and return what it says."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.run_command([str(argument) for argument in arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def paste(project: Project, said: str, **row: object) -> str:
    """Add to params.yaml what import-encoder said, and return the experiment's name."""
    entry = yaml.safe_load(said[said.index("experiments:") :])["experiments"]
    (name,) = entry
    params = yaml.safe_load(project.params_file.read_text())
    params["experiments"][name] = {**entry[name], **row}
    params["linprobe"] = {name: PROBE}
    params["analyze"] = {name: {"dataset": "icons", "images": 4}}
    project.params_file.write_text(yaml.safe_dump(params))
    return name


def test_import_writes_the_encoder_and_where_it_is_from_and_says_what_to_paste(
    project: Project, checkpoint: Path, say: Say
) -> None:
    said = say("import-encoder", checkpoint, "--name", "official")
    folder = project.suite / "encoders/official"
    assert {path.name for path in folder.iterdir()} == {
        "encoder.safetensors", "encoder.json", "origin.json",
    }  # fmt: skip
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["file"] == "mae_pretrain.pth"
    assert (origin["container"], origin["positions"]) == ("model", "sin-cos, x-first")
    for shown in ("encoders/official", "mae_pretrain.pth (torch)", "sin-cos, x-first", "32 px"):
        assert shown in said
    name = paste(project, said)
    recipe = load_params(project.params_file).experiments[name]
    assert recipe.path == "encoders/official"
    assert recipe.model.num_heads == 1
    assert recipe.model.depth == 2


def test_an_imported_encoder_goes_through_pretrain_linprobe_and_analyze(
    project: Project, checkpoint: Path, say: Say
) -> None:
    name = paste(project, say("import-encoder", checkpoint))
    assert name == "mae_pretrain"
    record = run_stage(project, "pretrain", name, SERVICES)
    assert record.metrics == {"encoder_parameters_m": pytest.approx(0.150, abs=0.001)}
    out = project.suite / "runs/pretrain" / name
    stored = torch.load(checkpoint, weights_only=True)["model"]
    ours = load_encoder(project.suite / "runs/encoder" / name).state_dict()
    assert all(torch.equal(ours[n], tensor) for n, tensor in stored.items())
    artifacts = [r.body["path"] for r in read_records(out / "journal") if r.kind == "artifact"]
    assert {"origin.json", "config.json", "encoder.safetensors"} == set(artifacts)
    assert not [r for r in read_records(out / "journal") if r.kind == "dataset"]
    record = run_stage(project, "linprobe", name, SERVICES)
    assert 0 <= record.metrics["lp_acc1"] <= 100
    record = run_stage(project, "analyze", name, SERVICES)
    assert -1 <= record.metrics["token_similarity"] <= 1


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_it_has_a_parent_run_in_mlflow(project: Project, checkpoint: Path, say: Say) -> None:
    name = paste(project, say("import-encoder", checkpoint))
    store = MlflowStore(project.root)
    run_stage(
        project,
        "pretrain",
        name,
        RunServices(cache=Cache(), code=Code(), presenter=ForegroundTracker(store)),
    )
    client = MlflowClient(tracking_uri=f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("asl/tiny")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {name, f"pretrain/{name}"}
    assert runs[name].data.params["method"] == "imported"


def test_another_encoder_under_the_same_name_is_refused(
    project: Project, checkpoint: Path, say: Say
) -> None:
    name = paste(project, say("import-encoder", checkpoint))
    torch.manual_seed(4)
    torch.save({"model": Encoder(VIT).state_dict()}, checkpoint)
    assert "exists; use --force to replace it" in say("import-encoder", checkpoint, code=2)
    before = json.loads((project.suite / "encoders" / name / "origin.json").read_text())["sha256"]
    said = say("import-encoder", checkpoint, "--force")
    after = json.loads((project.suite / "encoders" / name / "origin.json").read_text())["sha256"]
    assert before != after
    with pytest.raises(InputError, match="another encoder was imported under this name"):
        run_stage(project, "pretrain", name, SERVICES)
    paste(project, said)
    run_stage(project, "pretrain", name, SERVICES)


def test_a_failed_import_leaves_nothing_and_is_one_line(
    project: Project, checkpoint: Path, say: Say
) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    assert "truncated" in (said := say("import-encoder", checkpoint, code=2))
    assert len(said.splitlines()) == 1
    assert not (project.suite / "encoders").exists()


def test_names_that_cannot_be_are_refused(project: Project, checkpoint: Path, say: Say) -> None:
    assert "give another with --name" in say("import-encoder", checkpoint, "--name", "A b", code=2)
    numbered = checkpoint.with_name("800.pth")
    checkpoint.rename(numbered)
    assert "got the name '800'" in say("import-encoder", numbered, code=2)


def test_a_missing_encoder_names_the_command_that_brings_it(
    project: Project, checkpoint: Path, say: Say
) -> None:
    name = paste(project, say("import-encoder", checkpoint, "--name", "official"))
    moved = project.root.parent / "elsewhere"
    (project.suite / "encoders/official").rename(moved)
    with pytest.raises(UserError, match="asl-pipe import-encoder FILE --name official"):
        run_stage(project, "pretrain", name, SERVICES)
    params = yaml.safe_load(project.params_file.read_text())
    params["experiments"][name]["path"] = str(moved)  # absolute paths are taken as they are
    project.params_file.write_text(yaml.safe_dump(params))
    run_stage(project, "pretrain", name, SERVICES)


@pytest.mark.parametrize(
    ("row", "scale", "expected"),
    [
        ({}, "reduced", "| official | - | 51.0 r |"),
        # the suite has an MAE of its own: two rows, two names
        ({"row": "MAE"}, "reduced", "| MAE [official] | 46.8 | 51.0 r |"),
        ({}, "paper", "| official | - | - | - | - | 51.0 |"),
        ({"row": "MAE", "epochs": 800}, "paper", "| MAE [22] | ViT-B | 1x | 800 | 46.8 | 51.0 |"),
        # as long as nobody says how long it was trained, or it was another time
        ({"row": "MAE"}, "paper", "| MAE [official] | - | - | - | - | 51.0 |"),
    ],
    ids=["own row", "paper's row", "own row at scale", "paper's row at scale", "unknown length"],
)
def test_it_has_a_row_in_the_tables_and_in_the_report(
    project: Project, checkpoint: Path, say: Say, row: dict[str, Any], scale: str, expected: str
) -> None:
    name = paste(project, say("import-encoder", checkpoint, "--name", "official"), **row)
    text = project.params_file.read_text().replace("scale: reduced", f"scale: {scale}")
    project.params_file.write_text(text)
    folder = project.suite / "runs/linprobe"
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps({"lp_acc1": 51.0, "scale": scale}))
    suite = collect(project.suite, load_params(project.params_file))
    content = markdown(lay_out(suite, load_paper()))
    assert expected.rstrip("|") in content.replace("!", "").replace("  ", " ")
    shown = page(suite, load_paper())
    assert row.get("row", "official") in shown
    assert "trained elsewhere" in shown


def test_export_writes_what_timm_loads_with_a_card(
    project: Project, checkpoint: Path, say: Say
) -> None:
    name = paste(project, say("import-encoder", checkpoint))
    assert f"dvc repro pretrain@{name}" in say("export-encoder", name, code=2)
    run_stage(project, "pretrain", name, SERVICES)
    run_stage(project, "linprobe", name, SERVICES)
    said = say("export-encoder", name, "--format", "timm")
    assert f"exports/{name}-timm: README.md, config.json, model.safetensors\n" in said
    assert f"Read by timm {timm.__version__}: on drawn images" in said
    names: dict[str, Any] = {}
    exec("\n".join(said.splitlines()[3:]), names)  # as it is printed
    model = names["model"]
    encoder = load_encoder(project.suite / "runs/encoder" / name).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward_features(images), encoder(images), atol=1e-5, rtol=0)
    config = resolve_model_data_config(model)
    mean, std = NORMALISATIONS["imagenet"]
    assert (tuple(config["mean"]), tuple(config["std"])) == (mean, std)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert config["crop_pct"] == 1.0  # the images of the dataset have 32 pixels
    text = (project.suite / f"exports/{name}-timm/README.md").read_text()
    _, front, card = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "timm", "pipeline_tag": "image-feature-extraction",
        "tags": ["vit", "imported", "asl-pipe"],
    }  # fmt: skip
    accuracy = json.loads((project.suite / f"runs/linprobe/{name}.json").read_text())["lp_acc1"]
    assert f"| Linear probe, top-1 [%] | icons | {accuracy:.1f} r! |" in card
    assert "| 8 | not measured | - |" in card
    assert "**not recorded in `dvc.lock`**" in card
    assert "- commit: `c0ffee`" in card
    weights = (project.suite / f"encoders/{name}/encoder.safetensors").read_bytes()
    assert f"(sha256 `{hashlib.sha256(weights).hexdigest()}`)" in card
    assert str(project.root) not in card


def test_export_replaces_an_earlier_export_and_nothing_else(
    project: Project, checkpoint: Path, say: Say
) -> None:
    name = paste(project, say("import-encoder", checkpoint, "--name", "official"))
    run_stage(project, "pretrain", name, SERVICES)
    assert "did you mean 'official'?" in say("export-encoder", "oficial", code=2)
    out = project.root.parent / "there"
    mae = ("export-encoder", name, "--format", "mae", "-o", out)
    say(*mae)
    first = (out / "encoder.pth").read_bytes()
    assert "use --force to replace it" in say(*mae, code=2)
    say(*mae, "--force")
    assert (out / "encoder.pth").read_bytes() == first
    said = say("export-encoder", name, "-o", out.with_name("there.safetensors"), code=2)
    assert "an export is a folder, with several files; name it without .safetensors" in said
    (out / "diary.txt").write_text("mine")
    assert "holds other files (diary.txt) and is not replaced" in say(*mae, "--force", code=2)
    assert (out / "diary.txt").read_text() == "mine"
    file = project.root.parent / "file"
    file.write_text("mine")
    assert "is no folder" in say("export-encoder", name, "-o", file, "--force", code=2)
    below = say("export-encoder", name, "-o", file / "below", code=2)
    assert "cannot be written" in below
    assert len(below.splitlines()) == 1
    assert not [path for path in out.parent.iterdir() if ".part" in path.name]


def test_an_encoder_that_a_form_cannot_hold_leaves_no_folder(project: Project, say: Say) -> None:
    folder = project.suite / "runs/encoder/mae"
    folder.mkdir(parents=True)
    parts = EncoderParts(relative_positions=True)
    save_encoder(folder, Encoder(VIT, parts).state_dict(), VIT, parts)
    said = say("export-encoder", "mae", "--format", "huggingface", code=2)
    assert "has relative position bias, and huggingface is written for plain ViTs only" in said
    assert len(said.splitlines()) == 1
    assert not [*(project.suite / "exports").iterdir()]
    (folder / "encoder.safetensors").write_bytes(b"half")
    assert "restore it or train it again" in say("export-encoder", "mae", code=2)


def publish(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, digest: str) -> None:
    weights = PublishedWeights(
        url=checkpoint.as_uri(), digest=digest, licence="ours", page="", epochs=1, model=VIT
    )
    monkeypatch.setitem(PUBLISHED, "mae-vit-b", weights)


def test_published_weights_are_fetched_compared_and_taken_over(
    project: Project, checkpoint: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    publish(monkeypatch, checkpoint, f"sha256:{digest[:8]}")
    said = say("import-encoder", "--published", "mae-vit-b")
    assert (project.scratch / "downloads/mae_pretrain.pth").read_bytes() == checkpoint.read_bytes()
    fields = "{method: imported, published: mae-vit-b, dataset: icons}"
    assert said.endswith(f"experiments:\n  mae-vit-b: {fields}\n")
    name = paste(project, said, model=SIZE)
    run_stage(project, "pretrain", name, SERVICES)
    written = load_encoder(project.suite / f"runs/encoder/{name}").state_dict()
    state = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(state[key], written[key]) for key in state)


def test_what_is_not_the_published_file_is_refused(
    project: Project, checkpoint: Path, say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(monkeypatch, checkpoint, "md5:000000")
    line = "the published file's begins with 000000: it is damaged or another file"
    assert line in say("import-encoder", "--published", "mae-vit-b", code=2)
    assert line in say("import-encoder", checkpoint, "--published", "mae-vit-b", code=2)
    assert not (project.suite / "encoders").exists()
    assert "published weights 'mae-vit-c'" in say(
        "import-encoder", "--published", "mae-vit-c", code=2
    )
    assert "got no FILE; give a checkpoint" in say("import-encoder", code=2)
    for name in ("nosuch", ""):
        said = say("import-encoder", checkpoint, "--published", name, code=2)
        assert "unknown published weights" in said
    said = say("import-encoder", checkpoint, "--published", "mae-vit-b", "--name", "b", code=2)
    assert "published weights are called mae-vit-b; leave --name out" in said
    monkeypatch.undo()
    monkeypatch.chdir(project.root)
    said = say("import-encoder", checkpoint, "--published", "dino-vit-b", code=2)
    assert "is not dino-vit-b: it has image_size 32, " in said
    assert not list((project.suite / "encoders").iterdir())
    publish(monkeypatch, checkpoint, f"md5:{hashlib.md5(checkpoint.read_bytes()).hexdigest()[:6]}")
    name = paste(
        project, say("import-encoder", checkpoint, "--published", "mae-vit-b"),
        model=SIZE,
    )  # fmt: skip
    other = tmp_path / "other.pth"
    torch.save({"model": Encoder(VIT).state_dict()}, other)
    say("import-encoder", other, "--name", "mae-vit-b", "--force")
    with pytest.raises(InputError, match="does not hold the published weights mae-vit-b, or they"):
        run_stage(project, "pretrain", name, SERVICES)
