"""Datasets from folders, tar files and saved datasets: as params.yaml names them, in each stage."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.recipes.undivided import Images
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.execution.inputs import find_inputs
from pipeline.execution.wanted import wanted_files
from pipeline.project import Project
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.sources import changes, reads_disk, refresh_all_sources
from pipeline.stages import analyze, knn, linprobe, pretrain
from pipeline.stages import prepare as prepare_stage
from pipeline.stages.request import StageRequest

PARAMS = """
suite: own
title: Own
scale: reduced
tables: []
datasets:
  photos: {source: images, path: [photos, more], labels: folder, holdout: 0.05, max_side: 512}
  tars: {source: webdataset, path: "tars/t-{000..001}.tar"}
  all-tars: {source: webdataset, path: tars/*.tar, labels: cls}
  saved: {source: huggingface, path: saved}
  named: {source: huggingface, name: somebody/pictures, revision: 0a1b2c, label_column: label}
experiments:
  mae: {method: mae, dataset: tars, model: vit-demo, epochs: 1, batch_size: 4, warmup_epochs: 0}
"""
VIT = Vit(image_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip


def write_tar(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in range(count):
            header = tarfile.TarInfo(f"{path.stem}-{number}.jpg")
            header.size = 10
            file.addfile(header, io.BytesIO(bytes(10)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    root, data = tmp_path / "project", tmp_path / "data"
    (root / ".dvc").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    for name in ("photos/cat/a.jpg", "photos/b.jpg", "more/c.jpg", "saved/state.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(bytes(10))
    for name in ("t-000", "t-001", "t-002"):
        write_tar(data / f"tars/{name}.tar", 2)
    monkeypatch.setenv("ASL_DATA", str(data))
    return Project(root, root)


def look(project: Project) -> dict[str, str]:
    refresh_all_sources(project, DvcCache())
    return {path.stem: path.read_text() for path in (project.suite / "sources").glob("*.txt")}


# --- what is watched


def test_all_that_is_read_is_watched(project: Project) -> None:
    found = look(project)
    assert [line.partition(", names")[0] for line in found["photos"].splitlines()] == [
        "photos: 2 files, 20 bytes", "more: 1 file, 10 bytes",
    ]  # fmt: skip
    size = (project.root.parent / "data/tars/t-000.tar").stat().st_size
    assert found["tars"].startswith(f"tars/t-{{000..001}}.tar: 2 files, {2 * size} bytes, names ")
    assert found["all-tars"].startswith(f"tars/*.tar: 3 files, {3 * size} bytes, names ")
    assert found["saved"].startswith("saved: 1 file, 10 bytes, names ")
    assert found["named"] == "fetched by its name and revision: reads no files\n"
    assert reads_disk(project.suite)


@pytest.mark.parametrize(
    ("change", "dataset", "said"),
    [
        (lambda data: (data / "more/d.jpg").write_bytes(b"1"), "photos", "more: 1 file, 10 bytes"),
        (
            lambda data: shutil.rmtree(data / "more"),
            "photos",
            "more: 1 file, 10 bytes -> not there",
        ),
        (lambda data: write_tar(data / "tars/x.tar", 1), "all-tars", "tars/*.tar: 3 files, "),
        (lambda data: (data / "tars/t-001.tar").unlink(), "tars", "tars/t-{000..001}.tar: 2 files"),
        (lambda data: (data / "saved/a.arrow").write_bytes(b""), "saved", "saved: 1 file, 10 byte"),
    ],
)
def test_a_change_is_noticed(
    project: Project, change: Callable[[Path], Any], dataset: str, said: str
) -> None:
    before = look(project)
    change(project.root.parent / "data")
    after = look(project)
    assert dataset in [name for name in after if after[name] != before[name]]
    assert changes(before[dataset], after[dataset])[0].startswith(said)


def test_circles_and_what_leads_nowhere_are_seen(project: Project) -> None:
    photos = project.root.parent / "data/photos"
    (photos / "circle").symlink_to("circle")
    (photos / "up").symlink_to(photos)
    (photos / "gone.jpg").symlink_to("nowhere")
    assert look(project)["photos"].startswith("photos: 4 files, 18 bytes, names")


# --- what is named before anything runs


@pytest.mark.parametrize(
    ("key", "gone"),
    [("photos", "more"), ("tars", "tars/t-001.tar"), ("saved", "saved")],
)
def test_what_is_not_there_is_named(project: Project, key: str, gone: str) -> None:
    path = project.root.parent / "data" / gone
    path.rename(path.with_name("elsewhere"))
    params = load_params(project.params_file)
    with pytest.raises(UserError, match=f"prepare@{key} needs {path}, which does not exist"):
        find_inputs(project, "prepare", key, params.datasets[key])
    wanted = {each.where: each.readers for each in wanted_files(project, params)}
    assert wanted == {str(path): (f"prepare@{key}",)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("knn: {mae: {dataset: tars}}", "knn.mae.dataset: wants labels, which tars has not; set "
         "its labels, or take another dataset"),
        ("linprobe: {mae: {dataset: saved}}", "which saved has not; set its label_column, or take"),
        ("detect: {mae: {dataset: photos}}", "detect.mae.dataset: wants objects, which photos has"),
        ("segment: {mae: {dataset: named}}", "wants semantic maps, which named has not; take"),
    ],
)  # fmt: skip
def test_evaluations_that_want_what_a_source_has_not_are_refused(
    project: Project, more: str, said: str
) -> None:
    project.params_file.write_text(f"{PARAMS}{more}\n")
    with pytest.raises(UserError) as raised:
        load_params(project.params_file)
    lines = str(raised.value).splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_evaluations_take_what_has_labels_and_analyze_takes_all(project: Project) -> None:
    project.params_file.write_text(
        f"{PARAMS}knn: {{mae: {{dataset: photos}}}}\nlinprobe: {{mae: {{dataset: named}}}}\n"
        "analyze: {mae: {dataset: tars}}\n"
    )
    assert load_params(project.params_file).section("knn")["mae"].dataset == "photos"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{source: images, path: a, labels: cls}", "datasets.x.labels: got 'cls'"),
        ("{source: images, path: a, holdout: 1.5}", "holdout must be a share from 0 to below 1"),
        (
            "{source: images, path: a, max_size: 9}",
            "datasets.x.max_size: unknown key; did you me",
        ),
        ("{source: images}", "datasets.x.path: is missing"),
        ("{source: webdataset, path: []}", "path is empty"),
        ("{source: huggingface, name: a}", "name a needs a revision"),
        ("{source: image, path: a}", "images"),
    ],
)
def test_mistakes_are_one_line(project: Project, entry: str, said: str) -> None:
    text = PARAMS.replace("datasets:\n", f"datasets:\n  x: {entry}\n")
    project.params_file.write_text(text)
    with pytest.raises(UserError) as raised:
        load_params(project.params_file)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


# --- what stages make of them


@pytest.fixture
def request_of(tmp_path: Path) -> Iterator[Callable[..., StageRequest[Any]]]:
    journals = []
    torch.manual_seed(0)
    (tmp_path / "encoder").mkdir()
    save_encoder(tmp_path / "encoder", Encoder(VIT).state_dict(), VIT)

    def make(stage: str, recipe: object, **inputs: Path) -> StageRequest[Any]:
        work = tmp_path / f"work-{stage}"
        outputs = {
            role: work / "out" / role for role in ("details", "encoder", "held_out", "dataset")
        }
        for folder in outputs.values():
            folder.mkdir(parents=True)
        journals.append(Journal.open(work / "journal"))
        inputs = {"encoder": tmp_path / "encoder", "held_out": outputs["held_out"], **inputs}
        resources = Resources(device="cpu", threads=1)
        return StageRequest(stage, "mae", recipe, inputs, work, outputs, journals[-1], resources)

    yield make
    for journal in journals:
        journal.close()


def put_photos(folder: Path, count: int = 40) -> None:
    """Write pictures of two kinds, a folder each, of several formats."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
        if number % 2:
            pixels[:, ::8] = 255
        place = folder / ("stripes" if number % 2 else "plain")
        place.mkdir(parents=True, exist_ok=True)
        ending = ("png", "bmp", "tiff", "webp")[number % 4]
        Image.fromarray(pixels).save(place / f"{number}.{ending}")


def test_a_folder_without_labels_is_trained_on_and_analysed(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]]
) -> None:
    put_photos(tmp_path / "photos")
    recipe = Images(path="photos", holdout=0.3)
    packing = request_of("prepare", recipe, data_root=tmp_path)
    counts = prepare_stage.run(packing)
    assert counts["train_images"] + counts["test_images"] == 40
    dataset = packing.outputs["dataset"]
    mae = MaeRecipe(
        dataset="photos", model=VIT, epochs=1, batch_size=8, warmup_epochs=0, precision="fp32",
        snapshots=1,
    )  # fmt: skip
    training = request_of("pretrain", mae, dataset=dataset)
    assert pretrain.run(training)
    found = {"encoder": training.outputs["encoder"], "held_out": training.outputs["held_out"]}
    analysis = TokenAnalysis(dataset="photos", images=8, contrast_batches=(2,), pictured=2)
    assert analyze.run(request_of("analyze", analysis, dataset=dataset, **found))
    probe = request_of("knn", NearestNeighbours(dataset="photos", k=3), dataset=dataset)
    with pytest.raises(InputError, match=r"dataset mae in .* has no labels; choose one with"):
        knn.run(probe)


def test_a_folder_with_labels_is_voted_and_probed_on_its_held_out_part(
    tmp_path: Path, request_of: Callable[..., StageRequest[Any]]
) -> None:
    put_photos(tmp_path / "photos")
    recipe = Images(path="photos", holdout=0.3, labels="folder")
    prepare(recipe, tmp_path, tmp_path / "packed", name="photos")
    dataset = PackedDataset(tmp_path / "packed", "test")
    vote = NearestNeighbours(dataset="photos", image_size=32, k=3, precision="fp32")
    found = knn.run(request_of("knn", vote, dataset=tmp_path / "packed"))
    assert found["knn_acc1"] * len(dataset) / 100 == pytest.approx(
        round(found["knn_acc1"] * len(dataset) / 100)
    )
    probe = LinearProbe(
        dataset="photos", image_size=32, epochs=1, batch_size=8, warmup_epochs=0, precision="fp32"
    )
    assert "lp_acc1" in linprobe.run(request_of("linprobe", probe, dataset=tmp_path / "packed"))
