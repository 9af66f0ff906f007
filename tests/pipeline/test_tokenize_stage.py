"""Datasets with a tokenizer: made by DVC, named in params.yaml, counted as the images they have."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from asl_core.data.manifest import Manifest, read_manifest
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.recipes.datasets import Icons
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.tokenizers import DalleTokenizer, KMeansTokenizer
from asl_core.recipes.views import View, ViewPlan
from asl_core.tokenizers.dalle import DalleEncoder, published_name
from asl_core.tokenizers.store import load_tokenizer
from pipeline.cli import run_command
from pipeline.config.files import validate
from pipeline.config.params import Params, load_params
from pipeline.errors import UserError
from pipeline.execution.inputs import find_inputs, recipe_of
from pipeline.project import Project
from pipeline.stages.request import StageRequest
from pipeline.stages.tokenize import run
from pipeline.tables.layout import lay_out
from pipeline.tables.notes import notes
from pipeline.tables.paper import load_paper

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 24, test: 4, image_size: 32, note: Small icons.}}
tokenizers:
  icons-codes: {dataset: icons, kind: kmeans, num_codes: 10, patch_size: 8, image_size: 32,
                images: 20, epochs: 1}
experiments:
  mae: {method: mae, dataset: icons-codes, model: vit-demo, epochs: 2, warmup_epochs: 1}
linprobe: {mae: {dataset: icons-codes}}
knn: {mae: {dataset: icons}}
"""
NOTE = "Codes are of k-means over normalised patches, not of DALL-E's tokenizer."
PAPER = load_paper()


# --- by DVC


@pytest.fixture(scope="module")
def made(
    site_template: Path, repro: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project in which DVC has made a dataset with a tokenizer; its cache gives hard links."""
    root = tmp_path_factory.mktemp("tokenized") / "project"
    shutil.copytree(site_template, root)
    (root / "params.yaml").write_text(PARAMS)
    with (root / ".dvc/config").open("a") as file:
        file.write("[cache]\n    type = hardlink\n")
    repro(root, "tokenize@icons-codes")
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    root = tmp_path / "project"
    subprocess.run(["cp", "-a", str(made), str(root)], check=True)  # hard links stay what they are
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(root)
    return root


def asl_pipe(*arguments: str, code: int = 0) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert run_command([*arguments]) == code, said.getvalue()
    return said.getvalue()


def test_the_images_are_the_same_files_and_a_tokenizer_lies_beside_them(made: Path) -> None:
    old, new = made / "data/icons", made / "data/icons-codes"
    packed = {path.name for path in old.iterdir()} - {"manifest.json"}
    added = {"tokenizer.json", "tokenizer.safetensors"}
    assert {path.name for path in new.iterdir()} == packed | added | {"manifest.json"}
    assert packed >= {"train-00000.tar", "test-index.npz"}
    for name in packed:
        assert (new / name).read_bytes() == (old / name).read_bytes()
        assert (new / name).samefile(old / name)
    before, after = read_manifest(old), read_manifest(new)
    assert after == dataclasses.replace(before, name="icons-codes", notes=(*before.notes, NOTE))
    assert json.loads((new / "tokenizer.json").read_text()) == {
        "kind": "kmeans", "num_codes": 10, "patch_pixels": 8,
    }  # fmt: skip
    images = torch.stack([PackedDataset(new, "test").read_image(i) for i in range(4)])
    codes = load_tokenizer(new).codes(images)
    assert codes.shape == (4, 16)
    assert len(codes.unique()) > 3


def test_metrics_say_how_codes_are_used(made: Path) -> None:
    metrics = json.loads((made / "runs/tokenize/icons-codes.json").read_text())
    assert metrics["measured_patches"] == 16 * 16
    assert 5 < metrics["codes_used"] <= 10
    assert metrics["commonest_code_share"] < 0.6
    assert 3 < metrics["code_perplexity"] <= metrics["codes_used"]
    assert 0 < metrics["quantisation_error"] < 1
    assert "test_images" not in metrics  # of which none was looked at
    details = made / "runs/tokenize/icons-codes"
    assert json.loads((details / "config.json").read_text())["num_codes"] == 10
    assert list((details / "journal").glob("*.jsonl"))


@pytest.mark.slow
def test_dvc_makes_it_once_and_the_same_again(project: Path, call: Any) -> None:
    def dvc(*arguments: str) -> str:
        done = call("dvc", *arguments, cwd=project, PYTHONPATH=str(project))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def lock() -> str:
        text = (project / "dvc.lock").read_text()
        return re.search(r"path: data/icons-codes\n.*?md5: (\S+)", text, re.DOTALL)[1]  # type: ignore[index]

    before = lock()
    assert "Running stage 'tokenize" not in dvc("repro", "tokenize@icons-codes")
    ran = re.findall(r"Running stage '(.*)'", dvc("repro", "-f", "-s", "tokenize@icons-codes"))
    assert ran == ["tokenize@icons-codes"]
    assert lock() == before
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("num_codes: 10", "num_codes: 11"))
    ran = re.findall(r"Running stage '(.*)'", dvc("repro", "tokenize@icons-codes"))
    assert ran == ["tokenize@icons-codes"]
    assert lock() != before
    assert load_tokenizer(project / "data/icons-codes").num_codes == 11
    assert "up to date" in dvc("status", "prepare@icons")  # its files were read and nothing else


def test_the_other_commands_know_the_stage(project: Path) -> None:
    assert asl_pipe("validate").startswith(
        "tiny: valid; 1 prepare, 1 tokenize, 1 pretrain, 1 linprobe, 1 knn"
    )
    assert "tokenize@icons-codes" in asl_pipe("plan")
    (project / "cluster.yaml").write_text("local: {tokenize: {num_workers: 1}}\n")
    asl_pipe("validate")
    said = asl_pipe("run", "tokenize", "icons-code", code=2)
    assert "unknown tokenizer of stage tokenize in suite tiny: 'icons-code'; did you mean" in said
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("num_codes: 10", "num_codes: 11"))
    said = asl_pipe("bundle", "pretrain", "mae", code=2)
    assert "run `dvc repro tokenize@icons-codes` first" in said
    asl_pipe("vouch", "tokenize", code=2)
    shutil.rmtree(project / "data/icons-codes")
    said = asl_pipe("run", "pretrain", "mae", code=2)
    assert "needs data/icons-codes, which does not exist; run `dvc repro tokenize@icons-c" in said


def test_of_a_missing_dataset_the_run_that_makes_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    project, params = Project(tmp_path, tmp_path), load_params(tmp_path / "params.yaml")
    for stage, key, maker in (
        ("pretrain", "mae", "tokenize@icons-codes"), ("knn", "mae", "prepare@icons"),
        ("tokenize", "icons-codes", "prepare@icons"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"does not exist; run `dvc repro {maker}`"):
            find_inputs(project, stage, key, recipe_of(params, stage, key))


# --- the stage with DALL-E's encoder


def encoder_state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = DalleEncoder(4, 20).state_dict()
    return {published_name(name): tensor for name, tensor in state.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def dalle_request(tmp_path: Path) -> Iterator[StageRequest[Any]]:
    """A request for a small encoder of DALL-E's kind, whose file lies in the data root."""
    data, icons = tmp_path / "data", tmp_path / "icons"
    data.mkdir()
    save_file(encoder_state(), data / "encoder.safetensors")
    prepare(Icons(image_size=16, train=20, test=4), data, icons, name="icons")
    outputs = {role: tmp_path / "out" / role for role in ("dataset", "details")}
    for folder in outputs.values():
        folder.mkdir(parents=True)
    recipe = DalleTokenizer(
        dataset="icons", weights="encoder.safetensors", num_codes=20, width=4, image_size=16,
        sha256=digest(data / "encoder.safetensors"),
    )  # fmt: skip
    journal = Journal.open(tmp_path / "journal")
    yield StageRequest(
        stage="tokenize", key="icons-dalle", recipe=recipe,
        inputs={"dataset": icons, "data_root": data}, work=tmp_path / "work", outputs=outputs,
        journal=journal, resources=Resources(),
    )  # fmt: skip
    journal.close()


def given(request: StageRequest[Any], file: Path, **changes: Any) -> StageRequest[Any]:
    changes = {"weights": file.name, "sha256": digest(file)} | changes
    return dataclasses.replace(request, recipe=dataclasses.replace(request.recipe, **changes))


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_an_encoder_of_dalle_is_read_from_a_file(
    dalle_request: StageRequest[Any], form: str, tmp_path: Path
) -> None:
    file = tmp_path / f"data/encoder.{form}"
    if form == "pt":
        torch.save(encoder_state(), file)
    metrics = run(given(dalle_request, file))
    folder = dalle_request.outputs["dataset"]
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, DalleEncoder)
    state = {published_name(name): tensor for name, tensor in tokenizer.state_dict().items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder_state().items())
    assert metrics["quantisation_error"] != metrics["quantisation_error"]  # it has no centres
    assert metrics["measured_patches"] == 16 * 4
    before = read_manifest(dalle_request.inputs["dataset"])
    assert read_manifest(folder) == dataclasses.replace(before, name="icons-dalle")
    assert len(PackedDataset(folder, "train")) == 20


def test_on_another_disk_images_are_copied(
    dalle_request: StageRequest[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run(dalle_request)
    old, new = dalle_request.inputs["dataset"], dalle_request.outputs["dataset"]
    assert (new / "train-00000.tar").read_bytes() == (old / "train-00000.tar").read_bytes()
    assert not (new / "train-00000.tar").samefile(old / "train-00000.tar")


def refusal(request: StageRequest[Any]) -> str:
    with pytest.raises(InputError) as raised:
        run(request)
    assert "\n" not in str(raised.value)
    assert not (request.outputs["dataset"] / "manifest.json").exists()
    return str(raised.value)


def test_a_file_that_is_not_it_is_refused(dalle_request: StageRequest[Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    whole = data / "encoder.safetensors"
    gone = given(dalle_request, whole, weights="nothing.pt")
    assert f"{data}/nothing.pt does not exist; correct `weights`" in refusal(gone)
    other = given(dalle_request, whole, sha256="0" * 64)
    assert f"has sha256 {digest(whole)}, params.yaml says 000" in refusal(other)
    assert "expected (256, 3, 7, 7) for width 256" in refusal(
        given(dalle_request, whole, width=256)
    )
    assert "blocks.output.conv.w is (20, 32, 1, 1), expected (21," in refusal(
        given(dalle_request, whole, num_codes=21)
    )
    nested = data / "nested.pt"
    torch.save({"model": encoder_state()}, nested)
    assert "blocks.input.w is missing; give the state dict" in refusal(given(dalle_request, nested))
    pickled = data / "encoder.pkl"
    torch.save(DalleEncoder(4, 20), pickled)
    assert "is refused: reading it would call" in refusal(given(dalle_request, pickled))
    text = data / "page.html"
    text.write_text("<html>not found</html>")
    assert "is a web page" in refusal(given(dalle_request, text))


def test_a_kmeans_of_more_codes_than_patches_is_refused(dalle_request: StageRequest[Any]) -> None:
    recipe = KMeansTokenizer(
        dataset="icons", num_codes=900, patch_size=4, image_size=16, images=1000
    )
    request = dataclasses.replace(dalle_request, recipe=recipe)
    assert "num_codes 900 exceeds the 320 different patches" in refusal(request)


# --- params.yaml


@dataclass(frozen=True, kw_only=True)
class CodesRecipe(TokenPretraining):
    """A method that predicts codes."""

    method: str = "codes"

    def view_plan(self) -> ViewPlan:
        return ViewPlan(views=(View(size=self.model.image_size),))


DALLE = f"kind: dalle, weights: x.pt, sha256: {'a' * 64}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_codes: 10", "num_code: 10", "icons-codes.num_code: unknown key; did you mean"),
        ("num_codes: 10", "num_codes: ten", "icons-codes.num_codes: got 'ten', expected a whole"),
        ("num_codes: 10", "num_codes: 1", "tokenizers.icons-codes: num_codes must be at least 2"),
        ("kind: kmeans", "kind: kmean", "icons-codes.kind: got 'kmean', expected one of kmeans"),
        ("kind: kmeans, ", "", "tokenizers.icons-codes.kind: is missing; add it"),
        ("kind: kmeans", DALLE, "tokenizers.icons-codes.patch_size: unknown key"),
        ("kind: kmeans", "kind: dalle", "tokenizers.icons-codes.weights: is missing; add it"),
        ("codes: {dataset: icons,", "codes: {dataset: icon,", "icons-codes.dataset: unknown datas"),
        (
            "codes: {dataset: icons,", "codes: {dataset: icons-codes,",
            "tokenizers.icons-codes.dataset: unknown dataset 'icons-codes'; did you mean 'icons'?",
        ),
        (
            "  icons-codes: {", "  icons: {",
            "tokenizers.icons: `datasets` has this name too; choose another",
        ),
        ("  icons-codes: {", "  Icons: {", "tokenizers.Icons: got the name 'Icons', expected"),
        (
            "mae, dataset: icons-codes", "mae, dataset: icons-code",
            "experiments.mae.dataset: unknown dataset 'icons-code'; did you mean 'icons-codes'?",
        ),
        ("tokenizers:", "tokenizer:", "tokenizer: unknown key; did you mean 'tokenizers'?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in PARAMS
    (tmp_path / "params.yaml").write_text(PARAMS.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        load_params(tmp_path / "params.yaml")
    assert any(said in line for line in str(raised.value).splitlines()), str(raised.value)


def test_any_stage_may_use_a_dataset_with_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    params = load_params(tmp_path / "params.yaml")
    assert params.experiments["mae"].dataset == "icons-codes"
    assert params.section("linprobe")["mae"].dataset == "icons-codes"
    assert params.section("tokenize")["icons-codes"] == KMeansTokenizer(
        dataset="icons", num_codes=10, patch_size=8, image_size=32, images=20, epochs=1
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dataset": "icons"}, "dataset icons has no tokenizer; name an entry of `tokenizers`"),
        (
            {"tokenizer": "dalle"},
            "codes wants codes of dalle, and dataset icons-codes has those of",
        ),
        (
            {},
            "patches of the model have 16 pixels, those of dataset icons-codes's tokenizer 8; fit",
        ),
    ],
)
def test_a_method_that_predicts_codes_needs_its_own_kind_of_tokenizer(
    fields: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = CodesRecipe(**{"dataset": "icons-codes", "tokenizer": "kmeans", **fields})
    (tmp_path / "params.yaml").write_text(PARAMS)

    def with_codes(adapter: Any, raw: Any) -> Params:
        return validate(adapter, raw).model_copy(update={"experiments": {"mae": recipe}})

    monkeypatch.setattr("pipeline.config.params.validate", with_codes)
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        load_params(tmp_path / "params.yaml")
    assert f"{tmp_path / 'params.yaml'}: experiments.mae.dataset: " in str(raised.value)


# --- in the tables


@pytest.fixture
def probed(results: Any) -> Any:
    """Two probes on the paper's data; both sections name datasets with tokenizers."""
    results.on_the_papers_data()
    text = (results.folder / "params.yaml").read_text()
    text = text.replace("dataset: coco", "dataset: coco-codes")
    text = text.replace("  mae: {dataset: imagenet}", "  mae: {dataset: imagenet-codes}", 1)
    results.write(text + """
tokenizers:
  coco-codes: {dataset: coco, kind: kmeans, num_codes: 8}
  imagenet-codes: {dataset: imagenet, kind: kmeans, num_codes: 8}
""")  # fmt: skip
    results.result("linprobe", "mae", lp_acc1=51.0)
    results.result("linprobe", "asl", lp_acc1=49.0)
    return results


def test_a_tokenizer_makes_no_other_data_of_images(probed: Any) -> None:
    probed.lock()
    (table,) = lay_out(probed.suite, PAPER)
    assert [line.cells[0].delta for line in table.lines] == [4.2, 0.4]


def test_at_the_papers_scale_it_fills_the_papers_rows(probed: Any) -> None:
    probed.edit("scale: reduced", "scale: paper")
    probed.edit("tables: [table1, table5]", "tables: [table1]")
    probed.edit("epochs: 2", "epochs: 800")
    probed.lock()
    (table,) = lay_out(probed.suite, PAPER)
    filled = {line.label: line.cells[0].delta for line in table.lines if line.keys}
    assert filled == {"MAE [22]": 4.2, "ASL": 0.4}


def test_a_floor_on_the_same_images_is_one(probed: Any) -> None:
    probed.edit(
        "experiments:\n",
        "experiments:\n  none: {method: untrained, dataset: coco, model: vit-demo}\n",
    )
    probed.edit("linprobe:\n", "linprobe:\n  none: {dataset: imagenet}\n")
    probed.result("linprobe", "none", lp_acc1=50.0)
    probed.lock()
    (table,) = lay_out(probed.suite, PAPER)
    floors = {line.keys[0]: line.cells[0].floor for line in table.lines}
    assert floors["mae"].ours == floors["asl"].ours == 50.0
    probed.edit("mae: {dataset: imagenet-codes}", "mae: {dataset: coco-codes}")
    (table,) = lay_out(probed.suite, PAPER)
    assert {line.keys[0]: line.cells[0].floor for line in table.lines}["mae"] is None


def manifest(name: str, *said: str) -> Manifest:
    return Manifest(
        name=name, source={"source": "icons"}, licence="", classes=None, thing_classes=None,
        semantic_classes=None, mean=(0.5,) * 3, std=(0.5,) * 3, counts={"train": 8, "test": 4},
        annotated={"train": 8, "test": 4}, digests={"train": "0", "test": "1"},
        rejected={"train": [], "test": []}, notes=said,
    )  # fmt: skip


def test_what_is_to_be_known_of_the_codes_stands_under_the_table_once(probed: Any) -> None:
    for name, said in (("coco", ("As packed.",)), ("coco-codes", ("As packed.", NOTE))):
        (probed.folder / "data" / name).mkdir(parents=True)
        manifest(name, *said).write(probed.folder / "data" / name)
    (table,) = lay_out(probed.suite, PAPER)
    found = [line for line in notes(table) if line.startswith("Data ")]
    assert found == ["Data coco: As packed.", f"Data coco-codes: {NOTE}"]
