"""Results reach others: a remote with what is not adopted yet, a reader, files that DVC draws."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asl_core.engine.journal import Journal
from pipeline.config.plots import plots_text
from pipeline.errors import UserError
from pipeline.execution import stored
from pipeline.jobs import curves
from pipeline.jobs.curves import write_curves
from pipeline.project import Project, find_project
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.git import Git
from pipeline.submission.adoption import adopt
from pipeline.submission.sharing import pull_results, push_results

Say = Callable[..., str]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_what_jobs_have_finished_reaches_a_clone_elsewhere_before_it_is_adopted(
    site: Any, say: Say, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its curves, which DVC draws there."""
    site.dvc("remote", "add", "-d", "store", str(tmp_path / "remote"))
    (site.root / "plots").mkdir()
    params = yaml.safe_load((site.root / "params.yaml").read_text())
    (site.root / "plots/dvc.yaml").write_text(plots_text(params))
    git(site.root, "add", "-A")
    git(site.root, "commit", "-qm", "Begin")
    site.submit()
    site.run()
    # the probe's result is not for these settings any more: nothing adopts it here
    site.edit("params.yaml", "epochs: 12", "epochs: 13")
    monkeypatch.chdir(site.root)
    assert adopt(site.project, site.cache) == ["prepare@icons", "pretrain@asl"]
    line = say("sync", "--push", "--remote", "stroe", code=2)
    assert "stroe" in line
    assert len(line.splitlines()) == 1
    assert push_results(site.project, site.cache, list(site.reports().values()), None) > 20

    clone = tmp_path / "bei uns/Prüfung 2"
    git(tmp_path, "clone", "-q", str(site.root), str(clone))
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "another"))
    project, cache = find_project(clone), DvcCache()
    assert pull_results(project, cache, None) > 10
    assert adopt(project, cache) == ["prepare@icons", "pretrain@asl", "linprobe@asl"]
    assert json.loads((clone / "runs/linprobe/asl.json").read_text())["total"] == 19.0
    assert pull_results(project, cache, None) == 0
    assert "stroe" in say("sync", "--pull", "--remote", "stroe", code=2)
    shown = call("dvc", "plots", "show", "--json", cwd=clone)
    drawn = json.loads(shown.stdout)
    assert "errors" not in drawn, drawn
    assert drawn["data"].keys() == {
        "pretrain/loss",
        "linprobe/loss",
        "runs/pretrain/asl/curves/pretrain/loss.csv",
        "runs/pretrain/asl/curves/pretrain/images_per_s.csv",
    }
    text = (clone / "runs/linprobe/asl/curves/linprobe/loss.csv").read_text()
    assert text == f"step,loss\n1,1.0\n2,0.5\n3,{1 / 3}\n"


def test_plots_name_what_is_trained() -> None:
    model = {"dataset": "a"}
    params = {
        "experiments": {"mae": {"method": "mae"}, "random": {"method": "untrained"}},
        "linprobe": {"mae": model, "random": model},
        "knn": {"mae": model},
        "detect": {"mae": model},
    }
    plots = yaml.safe_load(plots_text(params))["plots"]
    named = [plot if isinstance(plot, str) else next(iter(plot)) for plot in plots]
    assert named == [
        "pretrain/loss", "../runs/pretrain/mae/curves", "linprobe/loss", "detect/loss",
        "../runs/detect/mae/pictures/precision_recall.png",
    ]  # fmt: skip
    assert plots[2]["linprobe/loss"]["y"] == {
        "../runs/linprobe/mae/curves/linprobe/loss.csv": "loss",
        "../runs/linprobe/random/curves/linprobe/loss.csv": "loss",
    }
    assert yaml.safe_load(plots_text({"experiments": None}))["plots"] == []


def test_a_curve_has_the_points_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_POINTS", 4)
    journal = tmp_path / "journal"
    with Journal.open(journal) as first:
        for step in range(1, 8):
            first.metrics(step, {"pretrain/loss": 10.0 * step, "system/n/cpu": 1.0})
        first.end("INTERRUPTED")
    with Journal.open(journal) as second:
        second.resume(5, 9)
        for step in range(6, 10):
            second.metrics(step, {"pretrain/loss": float("nan") if step == 7 else float(step)})
        second.metrics(0, {"lp_acc1": 50.0})
        second.end("SUCCEEDED")
    write_curves(journal, tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv")}
    assert files == {"curves/pretrain/loss.csv"}
    text = (tmp_path / "curves/pretrain/loss.csv").read_text()
    assert text == "step,loss\n1,10.0\n4,40.0\n9,9.0\n"  # every third, without what is no number


def test_a_number_is_evaluated_again_where_only_reading_is_allowed(tmp_path: Path) -> None:
    (tmp_path / ".asl").write_text("no folder can be made here")
    with stored.scratch(Project(tmp_path, tmp_path)) as folder:
        assert folder.is_dir()
        assert not folder.is_relative_to(tmp_path)
    assert not folder.exists()


def test_what_a_dvc_lock_has_ever_named_is_known(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert Git().recorded(tmp_path) == set()
    suite = tmp_path / "suites/a b"
    suite.mkdir(parents=True)
    digests = [character * 32 for character in "abcd"]
    for digest in digests[:2]:
        (suite / "dvc.lock").write_text(f"    outs:\n    - path: x\n      md5: {digest}.dir\n")
        git(tmp_path, "add", "-A")
        git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "c")
    (suite / "dvc.lock").write_text(f"      md5: {digests[2]}\n")
    (tmp_path / "dvc.lock").write_text(f"      md5: {digests[3]}\n")
    expected = {f"{digests[0]}.dir", f"{digests[1]}.dir", *digests[2:]}
    assert Git().recorded(tmp_path) == expected
    assert Git().recorded(suite) == expected - {digests[3]}


def test_what_git_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\nand more\n")
    with pytest.raises(UserError) as refused:
        Git().recorded(tmp_path)
    assert len(str(refused.value).splitlines()) == 1
