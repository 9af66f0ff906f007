"""Standard errors and numbers of test images. `results` and `seeds` are suites' folders."""

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from asl_core.data.manifest import Manifest
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.transfer import LinearProbe
from pipeline.execution.dataset_facts import count_test_images
from pipeline.stages.table import ANALYZE, DETECT, FINETUNE, PRETRAIN, SEGMENT
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.notes import notes
from pipeline.tables.paper import load_paper
from pipeline.tables.uncertainty import error_text, standard_error

PAPER = load_paper()
CHANCE = "Rows that differ by less than three standard errors may differ by chance alone."


def said(suite: Any, beginning: str) -> list[str]:
    """Return the notes of the suite's only table that begin so."""
    (table,) = lay_out(suite, PAPER)
    return [note for note in notes(table) if note.startswith(beginning)]


def test_an_accuracy_has_the_binomial_standard_error(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25, lp_acc5=60.0, test_images=400)
    run = results.suite.results["linprobe", "mae"]
    error = standard_error(PAPER.metrics["lp_acc1"], "lp_acc1", run)
    assert error == pytest.approx(100 * sqrt(0.2125 * 0.7875 / 400))
    assert standard_error(PAPER.metrics["lp_acc5"], "lp_acc5", run) == pytest.approx(
        2.449, abs=1e-3
    )
    assert "test_images" not in run.metrics


@pytest.mark.parametrize(
    "numbers",
    [{"lp_acc1": 0.0, "test_images": 400}, {"lp_acc1": 100.0, "test_images": 400}, {},
     {"lp_acc1": 151.0, "test_images": 400}, {"lp_acc1": 50.0, "test_images": 0},
     {"lp_acc1": 50.0}],
)  # fmt: skip
def test_where_images_say_nothing_of_each_other_there_is_none(
    results: Any, numbers: dict[str, float]
) -> None:
    results.result("linprobe", "mae", **numbers)
    run = results.suite.results["linprobe", "mae"]
    assert standard_error(PAPER.metrics["lp_acc1"], "lp_acc1", run) is None


def test_a_mean_has_its_own_and_ap_has_none(results: Any) -> None:
    results.result(
        "analyze", "asl", token_similarity=0.5, token_similarity_se=0.0123, test_images=200,
        similarity_inside=0.4, similarity_inside_se=0.1,
    )  # fmt: skip
    run = results.suite.results["analyze", "asl"]
    names = ("token_similarity", "similarity_inside", "ap_box", "miou")
    errors = [standard_error(PAPER.metrics[name], name, run) for name in names]
    assert errors == [0.0123, None, None, None]


def test_a_table_says_both_for_each_column(results: Any) -> None:
    results.edit("detect: {}", "detect: {mae: {dataset: icons}}")
    results.result("linprobe", "mae", lp_acc1=21.25, test_images=400)
    results.result("linprobe", "asl", lp_acc1=50.0, test_images=400)
    results.result("finetune", "mae", ft_acc1=90.0, test_images=50_000)
    results.result("detect", "mae", ap_box=12.0, ap_mask=10.0, test_images=1200)
    results.result("analyze", "asl", token_similarity=0.5)
    suite = results.suite
    assert said(suite, "Standard error") == [
        "Standard error over the choice of test images: LP 2.0 to 2.5 (400 images), "
        f"FT 0.13 (50,000 images). {CHANCE}"
    ]
    assert said(suite, "Test images") == [
        "Test images, without a standard error: AP box 1,200, AP mask 1,200."
    ]


def test_results_that_do_not_say_on_how_many_images_they_were_measured_have_no_note(
    results: Any,
) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25)
    assert said(results.suite, "Standard error") + said(results.suite, "Test images") == []


@pytest.mark.parametrize("form", ["text", "md", "latex", "html"])
def test_each_format_says_it(
    results: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25, test_images=400)
    results.lock()
    monkeypatch.chdir(results.folder)
    assert "LP 2.0 (400 images)" in " ".join(say("tables", "--format", form).split())


def test_a_cell_of_the_page_says_its_own(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25, test_images=400)
    assert 'title="400 test images, standard error 2.0">21.3' in page(results.suite, PAPER)


def test_a_comparison_says_that_of_the_difference(
    results: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.result("linprobe", "mae", lp_acc1=28.0, lp_loss=1.0, test_images=400)
    results.result("linprobe", "asl", lp_acc1=30.75, lp_loss=1.5, test_images=400)
    results.lock()
    monkeypatch.chdir(results.folder)
    lines = say("compare", "mae", "asl").splitlines()
    assert any(line.rstrip().endswith("+2.75 (standard error 3.2)") for line in lines)
    assert any(line.rstrip().endswith("+0.5") for line in lines)
    assert lines[-1].startswith("standard errors of differences are those of two sets")


def test_a_trace_says_on_how_many_images(
    results: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25, test_images=400)
    results.lock()
    monkeypatch.chdir(results.folder)
    assert "  tested   400 test images, standard error 2.0\n" in say("trace", "tiny", "mae", "LP")


def test_a_standard_error_has_a_digit_that_counts() -> None:
    assert [error_text(error, 1) for error in (2.25, 1.0, 0.22)] == ["2.3", "1.0", "0.22"]
    assert [error_text(error, 3) for error in (0.0123, 0.0031)] == ["0.012", "0.0031"]


def test_detection_counts_annotated_images_and_an_analysis_those_that_it_takes(
    tmp_path: Path,
) -> None:
    Manifest(
        name="x", source={}, licence="", classes=None, thing_classes=None, semantic_classes=None,
        mean=(0, 0, 0), std=(1, 1, 1), counts={"train": 8, "test": 60}, annotated={"test": 40},
        digests={}, rejected={},
    ).write(tmp_path)  # fmt: skip
    inputs = {"dataset": tmp_path}
    probe, analysis = LinearProbe(dataset="x"), TokenAnalysis(dataset="x", images=50)
    assert count_test_images(FINETUNE, probe, inputs) == 60
    assert (
        count_test_images(DETECT, probe, inputs) == count_test_images(SEGMENT, probe, inputs) == 40
    )
    assert count_test_images(ANALYZE, analysis, inputs) == 50
    assert count_test_images(PRETRAIN, probe, {"imported": tmp_path}) is None
    (tmp_path / "manifest.json").write_text("{}")
    assert count_test_images(FINETUNE, probe, inputs) is None
