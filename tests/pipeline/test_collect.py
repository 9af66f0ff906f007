"""What counts as a suite's result: params.yaml says what belongs to it, dvc.lock what is current.

`results` is the folder of a suite, from conftest.
"""

from pathlib import Path
from typing import Any

import pytest

from asl_core.data.manifest import Manifest
from pipeline.errors import UserError
from pipeline.tables.cells import Cell
from pipeline.tables.layout import lay_out
from pipeline.tables.notes import UNDEFINED_NOTE, notes
from pipeline.tables.paper import load_paper

PAPER = load_paper()


def cells(results: Any) -> dict[tuple[str, str], Cell]:
    """Return (row, metric's header) -> cell of the suite's only table."""
    (table,) = lay_out(results.suite, PAPER)
    return {(line.label, heading.header): cell for line, heading, cell in table.cells()}


def test_a_result_that_params_yaml_does_not_ask_for_is_not_collected(results: Any) -> None:
    results.result("linprobe", "gone", lp_acc1=99.0)
    results.result("detect", "mae", ap_box=99.0)
    assert set(results.suite.results) == {
        ("pretrain", "asl"), ("pretrain", "mae"), ("linprobe", "mae"), ("linprobe", "asl"),
        ("finetune", "mae"), ("analyze", "asl"),
    }  # fmt: skip


def test_rows_stand_in_the_papers_order_and_not_in_that_of_params_yaml(results: Any) -> None:
    (table,) = lay_out(results.suite, PAPER)
    assert [line.label for line in table.lines] == ["MAE", "ASL (AEE)"]


def test_columns_are_the_metrics_that_the_suite_measures(results: Any) -> None:
    (table,) = lay_out(results.suite, PAPER)
    assert [heading.header for heading in table.headings] == ["LP", "FT", "token similarity"]


def test_a_column_takes_the_papers_numbers_from_the_first_table_that_has_them(
    results: Any,
) -> None:
    (table,) = lay_out(results.suite, PAPER)
    assert [heading.paper_table for heading in table.headings] == ["Table 1", "Table 5", ""]
    assert [cell.paper for cell in table.lines[0].cells] == [46.8, 83.6, None]


def test_a_missing_cell_differs_from_one_that_the_suite_does_not_ask_for(results: Any) -> None:
    found = cells(results)
    assert found["MAE", "LP"].status == "missing"
    assert found["ASL (AEE)", "FT"].status == "absent"
    results.result("linprobe", "mae", lp_acc1=51.04)
    assert cells(results)["MAE", "LP"].status == "result"


def test_the_difference_is_between_the_numbers_as_printed(results: Any) -> None:
    results.on_the_papers_data()
    results.result("linprobe", "mae", lp_acc1=51.04)
    results.result("linprobe", "asl", lp_acc1=48.5999)
    found = cells(results)
    assert found["MAE", "LP"].delta == 4.2  # 51.0 - 46.8
    assert found["ASL (AEE)", "LP"].delta == 0.0  # 48.6 - 48.6


def test_a_number_that_is_not_finite_is_missing(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=float("nan"))
    assert cells(results)["MAE", "LP"].status == "missing"


def test_a_number_that_the_data_do_not_give_is_a_dash_with_a_reason_and_not_missing(
    results: Any,
) -> None:
    results.result("linprobe", "mae", lp_acc1=None)
    cell = cells(results)["MAE", "LP"]
    assert (cell.status, cell.missing, cell.ours) == ("absent", (), None)
    (table,) = lay_out(results.suite, PAPER)
    assert UNDEFINED_NOTE in notes(table)
    results.result("linprobe", "mae", lp_acc1=51.0)
    (table,) = lay_out(results.suite, PAPER)
    assert UNDEFINED_NOTE not in notes(table)


def test_a_result_is_current_when_dvc_lock_has_the_present_params(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0)
    assert cells(results)["MAE", "LP"].states == {"unrecorded"}
    results.lock()
    assert cells(results)["MAE", "LP"].states == {"current"}
    results.edit("mae: {dataset: icons}", "mae: {dataset: icons, epochs: 70}")
    assert cells(results)["MAE", "LP"].states == {"outdated"}


def test_a_probe_is_outdated_when_its_pretraining_is(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0)
    results.result("linprobe", "asl", lp_acc1=51.0)
    results.lock()
    results.edit("mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2",
                 "mae: {method: mae, dataset: icons, model: vit-demo, epochs: 3")  # fmt: skip
    found = cells(results)
    assert found["MAE", "LP"].states == {"outdated"}
    assert found["ASL (AEE)", "LP"].states == {"current"}


def test_a_probe_is_outdated_when_the_weights_were_made_anew(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0)
    results.write_lock(
        {
            "pretrain@mae": {"outs": [{"path": "runs/encoder/mae", "md5": "new"}]},
            "linprobe@mae": {
                "deps": [{"path": "runs/encoder/mae", "md5": "old"}],
                "outs": results.recorded("linprobe", "mae"),
            },
        }
    )
    assert cells(results)["MAE", "LP"].states == {"outdated"}


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (".", "dvc repro linprobe@mae"),
        ("suites/tiny", "dvc --cd suites/tiny repro linprobe@mae"),
    ],
)
def test_the_command_of_a_missing_cell_runs_from_the_root(
    results: Any, folder: str, command: str
) -> None:
    suite = type(results)(results.folder / folder)
    assert suite.suite.results["linprobe", "mae"].command == command


def test_each_result_keeps_its_own_scale(results: Any) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0, scale="paper")
    results.result("linprobe", "asl", lp_acc1=51.0)
    found = cells(results)
    assert not found["MAE", "LP"].reduced
    assert found["ASL (AEE)", "LP"].reduced


def test_a_damaged_metrics_file_is_named_in_one_line(results: Any) -> None:
    path: Path = results.folder / "runs" / "linprobe" / "mae.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"lp_acc1": ')
    with pytest.raises(
        UserError, match=r"mae\.json is not JSON .*; `dvc repro linprobe@mae` restores it"
    ):
        _ = results.suite


def test_what_the_data_say_about_themselves_stands_under_the_table(results: Any) -> None:
    folder: Path = results.folder / "data" / "icons"
    folder.mkdir(parents=True)
    Manifest(
        name="icons", source={}, licence="", classes=None, thing_classes=None,
        semantic_classes=None, mean=(0, 0, 0), std=(1, 1, 1), counts={"train": 8}, annotated={},
        digests={}, rejected={"train": [("a.jpg", "the file is empty")]}, notes=("JPEG is lossy",),
    ).write(folder)  # fmt: skip
    (table,) = lay_out(results.suite, PAPER)
    assert "Data icons: JPEG is lossy" in notes(table)
    assert (
        "Data icons: 1 of 9 images could not be used, the first a.jpg: the file is empty; all are "
        "in data/icons/manifest.json."
    ) in notes(table)


def at_paper_scale(results: Any, tables: str) -> None:
    results.edit("scale: reduced", "scale: paper")
    results.edit("tables: [table1, table5]", f"tables: [{tables}]")
    results.edit("epochs: 2", "epochs: 800")


def test_at_the_papers_scale_a_table_is_whole(results: Any) -> None:
    results.on_the_papers_data()
    at_paper_scale(results, "table1, table5")
    results.result("linprobe", "asl", lp_acc1=49.0, scale="paper")
    table1, table5 = lay_out(results.suite, PAPER)
    names = ["MAE [22]", "CMAE [27]", "ccMIM [67]", "SIM [54]", "iBOT [69]", "ASL"]
    assert [line.label for line in table1.lines] == names
    assert [line.keys for line in table1.lines] == [("mae",), (), (), (), (), ("asl",)]
    assert table1.lines[5].cells[0].delta == 0.4
    assert table1.lines[1].cells[0].paper == 46.6
    assert [line.source for line in table5.lines] == ["quoted", "run"]


def test_experiments_on_two_datasets_share_a_row_whose_columns_are_split(results: Any) -> None:
    at_paper_scale(results, "table6")
    recipe = "model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}"
    for key, dataset in (("small", "cifar10"), ("large", "cifar100")):
        results.edit("datasets:\n", f"datasets:\n  {dataset}: {{source: icons}}\n")
        entry = f"  {key}: {{method: mae, dataset: {dataset}, {recipe}\n"
        results.edit("experiments:\n", f"experiments:\n{entry}")
        results.edit("linprobe:\n", f"linprobe:\n  {key}: {{dataset: {dataset}}}\n")
    results.result("linprobe", "small", lp_acc1=80.0)
    results.result("linprobe", "large", lp_acc1=50.0)
    (table,) = lay_out(results.suite, PAPER)
    line = next(line for line in table.lines if line.label == "MAE [22]")
    assert set(line.keys) == {"small", "large"}
    assert [cell.ours for cell in line.cells] == [80.0, None, 50.0, None]
