"""Tables for programs and for papers: JSON, CSV, LaTeX. `results` is the folder of a suite."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from debian import install

from asl_core.engine.journal import Journal
from pipeline.tables.cells import Heading, Line, ResultTable
from pipeline.tables.chance import chance_level
from pipeline.tables.formats import render_tables
from pipeline.tables.latex import latex
from pipeline.tables.paper import load_paper
from pipeline.tables.parts import COMPANIONS, COSTS, RESULTS, divide
from pipeline.tables.records import CSV_FIELDS

PAPER = load_paper()
LATEX = "texlive-latex-recommended"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def measured(results: Any) -> Any:
    """A suite with a probe of both experiments and of a random encoder, and an analysis."""
    untrained = "  u: {method: untrained, dataset: icons, model: vit-demo}\n"
    results.edit("experiments:\n", f"experiments:\n{untrained}")
    results.edit("linprobe:\n", "linprobe:\n  u: {dataset: icons}\n")
    results.prepared("icons", classes=8)
    for key, accuracy in (("u", 20.0), ("mae", 51.04), ("asl", 22.0)):
        results.result("linprobe", key, lp_acc1=accuracy, lp_acc1_cls=accuracy, test_images=400)
        with Journal.open(results.folder / "runs/linprobe" / key / "journal") as journal:
            journal.tags({"git.commit": COMMIT, "git.dirty": str(key == "asl").lower()})
    results.result("analyze", "asl", token_similarity=0.25, token_similarity_se=0.01)
    results.lock()
    return results


def cells_of(content: str, row: str) -> dict[str, Any]:
    table = json.loads(content)["tables"][0]
    (found,) = (each for each in table["rows"] if each["row"] == row)
    columns = [column["metric"] for column in table["columns"]]
    return dict(zip(columns, found["cells"], strict=True))


def test_json_has_of_each_cell_what_its_number_is_worth(measured: Any) -> None:
    content = render_tables(measured.suite, "json")
    assert (json.loads(content)["format"], json.loads(content)["version"]) == (
        ("asl-pipe tables", 1)
    )
    cell = cells_of(content, "MAE")["lp_acc1"]
    (run,) = cell.pop("runs")
    error = 100 * (0.5104 * 0.4896 / 400) ** 0.5
    assert cell.pop("standard_error") == run.pop("standard_error") == pytest.approx(error)
    assert cell == {
        "metric": "lp_acc1", "status": "result", "value": 51.04, "n": 1, "deviation": None,
        "test_images": 400, "dataset": "icons", "chance": 12.5, "floor": 20.0, "above_floor": True,
        "paper": 46.8, "delta": None, "other_data": "icons; the paper: ImageNet-1K val",
        "marks": "r",
    }  # fmt: skip
    assert run == {
        "stage": "linprobe", "experiment": "mae", "seed": 0, "value": 51.04, "test_images": 400,
        "state": "current", "vouched": False, "fingerprint": "linprobe-mae".ljust(64, "0"),
        "commit": COMMIT, "file": "runs/linprobe/mae.json", "command": "dvc repro linprobe@mae",
    }  # fmt: skip
    asl = cells_of(content, "ASL (AEE)")["lp_acc1"]
    assert (asl["above_floor"], asl["marks"]) == (False, "ru")
    assert asl["runs"][0]["commit"] == f"{COMMIT}+"  # its files differed from the commit
    assert json.loads(content)["settings"]["pretrain"]["asl"]["mask_ratio"] == 0.75


def test_a_missing_cell_is_null_and_says_what_makes_it(measured: Any) -> None:
    cell = cells_of(render_tables(measured.suite, "json"), "MAE")["ft_acc1"]
    assert (cell["status"], cell["value"], cell["n"]) == ("missing", None, 0)
    assert cell["runs"][0]["command"] == "dvc repro finetune@mae"
    assert cell["runs"][0]["state"] == "missing"


def test_csv_is_a_line_for_each_cell_with_the_numbers_of_json(measured: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(render_tables(measured.suite, "csv"))))
    assert tuple(lines[0]) == CSV_FIELDS
    tables = json.loads(render_tables(measured.suite, "json"))["tables"]
    assert len(lines) == sum(len(t["rows"]) * len(t["columns"]) for t in tables)
    (mae,) = (x for x in lines if (x["row"], x["metric"], x["table"]) == (
        "MAE", "lp_acc1", "Tiny & small"))  # fmt: skip
    assert (float(mae["value"]), mae["n"], mae["chance"], mae["floor"], mae["above_floor"]) == (
        (51.04, "1", "12.5", "20.0", "true")
    )
    assert (mae["commits"], mae["deviation"], mae["test_images"]) == (COMMIT, "", "400")


def test_csv_keeps_commas_quotes_and_line_ends_of_names(measured: Any) -> None:
    measured.edit("asl: {method: asl,", """asl: {row: 'a, "b"', method: asl,""")
    lines = list(csv.DictReader(io.StringIO(render_tables(measured.suite, "csv"))))
    assert {line["row"] for line in lines} >= {'a, "b"', "MAE"}


def test_seeds_have_n_and_deviation_and_no_error_of_one(seeds: Any) -> None:
    for key, accuracy in (("mae", 50.0), ("mae-s1", 52.0)):
        seeds.result("linprobe", key, lp_acc1=accuracy, test_images=400)
    cell = cells_of(render_tables(seeds.suite, "json"), "MAE")["lp_acc1"]
    assert (cell["value"], cell["n"], cell["standard_error"]) == (51.0, 2, None)
    assert cell["deviation"] == pytest.approx(2**0.5)
    assert [run["seed"] for run in cell["runs"]] == [0, 1]


@pytest.mark.parametrize(
    ("metric", "classes", "level"),
    [
        ("lp_acc1", 1000, 0.1), ("knn_acc5", 10, 50.0), ("knn_acc5", 3, 100.0),
        ("fewshot_acc1_1pct", 10, 10.0), ("supervised_acc1", 4, 25.0), ("lp_acc1", None, None),
        ("ap_box", 10, None), ("miou", 10, None), ("token_similarity", 10, None),
        ("lp_train_acc1", 10, None),
    ],
)  # fmt: skip
def test_guessing_k_of_the_classes_is_the_chance_level(
    metric: str, classes: int | None, level: float | None
) -> None:
    assert chance_level(PAPER.metrics[metric], classes) == level


def test_the_chance_level_is_that_of_the_data_of_each_run(measured: Any) -> None:
    measured.edit("experiments:\n", "  other: {source: icons, train: 8, test: 4}\nexperiments:\n")
    measured.edit("  asl: {dataset: icons}\nfinetune", "  asl: {dataset: other}\nfinetune")
    measured.prepared("other", classes=4)
    content = render_tables(measured.suite, "json")
    assert cells_of(content, "MAE")["lp_acc1"]["chance"] == 12.5
    assert cells_of(content, "ASL (AEE)")["lp_acc1"]["chance"] == 25.0
    assert "Guessing classes gives 12.5 or 25.0 in LP" in render_tables(measured.suite, "md")


def wide_table(columns: int) -> ResultTable:
    """Return a table of results, companions and costs, without a number."""
    names = ["flops_train_g", "lp_acc1_cls", "lp_acc1", "ft_acc1", "miou", "ap_box"]
    metrics = [PAPER.metrics[names[place % len(names)]] for place in range(columns)]
    headings = tuple(Heading(metric, metric.header) for metric in metrics)
    return ResultTable("T", "c.", False, (), headings, (Line("row", (), (), "own", ()),))


def test_a_wide_table_is_divided_results_first_and_nothing_is_lost() -> None:
    table = wide_table(12)
    parts = divide(table, [10] * 12, 30)
    assert [part.title.split(",")[0] for part in parts] == [RESULTS] * 3 + [COMPANIONS, COSTS]
    assert sorted(column for part in parts for column in part.columns) == list(range(12))
    assert all(10 * len(part.columns) <= 30 for part in parts)
    assert [part.columns for part in divide(table, [10] * 12, 120)] == [tuple(range(12))]


def test_a_column_wider_than_the_page_stands_alone() -> None:
    parts = divide(wide_table(3), [50, 5, 5], 10)
    assert (0,) in [part.columns for part in parts]


def test_latex_parses_as_floats_with_tabulars_of_equal_rows(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tables.latex.TWO_COLUMNS", 50)
    content = render_tables(measured.suite, "latex")
    environments = re.findall(r"\\(begin|end)\{([^}]*)\}", content)
    stack: list[str] = []
    for what, name in environments:
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert {"table*"} <= {name for _, name in environments}
    bodies = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", content, re.DOTALL)
    assert len(bodies) > 1
    for columns, body in bodies:
        assert len(columns) < 12
        rows = [line for line in body.splitlines() if r" \\" in line and "multicolumn" not in line]
        assert {len(row.replace(r"\&", "").split("&")) for row in rows} == {len(columns)}
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", body)]
        assert sum(spans) + 1 == len(columns)
    assert content.count(r"\toprule") == content.count(r"\bottomrule") == len(bodies)


@pytest.mark.parametrize("letters", [50, 500])
def test_latex_compiles_in_two_columns_without_an_overfull_line(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: int
) -> None:
    if shutil.which("pdflatex") is None:
        if os.environ.get("CI") != "true":
            pytest.skip(f"no pdflatex; apt-get install --no-install-recommends {LATEX}")
        install(LATEX)
    monkeypatch.setattr("pipeline.tables.latex.TWO_COLUMNS", letters)
    document = tmp_path / "document.tex"
    document.write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}\n"
        "\\begin{document}\nText.\n" + render_tables(measured.suite, "latex") + "\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout


def test_a_table_without_rows_is_latex_too() -> None:
    table = wide_table(1)
    empty = ResultTable(table.title, table.caption, False, (), table.headings, ())
    assert r"\begin{table}" in latex([empty])
