"""MLflow's pages: where they are served, which ones are worth opening, and that nothing stays."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.tracking.mlflow.charts import VIEW, comparison_view
from pipeline.tracking.mlflow.link import RunLink
from pipeline.tracking.mlflow.ui import free_port, pages, serve


def link(
    key: str, stage: str = "pretrain", suite: str = "demo", parent: str | None = "p"
) -> RunLink:
    return RunLink(store="s", experiment_id="1", parent_run_id=parent and f"{parent}-{key}",
                   run_id=f"{stage}-{key}", suite=suite, stage=stage, key=key)  # fmt: skip


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_passed_over(taken: int) -> None:
    assert free_port(taken) > taken


def test_no_free_port_is_the_users_to_solve(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.mlflow.ui.PORTS_TRIED", 1)
    with pytest.raises(UserError, match=f"ports {taken}"):
        free_port(taken)


def test_a_project_without_runs_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no runs to show.*dvc repro"):
        serve(tmp_path, 5000, print)


def test_a_store_that_is_a_server_is_pointed_to_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@host:5000/")
    shown: list[str] = []
    serve(tmp_path, 5000, shown.append)
    assert "http://***@host:5000/" in shown[0]
    assert "hunter22" not in "".join(shown)


def test_two_experiments_have_a_page_that_puts_their_results_side_by_side() -> None:
    links = [
        link("mae"),
        link("asl", parent="old"),
        link("asl"),
        link("icons", "prepare", parent=None),
    ]
    found = dict(pages(links))
    page = found["demo: mae, asl side by side"]
    assert page == (f"/#/experiments/1/runs?viewStateShareKey={VIEW}&workflowType=machine_learning")


def test_one_experiment_is_compared_with_nothing() -> None:
    assert [what for what, _ in pages([link("mae")])] == [
        "demo: charts of all experiments",
        "demo: all runs",
    ]


def test_the_page_of_charts_is_the_saved_view() -> None:
    page = dict(pages([link("mae")]))["demo: charts of all experiments"]
    assert page.startswith(f"/#/experiments/1/runs?viewStateShareKey={VIEW}&")
    assert "compareRunsMode=CHART" in page
    assert "searchFilter" not in page
    assert "workflowType=machine_learning" in page


def test_the_saved_view_compares_what_the_paper_compares() -> None:
    text = comparison_view("demo", 0)
    assert len(text) < 20_000  # MLflow's limit for the tag of an experiment
    state = json.loads(json.loads(text)["state"])
    sections = [section["uuid"] for section in state["compareRunSections"]]
    cards = state["compareRunCharts"]
    assert len({card["uuid"] for card in cards}) == len(cards)
    assert {card["metricSectionId"] for card in cards} == set(sections)
    scatter = [
        (card["xaxis"]["key"], card["yaxis"]["key"]) for card in cards if card["type"] == "SCATTER"
    ]
    assert scatter == [
        ("lp_acc1", "ft_acc1"), ("token_similarity", "lp_acc1"),
    ]  # fmt: skip


def test_each_suite_has_its_own_pages() -> None:
    found = [what for what, _ in pages([link("mae"), link("mae", suite="table1")])]
    assert found[0::2] == ["demo: charts of all experiments", "table1: charts of all experiments"]


@pytest.mark.slow
def test_a_signal_to_stop_ends_the_server_and_all_its_processes(tmp_path: Path) -> None:
    # An empty file is an empty database: the server makes the tables.
    (tmp_path / "mlflow.db").touch()
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.mlflow.ui import serve; "
        "serve(Path(sys.argv[1]), 5000, lambda line: print(line, flush=True))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
