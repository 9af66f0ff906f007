"""What is no better than a random encoder says so. `results` is a suite's folder, from conftest."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.params import load_params
from pipeline.tables.collect import collect
from pipeline.tables.floor import ALL_LEARNED, NOTE, exceeds_floor, is_marked
from pipeline.tables.formats import render_tables
from pipeline.tables.layout import lay_out, similarity_table
from pipeline.tables.notes import notes
from pipeline.tables.paper import load_paper
from pipeline.tables.replicates import find_replicates
from pipeline.tables.trace import trace_cell

ROOT = Path(__file__).parents[2]
SUITES = [ROOT, *sorted(path.parent for path in ROOT.glob("suites/*/params.yaml"))]
PAPER = load_paper()

PARAMS = """
suite: floor
title: Floor
scale: reduced
tables: []
datasets:
  icons: {source: icons, train: 8, test: 4}
  others: {source: icons, train: 8, test: 4}
experiments:
  mae: &mae
    {method: mae, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}
  mae-s1: {<<: *mae, seed: 1}
  aee: {<<: *mae, method: asl}
  aee-s1: {<<: *mae, method: asl, seed: 1}
  dle: {<<: *mae, method: asl, design: dle}
  none: &none {method: untrained, dataset: icons, model: vit-demo}
  none-s1: {<<: *none, seed: 1}
linprobe:
  mae: &linprobe {dataset: icons}
  mae-s1: *linprobe
  aee: *linprobe
  aee-s1: *linprobe
  dle: *linprobe
  none: *linprobe
  none-s1: *linprobe
finetune: {}
detect:
  mae: &detect {dataset: icons}
  aee: *detect
  dle: *detect
  none: *detect
segment: {}
analyze:
  mae: &analyze {dataset: icons}
  none: *analyze
"""


@pytest.fixture
def floor(results: Any) -> Any:
    """Probes of two seeds, but of DLE's one; floor 30 and 32; detectors of one seed; an analysis.

    Deviations over seeds: floor 1.4142, MAE 1.4142, AEE 0.7071; of DLE's 36 % of 400 images 2.4.
    """
    results.write(PARAMS)
    for key, accuracy in (
        ("none", 30.0), ("none-s1", 32.0), ("mae", 33.9), ("mae-s1", 35.9), ("aee", 33.7),
        ("aee-s1", 34.7), ("dle", 36.0),
    ):  # fmt: skip
        results.result("linprobe", key, lp_acc1=accuracy, test_images=400)
    for key, precision in (("none", 10.0), ("mae", 10.0), ("aee", 10.1), ("dle", 9.0)):
        results.result("detect", key, ap_box=precision, ap_mask=20.0 - precision, test_images=90)
    for key, similarity in (("none", 0.9), ("mae", 0.1)):
        results.result("analyze", key, token_similarity=similarity, test_images=4)
    results.lock()
    return results


def marked(suite: Any) -> set[tuple[str, str]]:
    """Return (row, column) of each marked cell."""
    return {
        (line.label, heading.header)
        for table in lay_out(suite, PAPER)
        for line, heading, cell in table.cells()
        if is_marked(cell)
    }


def said(suite: Any) -> list[str]:
    (table,) = lay_out(suite, PAPER)
    return [*table.warnings, *notes(table)]


def test_exactly_the_cells_within_two_deviations_of_the_floor_are_marked(floor: Any) -> None:
    # MAE: 34.9 - 31 < 2 sqrt(2 + 2) = 4; AEE: 34.2 - 31 > 2 sqrt(0.5 + 2) = 3.16;
    # DLE: 36 - 31 < 2 sqrt(2.4^2 + 2) = 5.57. AP has no deviation: at or below the floor.
    assert marked(floor.suite) == {
        ("MAE", "LP"), ("ASL (DLE)", "LP"), ("MAE", "AP box"), ("ASL (DLE)", "AP box"),
        ("MAE", "AP mask"), ("ASL (AEE)", "AP mask"),
    }  # fmt: skip


@pytest.mark.parametrize(("seeds", "judged"), [((33.9, 35.99), False), ((34.1, 36.1), True)])
def test_two_deviations_over_seeds_are_the_limit(
    floor: Any, seeds: tuple[float, float], judged: bool
) -> None:
    for key, accuracy in zip(("mae", "mae-s1"), seeds, strict=True):
        floor.result("linprobe", key, lp_acc1=accuracy, test_images=400)
    assert (("MAE", "LP") not in marked(floor.suite)) is judged


@pytest.mark.parametrize(
    ("accuracy", "images", "judged"),
    # of 400 images 2 sqrt(2.41^2 + 2.29^2) = 6.66 points are needed, of 40,000 a tenth of that
    [(36.6, 400, False), (36.7, 400, True), (30.6, 40_000, False), (30.7, 40_000, True)],
)
def test_of_single_runs_it_is_the_standard_error_over_the_test_images(
    floor: Any, accuracy: float, images: int, judged: bool
) -> None:
    for line in ("none-s1: {<<: *none, seed: 1}", "none-s1: *linprobe"):
        floor.edit(f"  {line}\n", "")
    floor.result("linprobe", "none", lp_acc1=30.0, test_images=images)
    floor.result("linprobe", "dle", lp_acc1=accuracy, test_images=images)
    assert (("ASL (DLE)", "LP") not in marked(floor.suite)) is judged


def test_the_untrained_row_comes_first_and_is_held_against_nothing(floor: Any) -> None:
    (table,) = lay_out(floor.suite, PAPER)
    assert [line.label for line in table.lines] == (
        ["Random initialisation", "MAE", "ASL (AEE)", "ASL (DLE)"]
    )
    assert table.lines[0].keys == ("none", "none-s1")
    assert {exceeds_floor(cell) for cell in table.lines[0].cells} == {None}


def test_what_says_nothing_of_quality_is_never_marked(floor: Any) -> None:
    (table,) = lay_out(floor.suite, PAPER)
    judged = {h.header for _, h, cell in table.cells() if exceeds_floor(cell) is not None}
    assert judged == {"LP", "AP box", "AP mask"}
    assert PAPER.metrics["token_similarity"].more_is_better is False
    assert PAPER.metrics["flops_train_g"].more_is_better is False
    assert PAPER.metrics["supervised_acc1"].more_is_better is False  # of no encoder's evaluation


def test_the_table_says_which_rows_learned_nothing_and_what_the_mark_means(floor: Any) -> None:
    assert said(floor.suite)[0] == (
        "Learned nothing: MAE. In none of LP, AP box, AP mask above untrained."
    )
    assert NOTE in said(floor.suite)
    assert (
        "No deviation is known of AP box, AP mask: marked is what is not above untrained."
        in said(floor.suite)
    )
    assert ALL_LEARNED not in said(floor.suite)


def test_where_every_row_learned_something_it_says_that(floor: Any) -> None:
    floor.result("detect", "mae", ap_box=11.0, ap_mask=9.0)
    assert ALL_LEARNED in said(floor.suite)
    assert not [line for line in said(floor.suite) if line.startswith("Learned nothing")]


def test_another_evaluation_or_another_size_is_no_floor(floor: Any) -> None:
    floor.edit("  dle: *linprobe", "  dle: {dataset: icons, epochs: 70}")
    assert ("ASL (DLE)", "LP") not in marked(floor.suite)
    assert "No untrained row: nothing says what a random encoder has in LP (ASL (DLE))." in said(
        floor.suite
    )
    floor.edit("  dle: {dataset: icons, epochs: 70}", "  dle: {dataset: others}")
    assert ("ASL (DLE)", "LP") not in marked(floor.suite)
    floor.edit("  dle: {dataset: others}", "  dle: {dataset: icons, seed: 3}")
    assert ("ASL (DLE)", "LP") in marked(floor.suite)
    floor.edit("design: dle}", "design: dle, model: {size: vit-demo, patch_size: 8}}")
    assert ("ASL (DLE)", "LP") not in marked(floor.suite)
    floor.edit(
        "model: {size: vit-demo, patch_size: 8}", "model: {size: vit-demo, decoder_depth: 1}"
    )
    assert ("ASL (DLE)", "LP") in marked(floor.suite)


def test_of_two_random_encoders_the_better_one_is_the_floor(floor: Any) -> None:
    floor.edit("  none-s1: {<<", "  gauss: {<<: *none, initialisation: dino}\n  none-s1: {<<")
    floor.edit("  none-s1: *linprobe", "  gauss: *linprobe\n  none-s1: *linprobe")
    floor.result("linprobe", "gauss", lp_acc1=25.0, test_images=400)
    assert ("ASL (AEE)", "LP") not in marked(floor.suite)
    floor.result("linprobe", "gauss", lp_acc1=34.0, test_images=400)
    assert ("ASL (AEE)", "LP") in marked(floor.suite)
    labels = [group.label for group in find_replicates(floor.suite, PAPER)]
    assert labels[:2] == ["Random initialisation", "Random initialisation, as DINO's"]


def test_two_experiments_of_one_random_encoder_are_not_two_seeds(floor: Any) -> None:
    floor.edit("  none-s1: {<<: *none, seed: 1}", "  none-s1: {<<: *none, row: Again}")
    (table,) = lay_out(floor.suite, PAPER)
    cell = next(c for line, h, c in table.cells() if (line.label, h.header) == ("MAE", "LP"))
    assert cell.floor is not None
    assert cell.floor.measured == (30.0,)


def test_without_an_untrained_row_one_line_says_so(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0)
    assert "No untrained row: nothing says what a random encoder has in LP, FT." in (
        said(results.suite)
    )
    assert marked(results.suite) == set()


def test_as_long_as_the_floor_has_no_result_one_line_says_so(floor: Any) -> None:
    for key in ("none", "none-s1"):
        (floor.folder / f"runs/linprobe/{key}.json").unlink()
    assert "The untrained row has no result yet in LP." in said(floor.suite)
    assert ("MAE", "LP") not in marked(floor.suite)


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        ("text", "34.90 \N{PLUS-MINUS SIGN} 1.41 (n = 2) ru"),
        ("md", "34.90 \N{PLUS-MINUS SIGN} 1.41 (n = 2) ru |"),
        ("latex", r"34.90 $\pm$ 1.41 (n = 2)\textsuperscript{ru}"),
        ("html", '<span class="tag">reduced</span><span class="state">not above untrained</span>'),
    ],
)
def test_each_format_marks_and_explains(floor: Any, form: str, cell: str) -> None:
    printed = " ".join(render_tables(floor.suite, form, 400).split())
    assert cell in printed
    assert "Learned nothing: MAE." in printed
    assert "does not exceed a random encoder under the same evaluation" in printed
    assert "34.20 \N{PLUS-MINUS SIGN} 0.71 (n = 2) ru" not in printed


def test_the_companions_of_token_similarity_have_the_marks_too(floor: Any) -> None:
    table = similarity_table(floor.suite, PAPER)
    assert table is not None
    assert table.lines[0].untrained
    assert [is_marked(line.cells[-1]) for line in table.lines] == [False, True]
    assert not table.warnings


def test_the_floor_can_be_traced(floor: Any) -> None:
    suite = floor.suite
    traced = trace_cell(suite, PAPER, lay_out(suite, PAPER), "random init", "LP")
    assert [link.name for link in traced.links] == [
        "linprobe@none", "pretrain@none", "linprobe@none-s1", "pretrain@none-s1",
    ]  # fmt: skip


@pytest.mark.parametrize("folder", SUITES, ids=lambda path: path.name)
def test_every_suite_has_a_floor_for_every_evaluation(folder: Path) -> None:
    suite = collect(folder, load_params(folder / "params.yaml"))
    for table in lay_out(suite, PAPER):
        without = [note for note in notes(table) if note.startswith("No untrained row")]
        # a random encoder is not worth a detector for each of three schedules
        assert len(without) == (1 if folder.name == "calibration" else 0), without
        assert table.lines[0].label == "Random initialisation"
        seeds = {len(line.keys) for line in table.lines if line.keys}
        assert len(seeds) == 1, "the floor has the seeds that the others have"


def test_at_the_papers_scale_the_floor_stands_first_and_shares_a_row_over_datasets() -> None:
    folder = ROOT / "suites/table6"
    suite = collect(folder, load_params(folder / "params.yaml"))
    (table,) = lay_out(suite, PAPER)
    first, second = table.lines[:2]
    assert (first.label, second.label) == ("Random initialisation", "Supervised [26]")
    assert set(first.keys) == {
        f"untrained{data}{seed}" for data in (10, 100) for seed in ("", "-seed1", "-seed2")
    }
    assert [len(cell.runs) for cell in first.cells] == [3, 3, 3, 3]
