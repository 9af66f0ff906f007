"""Metrics files that are not the ones dvc.lock records. `results` is a suite's folder."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.yaml_files import read_yaml
from pipeline.results.vouchings import Vouching, add_vouching
from pipeline.stages.report import write_report
from pipeline.tables.collect import doubts
from pipeline.tables.figures.similarity import find_points
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import ours, text
from pipeline.tables.replicates import find_replicates

PAPER = load_paper()
FILE = "runs/linprobe/mae.json"
DIFFERS = f"{FILE} differs from dvc.lock: "
RESTORES = "`dvc repro linprobe@mae` restores the recorded one"

Say = Callable[..., str]
Edit = Callable[[str], str | bytes]


@pytest.fixture
def recorded(results: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A suite with two probes and an analysis, all of them recorded."""
    results.result("linprobe", "mae", lp_acc1=21.25)
    results.result("linprobe", "asl", lp_acc1=30.75)
    results.result("analyze", "asl", token_similarity=0.25, token_similarity_layer_0=0.5)
    results.lock()
    monkeypatch.chdir(results.folder)
    return results


def edit(recorded: Any, change: Edit) -> None:
    path: Path = recorded.folder / FILE
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())


def by_hand(content: str) -> str:
    assert "21.25" in content
    return content.replace("21.25", "51.25")


def test_what_dvc_lock_records_is_printed_without_a_mark(recorded: Any, say: Say) -> None:
    said = say("tables", "--format", "md")
    assert "| MAE | 46.8 | 21.3 r |" in said
    assert "dvc.lock" not in said
    assert doubts(recorded.suite.results.values()) == []


@pytest.mark.parametrize(
    ("form", "cell"),
    [
        ("text", "51.3 r?"),
        ("md", "| MAE | 46.8 | 51.3 r? |"),
        ("latex", r"51.3\textsuperscript{r?}"),
        ("html", "differs from dvc.lock</span></td>"),
    ],
)
def test_a_number_edited_by_hand_is_marked_in_each_format_and_its_file_named(
    recorded: Any, say: Say, form: str, cell: str
) -> None:
    edit(recorded, by_hand)
    said = say("tables", "--format", form, code=1)
    assert cell in said
    table, _, last = said.strip().rpartition("\n")
    assert last.startswith(f"asl-pipe: {DIFFERS}")
    assert RESTORES in last
    assert DIFFERS in " ".join(table.replace("`", "").split())
    assert "30.8 r?" not in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace("21.25", "2125e-2"), "it was edited"),
        (lambda text: text + " ", "it was edited"),
        (lambda text: text.replace("linprobe-mae", "linprobe-asl"), "it was edited"),
        (lambda text: text.replace("reduced", "paper"), "it was edited"),
        (lambda text: text.replace("21.25", '"51.25"'), "it was edited"),
        (lambda text: text.replace("21.25", "9" * 400), "it was edited"),
        (lambda text: text.replace("21.25", "1e300"), "it was edited"),
        (lambda text: text.replace('"scale"', '"lp_acc1": 51.25, "scale"'), "it was edited"),
        (lambda _: '{"lp_acc1": 51.25, "fingerprint": 7, "scale": [], "code": {}}', "it was"),
        (lambda text: json.dumps(json.loads(text), indent=1).replace("\n", "\r\n"), "it was"),
    ],
)  # fmt: skip
def test_any_other_byte_counts_whatever_the_number_is(
    recorded: Any, say: Say, change: Edit, why: str
) -> None:
    edit(recorded, change)
    assert f"asl-pipe: {DIFFERS}{why}" in say("tables", code=1)


def test_line_ends_are_named_as_the_cause(recorded: Any, say: Say) -> None:
    path: Path = recorded.folder / FILE
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    recorded.lock()
    edit(recorded, lambda text: text.replace("\n", "\r\n"))
    assert f"{DIFFERS}in its line ends, as git's core.autocrlf" in say("tables", code=1)


def test_a_link_to_another_runs_file_is_an_edit(recorded: Any, say: Say) -> None:
    path: Path = recorded.folder / FILE
    path.unlink()
    path.symlink_to("asl.json")
    assert "30.8 r?" in say("tables", code=1)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
def test_a_file_that_is_gone_is_missing(
    recorded: Any, say: Say, change: Callable[[Path], object]
) -> None:
    change(recorded.folder / FILE)
    said = say("tables")
    assert "missing linprobe@mae: dvc repro linprobe@mae" in said
    assert "?" not in said


@pytest.mark.parametrize(
    "content",
    [b"", b'{"lp_acc1": 21', b"[21.25]", b"\xff\xfe\xfa", b"[" * 100_000, b"<<<<<<< HEAD"],
)
def test_what_no_stage_writes_is_named_with_what_restores_it(
    recorded: Any, say: Say, content: bytes
) -> None:
    (recorded.folder / FILE).write_bytes(content)
    said = say("tables", code=2)
    assert len(said.splitlines()) == 1
    assert FILE in said
    assert "`dvc repro linprobe@mae` restores it" in said


def test_a_number_that_dvc_lock_does_not_have_is_marked_too(recorded: Any, say: Say) -> None:
    recorded.write_lock({})
    said = say("tables", "--format", "md", code=1)
    assert "| 21.3 r! |" in said
    assert "asl-pipe: not in dvc.lock: runs/linprobe/mae.json, runs/linprobe/asl.json" in said


@pytest.mark.parametrize(
    "lock",
    ["", "stages: [1]", "stages: {a: 3}", "stages: {a: {outs: 5}}", "stages: {a: {outs: [x]}}",
     "stages: {a: {params: {params.yaml: 3}}}", "stages:\n<<<<<<< HEAD\n  a: {}\n=======\n"],
)  # fmt: skip
def test_a_damaged_dvc_lock_is_one_line(recorded: Any, say: Say, lock: str) -> None:
    (recorded.folder / "dvc.lock").write_text(lock)
    said = say("tables", code=2)
    assert len(said.splitlines()) == 1
    assert "dvc.lock" in said


def test_other_code_than_dvc_lock_has_needs_a_vouching(recorded: Any, say: Say) -> None:
    recorded.result("linprobe", "mae", lp_acc1=21.25, code="old", fingerprint="made")
    stages = read_yaml(recorded.folder / "dvc.lock")["stages"]
    stages["linprobe@mae"]["deps"].append({"path": "code/linprobe.txt", "md5": "new"})
    recorded.write_lock(stages)
    said = say("tables", code=1)
    assert "21.3 r?" in said
    assert f"{DIFFERS}it was made with other code than dvc.lock says" in said
    assert "`dvc repro -f -s linprobe@mae` makes it with the present code" in said
    vouching = Vouching(
        made_under="made", filed_under="filed", who="", when="", steps=0, evaluated=(), device="",
        old_code="old", new_code="new", changed=(),
    )  # fmt: skip
    other = recorded.folder / "suites/other"
    (other / FILE).parent.mkdir(parents=True)
    shutil.copy(recorded.folder / "params.yaml", other)
    add_vouching(other / FILE, vouching)  # the suites share the run
    assert "21.3 rv" in say("tables")


def test_two_experiments_are_compared_with_the_edit_marked(recorded: Any, say: Say) -> None:
    assert "+9.5" in say("compare", "mae", "asl")
    edit(recorded, by_hand)
    said = say("compare", "mae", "asl", code=1)
    row = next(line for line in said.splitlines() if "lp_acc1" in line)
    assert row.split() == ["linprobe", "lp_acc1", "51.25", "?", "30.75", "-20.5"]
    assert "linprobe: mae is in doubt, asl is current" in said
    assert f"asl-pipe: {DIFFERS}" in said


def test_a_trace_says_it_of_the_run_and_of_the_number(recorded: Any, say: Say) -> None:
    assert "LP: 21.3 % (paper: 46.8; reduced scale)" in say("trace", "tiny", "mae", "LP")
    edit(recorded, by_hand)
    said = say("trace", "tiny", "mae", "LP", code=1)
    assert "51.3 % (paper: 46.8; reduced scale; dvc.lock does not stand behind it)" in said
    assert f"  DIFFERS  {DIFFERS}" in said
    assert say("trace", "tiny", "asl", "LP").count("DIFFERS") == 0


def test_a_report_marks_the_number_and_warns(
    recorded: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(recorded, by_hand)
    with caplog.at_level(logging.WARNING):
        write_report(recorded.folder, recorded.params, tmp_path / "out")
    assert caplog.messages[0].startswith(DIFFERS)
    page = (tmp_path / "out/index.html").read_text()
    assert f'role="alert">{DIFFERS}' in page
    assert "51.3 r?" in (tmp_path / "out/tables.md").read_text()


def test_a_figure_leaves_the_number_out(recorded: Any) -> None:
    suite = recorded.suite
    points, _ = find_points(suite, find_replicates(suite, PAPER))
    assert [point.label for point in points] == ["ASL (AEE)"]
    path: Path = recorded.folder / "runs/linprobe/asl.json"
    path.write_text(path.read_text().replace("30.75", "99.75"))
    suite = recorded.suite
    points, left_out = find_points(suite, find_replicates(suite, PAPER))
    assert points == []
    assert left_out["ASL (AEE)"] == "no linear probe"


def test_a_cost_is_marked_where_the_cost_that_it_is_a_multiple_of_was_edited(
    recorded: Any,
) -> None:
    for key, cost in (("mae", 10.0), ("asl", 15.0)):
        recorded.result("pretrain", key, flops_train_g=cost, flops_forward_g=cost)
    path: Path = recorded.folder / "runs/pretrain/mae.json"
    path.write_text(path.read_text().replace("10.0", "5.0"))
    (table,) = lay_out(recorded.suite, PAPER)
    found = {line.label: ours(line.cells[0]) for line in table.lines}
    assert found == {"MAE": "1.00x r?", "ASL (AEE)": "3.00x r?"}
    assert "runs/pretrain/mae.json differs from dvc.lock" in text([table], width=200)
