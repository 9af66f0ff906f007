"""Pictures of the same images by stage `analyze`, and the report's section of all encoders."""

import base64
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asl_core.analysis import projection
from asl_core.analysis.attention import cls_attention
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.datasets import Icons, Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from pipeline.errors import UserError
from pipeline.jobs.journal import read_records
from pipeline.stages import analyze
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.tables.html import page
from pipeline.tables.paper import load_paper

CPU = Resources(device="cpu")
PICTURES = {"patch_pca.png", "attention.png", "neighbours.png", "umap.png"}
VIT = Vit(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    prepare(Icons(image_size=16, train=4, test=40), folder, folder, name="icons")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    prepare(Scenes(image_size=32, train=4, test=20, objects=(1, 2)), folder, folder, name="scenes")
    return folder


@pytest.fixture
def analyse(tmp_path: Path) -> Callable[..., Path]:
    """Runs the stage on a random encoder and returns the folder of its details."""

    def run(dataset: Path, *, vit: Vit = VIT, seed: int = 0, name: str = "a", **more: Any) -> Path:
        torch.manual_seed(seed)
        encoder, out = tmp_path / name / "encoder", tmp_path / name / "out"
        encoder.mkdir(parents=True)
        out.mkdir()
        save_encoder(encoder, Encoder(vit).state_dict(), vit)
        inputs = {"dataset": dataset, "encoder": encoder, "held_out": tmp_path / "none"}
        recipe = TokenAnalysis(**{"dataset": "x", "images": 6, **more})
        work = tmp_path / name
        with Journal.open(work / "journal") as journal:
            metrics = analyze.run(
                StageRequest("analyze", name, recipe, inputs, work, {"details": out}, journal, CPU)
            )
        assert analyze.reevaluate(StoredRun(recipe, out, inputs, CPU)) == pytest.approx(
            metrics, abs=0, rel=0, nan_ok=True
        )
        return out

    return run


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "same_images/same_images.json").read_text())


def pixels(uri: str) -> np.ndarray:
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


def test_what_is_shown_is_what_the_encoder_makes_of_the_test_images(
    analyse: Callable[..., Path], icons: Path, tmp_path: Path
) -> None:
    out, dataset = analyse(icons), PackedDataset(icons, "test")
    assert {path.name for path in (out / "same_images").glob("*.png")} == PICTURES
    content = read(out)
    indices = [image["index"] for image in content["pictured"]]
    assert indices == [0, 5, 10, 15, 20, 25, 30, 35]
    assert content["dataset"]["digest"] == dataset.manifest.digests["test"]
    for image in content["pictured"]:
        sample = dataset[image["index"]]
        assert (pixels(image["image"]) == sample.image.permute(1, 2, 0).numpy()).all()
        assert image["label"] == dataset.manifest.classes[sample.label]
    encoder = load_encoder(tmp_path / "a/encoder").eval()
    images = torch.stack([dataset[index].image for index in range(40)])
    inputs = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    with torch.no_grad():
        maps = 16 * cls_attention(encoder, inputs[indices])  # of 16 patches
        mean = encoder.before_norm(inputs)[:, 1:].mean(dim=1)
    by_head = content["attention"]["heads"]
    for shown, expected in zip(by_head["tiles"], maps, strict=True):
        levels = np.stack([pixels(uri) for uri in shown]) * by_head["top"] / 255
        capped = expected.clamp(max=by_head["top"]).numpy()
        assert np.abs(levels - capped).max() < by_head["top"] / 500
    vectors = torch.nn.functional.layer_norm(mean, (24,)).double()
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    for index, found in zip(indices, content["neighbours"], strict=True):
        others = sorted((-cosines[index, j].item(), j) for j in range(40) if j != index)[:5]
        assert [image["index"] for image in found] == [j for _, j in others]
        assert [image["cosine"] for image in found] == pytest.approx(
            [-c for c, _ in others], abs=1e-5
        )


def test_the_same_encoder_gives_the_same_bytes_and_another_the_same_images(
    analyse: Callable[..., Path], icons: Path
) -> None:
    one, two = analyse(icons, name="one"), analyse(icons, name="two")
    for path in (one / "same_images").iterdir():
        assert path.read_bytes() == (two / "same_images" / path.name).read_bytes(), path.name
    other = read(analyse(icons, name="other", seed=1, images=4))
    assert other["pictured"] == read(one)["pictured"]
    assert other["patches"]["tiles"] != read(one)["patches"]["tiles"]


def test_large_images_without_classes_are_shown_smaller(
    analyse: Callable[..., Path], scenes: Path
) -> None:
    vit = Vit(image_size=224, patch_size=16, embed_dim=24, depth=1, num_heads=2,
              decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
    out = analyse(scenes, vit=vit, pictured=3, foreground=True, pooling="cls")
    content = read(out)
    assert {image["label"] for image in content["pictured"]} == {None}
    assert pixels(content["pictured"][0]["image"]).shape == (128, 128, 3)
    assert pixels(content["patches"]["tiles"][0]).shape == (14, 14, 3)
    assert content["patches"]["foreground"]
    assert {path.name for path in (out / "same_images").glob("*.png")} == PICTURES


@pytest.mark.parametrize(("count", "missing"), [(1, {"nearest neighbours", "UMAP"}), (6, {"UMAP"})])
def test_too_few_images_are_said_to_be(
    count: int, missing: set[str], analyse: Callable[..., Path], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    prepare(Icons(image_size=16, train=4, test=count), few, few, name="few")
    out = analyse(few)
    content = read(out)
    assert content["left_out"].keys() == missing
    assert f"here are {count}" in content["left_out"]["UMAP"]
    assert len(content["pictured"]) == count
    assert len(content.get("neighbours", [[]])[0]) == count - 1
    names = [Path(r.body["path"]).name for r in read_records(out.parent / "journal")
             if r.kind == "artifact"]  # fmt: skip
    assert ("neighbours.png" in names) == (count > 1)
    assert "umap.png" not in names


def test_what_cannot_be_drawn_costs_no_number(
    analyse: Callable[..., Path], icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "umap is false" in read(analyse(icons, name="off", umap=False))["left_out"]["UMAP"]

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'umap'", name="umap")

    monkeypatch.setattr(projection, "_load", missing)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    content = read(analyse(icons, name="bare"))
    assert "umap is not installed" in content["left_out"]["UMAP"]
    assert "sklearn" in content["left_out"]["colours of patches"]
    assert len(content["neighbours"]) == len(content["attention"]["mean"]["tiles"]) == 8


def test_the_report_shows_the_same_images_once_and_each_encoder_below(
    analyse: Callable[..., Path], icons: Path, results: Any
) -> None:
    results.edit("analyze:\n", "analyze:\n  mae: {dataset: icons}\n")
    for key, seed in (("asl", 0), ("mae", 1)):
        results.result("analyze", key, token_similarity=0.5)
        (results.folder / "runs/analyze" / key).mkdir(exist_ok=True)
        out = analyse(icons, name=key, seed=seed)
        (out / "same_images").rename(results.folder / "runs/analyze" / key / "same_images")
    content = page(results.suite, load_paper())
    section = content.split('<section id="same-images"')[1].split("</section>")[0]
    assert section.count("<table") == 3  # side by side, and two by head
    assert section.count("8 of the 40 test images") == 1
    for row in ("ASL (AEE)", "MAE"):
        assert section.count(f'alt="Colours of the patches, {row}') == 8
        assert section.count(f'alt="Attention, {row}') == 8
        assert section.count(f'alt="Attention of head 3, {row}') == 4
        assert section.count(f', {row}"') == 8 * 5 + 1  # neighbours, and the UMAP
    assert section.count("UMAP of 40 test images, ") == 2


def test_other_images_stand_apart_and_a_damaged_file_is_named(
    analyse: Callable[..., Path], icons: Path, scenes: Path, results: Any
) -> None:
    results.edit("analyze:\n", "analyze:\n  mae: {dataset: icons}\n")
    for key, dataset in (("asl", icons), ("mae", scenes)):
        results.result("analyze", key, token_similarity=0.5)
        (results.folder / "runs/analyze" / key).mkdir(exist_ok=True)
        out = analyse(dataset, name=key, umap=False)
        (out / "same_images").rename(results.folder / "runs/analyze" / key / "same_images")
    content = page(results.suite, load_paper())
    assert "8 of the 40 test images" in content
    assert "8 of the 20 test images" in content
    assert "no UMAP, umap is false in params.yaml." in content
    file = results.folder / "runs/analyze/mae/same_images/same_images.json"
    for bad in ("{", "{}", file.read_text().replace("data:image/png;", "http://x.example/")):
        file.write_text(bad)
        with pytest.raises(UserError, match=r"same_images\.json is damaged.*run its stage"):
            page(results.suite, load_paper())
