"""What was watched on its way: journal, metrics file, log, tables, figure, charts."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from asl_core.analysis import watched
from asl_core.analysis.watching import WatchPlan
from asl_core.data.prepare import prepare
from asl_core.engine.journal import Journal
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.datasets import Icons
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from pipeline.jobs.journal import effective_points
from pipeline.stages import pretrain
from pipeline.stages.request import StageRequest
from pipeline.tables.figures.drawing import read_journals
from pipeline.tables.figures.watching import watched_curves
from pipeline.tables.formats import render_tables
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.replicates import find_replicates
from pipeline.tracking.mlflow.charts import comparison_view

PAPER = load_paper()
VIT = Vit(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
          decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2)  # fmt: skip
RECIPE = AslRecipe(dataset="icons", model=VIT, epochs=4, batch_size=8, warmup_epochs=0, lr=1e-9,
                   precision="fp32", snapshots=4, held_out_images=3)  # fmt: skip
CURVES = {*watched.TITLES, watched.QUERIES}


def run(work: Path, icons: Path) -> dict[str, float]:
    """Run the stage, going on from what it left in `work`, and return its metrics."""
    outputs = {role: work / "out" / role for role in ("encoder", "held_out", "details")}
    for folder in outputs.values():
        folder.mkdir(parents=True, exist_ok=True)
    with Journal.open(work / "journal") as journal:
        return pretrain.run(
            StageRequest(
                stage="pretrain", key="asl", recipe=RECIPE, inputs={"dataset": icons},
                work=work, outputs=outputs, journal=journal,
                resources=Resources(device="cpu", log_every_steps=1, checkpoint_minutes=0),
            )
        )  # fmt: skip


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    folder = tmp_path / "icons"
    prepare(Icons(image_size=16, train=32, test=8), folder, folder, name="icons")
    return folder


@pytest.fixture(autouse=True)
def small_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs be watched that are too short for it, at all of their 16 steps' snapshots."""
    plan = WatchPlan(steps=(0, 4, 8, 16), images=24, aligned=8)
    monkeypatch.setattr(pretrain, "plan_watching", lambda *_: plan)


def curves(work: Path) -> dict[str, list[tuple[int, float]]]:
    points = effective_points(work / "journal")
    return {
        name: [(step, value) for step, value, _ in values]
        for name, values in points.items()
        if name.startswith("watch/")
    }


def test_curves_metrics_and_warnings_of_a_run_that_learns_nothing(
    icons: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pipeline.stages.pretrain"):
        metrics = run(tmp_path / "run", icons)
    found = curves(tmp_path / "run")
    assert found.keys() == {*CURVES, watched.LOSS_FALL}
    for name in CURVES:
        assert [step for step, _ in found[name]] == [0, 4, 8, 16]
        assert metrics[name] == found[name][-1][1]
    assert [step for step, _ in found[watched.LOSS_FALL]] == [16]  # before, too few log lines
    for name in watched.ACCURACIES:
        assert metrics[name + watched.UNTRAINED] == found[name][0][1]
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in said] == [
        "pretrain asl, step 4", "pretrain asl, step 8", "pretrain asl, step 16",
        "pretrain asl, step 16",
    ]  # fmt: skip
    assert "not clearly above the floor: k-NN of [cls]" in said[0]
    assert "loss flat: from the second to the last quarter of the steps it" in said[-1]


def test_a_run_that_goes_on_has_each_point_once(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    expected = run(tmp_path / "alone", icons)
    for last in (2, 8, 11):  # the second time between a snapshot's step and its measurement

        def die_after(self: ArbitrarySelfSupervised, step: int, last: int = last) -> None:
            if step == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(ArbitrarySelfSupervised, "after_step", die_after, raising=False)
            with pytest.raises(Killed):
                run(tmp_path / "killed", icons)
    metrics = run(tmp_path / "killed", icons)
    assert curves(tmp_path / "killed") == curves(tmp_path / "alone")
    assert metrics == expected


WATCHED = {
    "watch/knn_acc1_cls": 30.0, "watch/knn_acc1_cls_untrained": 36.0, "watch/query_images": 400,
    "watch/prediction_distance": 0.003, "watch/alignment_gradient": 0.018,
    "watch/loss_fall": 0.001,
}  # fmt: skip


def test_every_format_warns_of_the_experiment_by_name(seeds: Any) -> None:
    seeds.result("pretrain", "aee-s1", **WATCHED)
    seeds.result("pretrain", "mae", **{"watch/loss_fall": 0.2})
    (table,) = lay_out(seeds.suite, PAPER)
    floor, collapse, flat = table.warnings
    assert floor == (
        "Below the floor: ASL (AEE), experiment aee-s1: k-NN of [cls] 30.0 against 36.0 % (the "
        "untrained encoder; standard error of a difference 3.3)."
    )
    assert collapse.startswith("Collapsed in prediction space: ASL (AEE), experiment aee-s1: the")
    assert flat == (
        "Loss flat: ASL (AEE), experiment aee-s1: from the second to the last quarter of the "
        "steps it fell by 0.1 %."
    )
    for format_ in ("text", "md", "latex"):
        assert "Loss flat" in render_tables(seeds.suite, format_)
    assert 'role="alert">Below the floor: ASL (AEE)' in page(seeds.suite, PAPER)


def test_a_dropout_that_is_meant_to_be_none_has_not_collapsed(seeds: Any) -> None:
    seeds.result("pretrain", "dle", **WATCHED)
    assert len(lay_out(seeds.suite, PAPER)[0].warnings) == 3
    seeds.edit("design: dle", "design: dle, dle_rate: 0.0")
    whats = [warning.split(":")[0] for warning in lay_out(seeds.suite, PAPER)[0].warnings]
    assert whats == ["Below the floor", "Loss flat"]


def leave(seeds: Any, key: str, **values: float) -> None:
    folder = seeds.folder / "runs" / "pretrain" / key
    seeds.result("pretrain", key, **{"pretrain/loss": 0.5})
    with Journal.open(folder / "journal") as journal:
        for step in (0, 10, 20):
            journal.metrics(step, {f"watch/{name}": v + step for name, v in values.items()})


def drawn(seeds: Any) -> str | None:
    groups = find_replicates(seeds.suite, PAPER)
    keys = [key for group in groups for key in group.keys]
    return watched_curves(read_journals(seeds.suite, keys), groups)


def test_one_figure_has_a_panel_for_each_curve_that_somebody_has(seeds: Any) -> None:
    assert drawn(seeds) is None
    leave(seeds, "mae", knn_acc1_cls=30.0, token_similarity=0.5)
    leave(seeds, "mae-s1", knn_acc1_cls=34.0, token_similarity=0.5)
    svg = drawn(seeds)
    assert svg is not None
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    titles = [title for title in watched.TITLES.values() if title in texts]
    assert titles == ["k-NN of [cls] [%]", "Token similarity"]
    assert texts.count("MAE") == 2  # once in each panel, of two seeds
    assert svg.count("stroke-dasharray") == 1  # the floor, of the accuracy alone
    leave(seeds, "aee", prediction_distance=0.02, alignment_gradient=0.3)
    svg = drawn(seeds)
    assert svg is not None
    assert svg.count("stroke-dasharray") == 3  # and where a collapse begins
    assert "Gradient, alignment / pixels" in svg
    assert svg in page(seeds.suite, PAPER)


def test_mlflows_charts_have_every_curve() -> None:
    state = json.loads(json.loads(comparison_view("demo", 0))["state"])
    (section,) = (each["uuid"] for each in state["compareRunSections"]
                  if each["name"] == "Watched at snapshots")  # fmt: skip
    cards = [card for card in state["compareRunCharts"] if card["metricSectionId"] == section]
    assert [card["metricKey"] for card in cards] == list(watched.TITLES)
    assert {card["type"] for card in cards} == {"LINE"}
