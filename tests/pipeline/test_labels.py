"""What tables print is what `tables` and `trace` take: names, labels, headers and titles."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.execution.trace import trace
from pipeline.project import find_project


@pytest.fixture
def shown(results: Any) -> Any:
    results.result("linprobe", "asl", lp_acc1=61.5)
    results.result("analyze", "asl", token_similarity=0.5)
    results.lock()
    return results


@pytest.mark.parametrize("table", ["demo", "DEMO", "tiny", "Tiny  & Small", "table5", "Table 5"])
@pytest.mark.parametrize("row", ["asl", "ASL", "ASL (AEE)", "asl (aee)"])
@pytest.mark.parametrize("metric", ["lp_acc1", "LP", "lp", "LP [%]"])
def test_a_cell_is_found_by_any_of_its_labels(
    shown: Any, table: str, row: str, metric: str
) -> None:
    _, traced = trace(find_project(shown.folder), table, row, metric)
    assert traced.cell.ours == 61.5


def test_the_title_of_a_companion_table_finds_its_cells(shown: Any) -> None:
    title = "token similarity and its companions - reduced scale"
    _, traced = trace(find_project(shown.folder), title, "ASL (AEE)", "token_similarity")
    assert traced.cell.ours == 0.5


@pytest.mark.parametrize(
    "name", [None, "demo", "Demo", "tiny", "Tiny & small - REDUCED SCALE", "table5", "TABLE 1"]
)
def test_a_suite_is_found_by_its_name_its_title_and_its_tables(
    shown: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.chdir(shown.folder)
    said = say("tables", *([] if name is None else [name]))
    assert said.startswith("Tiny & small - REDUCED SCALE\n")
    assert "61.5" in said


def test_of_a_suite_at_the_papers_scale_one_table_is_printed(
    shown: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown.edit("scale: reduced", "scale: paper")
    monkeypatch.chdir(shown.folder)
    every = [
        line for line in say("tables").splitlines() if line.startswith("Table ") and ": " in line
    ]
    assert len(every) == 2
    for title in every:
        said = say("tables", title)
        assert [line for line in said.splitlines() if line in every] == [title]
    said = say("tables", "table8", code=2)
    assert "unknown suite or table 'table8'; did you mean 'table" in said
