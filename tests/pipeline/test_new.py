"""`asl-pipe new` writes a suite that runs; a suite without tables has one of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.params import load_params
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.project import find_project
from pipeline.results.suite_project import is_up_to_date
from pipeline.stages.report import write_report
from pipeline.starting.suites import new_suite, suites_that_came_along

Say = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project without a suite, as far as suites are concerned."""
    (tmp_path / "project/.dvc").mkdir(parents=True)
    return tmp_path / "project"


def test_a_new_suite_is_small_explained_and_valid(
    root: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert "written: suites/first-try; edit its params.yaml" in say("new", "first-try")
    folder = root / "suites/first-try"
    assert is_up_to_date(folder)
    params = load_params(folder / "params.yaml")
    assert (params.suite, params.title, params.scale) == ("first-try", "First try", "own")
    assert set(params.experiments) == {"mae", "untrained"}
    assert (folder / ".dvc/config").is_file()
    assert find_project(folder).root == root
    assert "first-try: valid" in say("validate", "first-try")


@pytest.mark.parametrize("nearest", sorted(suites_that_came_along()))
def test_each_suite_of_the_paper_can_be_begun_from_anywhere(root: Path, nearest: str) -> None:
    folder = new_suite(root, "mine", nearest)
    origin = suites_that_came_along()[nearest]
    params, of_origin = (load_params(each / "params.yaml") for each in (folder, origin))
    assert params.suite == "mine"
    assert params.title == f"{of_origin.title} (mine)"
    assert params.model_copy(update={"suite": "", "title": ""}) == of_origin.model_copy(
        update={"suite": "", "title": ""}
    )
    assert (folder / "suite.yaml").is_file() == (origin / "suite.yaml").is_file()


def test_a_suite_of_the_project_goes_before_one_that_came_along(root: Path) -> None:
    new_suite(root, "table1", None)
    assert set(load_params(new_suite(root, "b", "table1") / "params.yaml").datasets) == {"icons"}


@pytest.mark.parametrize(
    ("name", "nearest", "line"),
    [
        ("there", None, "suites/there exists; choose another name"),
        ("Größe", None, "is no name for a suite: lower-case letters"),
        ("../out", None, "is no name for a suite"),
        ("demo", None, "demo is the root's"),
        ("mine", "table77", "unknown suite 'table77'; did you mean"),
    ],
)
def test_what_will_not_do_is_one_line_and_leaves_nothing(
    root: Path, say: Say, monkeypatch: pytest.MonkeyPatch, name: str, nearest: str | None,
    line: str,
) -> None:  # fmt: skip
    (root / "suites/there").mkdir(parents=True)
    monkeypatch.chdir(root)
    assert line in say("new", name, *(["--from", nearest] if nearest else []), code=2)
    assert [path.name for path in (root / "suites").iterdir()] == ["there"]


def test_a_suite_that_is_wrong_is_not_left_half(root: Path) -> None:
    (root / "params.yaml").write_text("suite: x\ntitle: y\nscale: odd\n")
    with pytest.raises(UserError, match="scale"):
        new_suite(root, "mine", "demo")
    assert not any((root / "suites").iterdir())


def of_ones_own(results: Any) -> None:
    """Leave tables out, and what the suite does not use."""
    raw = read_yaml(results.folder / "params.yaml")
    kept = {key: value for key, value in raw.items() if value and key != "tables"}
    results.write(yaml.safe_dump({**kept, "scale": "own"}, sort_keys=False))


def test_without_tables_every_metric_has_a_column_and_no_number_is_the_papers(
    results: Any, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_ones_own(results)
    results.result("pretrain", "mae", scale="own", loss=0.5)
    results.result("linprobe", "mae", scale="own", lp_acc1=40.0, lp_acc5=80.0, test_images=200)
    results.result("analyze", "asl", scale="own", token_similarity=0.5)
    results.lock()
    monkeypatch.chdir(results.folder)
    said = say("tables", "--format", "md")
    header = next(line for line in said.splitlines() if line.startswith("| Method"))
    assert "LP [%]: ours |" in header
    assert "token similarity" in header
    assert "paper" not in header
    assert "reduced" not in said.lower()
    long = say("tables")  # as in a narrow terminal: a block for each metric
    assert "paper" not in long.split("Guessing")[0].split("missing")[0].splitlines()[3]
    assert "delta" not in long
    write_report(results.folder, results.params, results.folder / "reports")
    page = (results.folder / "reports/index.html").read_text()
    assert "reduced" not in page.lower()
    assert "own images" in page
    assert "40.0" in page


def test_scale_own_has_no_tables_of_the_paper(results: Any) -> None:
    results.edit("scale: reduced", "scale: own")
    with pytest.raises(UserError, match="tables: the paper has no numbers for scale own"):
        load_params(results.folder / "params.yaml", ["table1", "table5"])
