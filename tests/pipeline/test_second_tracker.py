"""A tracker of which `pipeline` knows nothing shows runs: what a lab has to write is enough."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from csv_tracker import read_points

from pipeline.jobs.journal import effective_points
from pipeline.tracking.find import find_tracker

Say = Callable[..., str]


@pytest.fixture
def tracked(site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project that has chosen it in cluster.yaml; this process stands in the project."""
    site.edit("cluster.yaml", "tracker: mlflow", "tracker: csv_tracker:csv_tracker")
    monkeypatch.chdir(site.root)
    return site


def expect_every_point_once(root: Path, runs: int) -> None:
    """Compare the store with the journals."""
    journals = sorted((root / ".asl/jobs").glob("*/journal"))
    names = [journal.parent.name for journal in journals]
    assert sorted(path.stem for path in (root / "curves").glob("*.csv")) == names
    assert len(names) == runs
    for journal in journals:
        wanted = {
            (key, step, repr(value), time_ms)
            for key, points in effective_points(journal).items()
            for step, value, time_ms in points
        }
        shown = read_points(root / "curves" / f"{journal.parent.name}.csv")
        costs = [point[0] for point in shown if point[0].startswith("cost/")]
        assert "cost/hours" in costs  # no point of the journal, but what all of them say
        assert len(costs) == len({*costs})
        found = [point for point in shown if not point[0].startswith("cost/")]
        assert {point[1:] for point in found} == {point[1:] for point in wanted}
        assert len(found) == len(wanted)


def test_every_point_is_there_once_whenever_it_is_killed(tracked: Any, say: Say, call: Any) -> None:
    say("submit", "--all")
    tracked.run()  # jobs show nothing; their journals wait
    assert not (tracked.root / "curves").exists()
    for limit in ("0", "7", "100", "300"):
        done = call(
            "asl-pipe", "sync", cwd=tracked.root, CSV_TRACKER_DIES_AFTER=limit,
            PYTHONPATH=tracked.python_path,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    for _ in range(2):
        said = say("sync")
        assert "runs are in CSV files\n" in said
    expect_every_point_once(tracked.root, 3)
    tracker = find_tracker(tracked.root)
    assert all(tracker.is_shown(path.parent) for path in tracked.root.glob(".asl/jobs/*/journal"))


def test_runs_made_here_are_shown_and_have_an_address(tracked: Any) -> None:
    tracked.dvc("repro", "linprobe@asl", PYTHONPATH=tracked.python_path)
    expect_every_point_once(tracked.root, 3)
    tracker = find_tracker(tracked.root)
    for path in (tracked.root / "curves").glob("*.csv"):
        assert tracker.page_of(path.stem) == path.as_uri()
    assert tracker.page_of("f" * 64) is None


def test_one_without_pages_says_so(tracked: Any, say: Say) -> None:
    assert "CSV files has no pages" in say("ui", code=2)


def test_a_tracker_that_is_not_there_is_named(tracked: Any, say: Say) -> None:
    tracked.edit("cluster.yaml", "csv_tracker:csv_tracker", "nowhere:tracker")
    said = say("validate", code=2)
    assert "cluster.yaml: tracker: nowhere:tracker cannot be loaded: No module named" in said
    tracked.edit("cluster.yaml", "nowhere:tracker", "mlfow")
    assert "did you mean 'mlflow'?" in say("run", "prepare", "icons", code=2)
