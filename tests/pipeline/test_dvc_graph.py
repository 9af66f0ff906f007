"""The DAG: what runs again after which change."""

import os
import re
import shlex
import stat
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.results.code import code_root, read_code, refresh_identities
from pipeline.results.suite_project import write_suite_project

ROOT = Path(__file__).parents[2]

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {icons: {source: icons, train: 8, test: 4}, scenes: {source: scenes, train: 8}}
experiments:
  mae: {method: mae, dataset: scenes, lr: 1.0e-3}
  asl: {method: asl, dataset: scenes, lr: 1.0e-3}
linprobe: {mae: {dataset: icons}, asl: {dataset: icons}}
detect: {mae: {dataset: scenes}}
"""

FAKE = """#!/bin/sh
case $2 in
  code) exec {python} -P -m pipeline run code ;;
  prepare) mkdir -p data/$3 runs/prepare/$3; echo $3 > data/$3/manifest.json ;;
  report) mkdir -p reports; ls runs/* > reports/index.html ;;
  pretrain) mkdir -p runs/encoder/$3 runs/held_out/$3 runs/pretrain/$3
    echo $3 > runs/encoder/$3/weights; date +%N > runs/pretrain/$3/journal
    echo '{{"acc1": 1.0}}' > runs/pretrain/$3.json ;;
  *) mkdir -p runs/$2/$3; echo $2 $3 > runs/$2/$3/weights
    echo '{{"acc1": 1.0}}' > runs/$2/$3.json ;;
esac
"""
"""Stages that train nothing; the code's identity is the real one, of the project's own code."""

ALL = {
    "code", "prepare@icons", "prepare@scenes", "pretrain@mae", "pretrain@asl", "linprobe@mae",
    "linprobe@asl", "detect@mae", "report",
}  # fmt: skip


class Dag:
    """A project whose stages do nothing but leave their outputs."""

    def __init__(self, folder: Path, programs: Path, call) -> None:
        self.folder, self._call = folder, call
        self._path = f"{programs}:/usr/bin:/bin"

    def dvc(self, *arguments: str, suite: str = ".") -> str:
        path = self._path.split(":")[0] + ":" + os.environ["PATH"]
        code = str(self.folder)
        done = self._call("dvc", *arguments, cwd=self.folder / suite, PATH=path, PYTHONPATH=code)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, *arguments: str, suite: str = ".") -> tuple[set[str], set[str]]:
        """Return the stages that ran and the ones taken from the run-cache."""
        said = self.dvc("repro", *arguments, suite=suite)
        ran = re.findall(r"Running stage '(?:.*:)?(.*)'", said)
        cached = re.findall(r"Stage '(?:.*:)?(.*)' is cached - skipping run", said)
        return set(ran), set(cached)


@pytest.fixture
def dag(copied_project: Path, tmp_path: Path, call) -> Dag:
    programs = tmp_path / "programs"
    programs.mkdir()
    fake = programs / "asl-pipe"
    fake.write_text(FAKE.format(python=shlex.quote(sys.executable)))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (copied_project / "params.yaml").write_text(PARAMS)
    return Dag(copied_project, programs, call)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_only_what_hangs_on_a_change_runs_again(dag: Dag) -> None:
    ran, _ = dag.repro()
    assert ran == ALL
    assert dag.repro() == (set(), set())
    edit(
        dag.folder / "params.yaml",
        "asl, dataset: scenes, lr: 1.0e-3",
        "asl, dataset: scenes, lr: 2.0e-3",
    )
    ran, _ = dag.repro()
    assert ran >= {"pretrain@asl", "report"}
    assert ran <= {"pretrain@asl", "linprobe@asl", "report"}
    edit(dag.folder / "params.yaml", "lr: 2.0e-3", "lr: 1.0e-3")
    ran, cached = dag.repro()
    assert ran == set()
    assert "pretrain@asl" in cached
    edit(dag.folder / "asl_core/methods/mae.py", "self.target(images, mask)", "(target := 0)")
    ran, _ = dag.repro()
    assert {"code", "pretrain@mae"} <= ran
    assert not any(name.endswith("@asl") or name.startswith("prepare") for name in ran)
    pycache = dag.folder / "asl_core/modules/__pycache__"
    pycache.mkdir()
    (pycache / "encoder.cpython-311.pyc").write_bytes(b"compiled")
    assert dag.repro() == (set(), set())


def test_what_means_nothing_runs_nothing_but_the_look_at_the_code(dag: Dag) -> None:
    dag.repro()
    with (dag.folder / "asl_core/engine/loop.py").open("a") as file:
        file.write("# a remark\n")
    edit(dag.folder / "pipeline/stages/pretrain.py", '"""Pre-train an encoder."""', '"""Train."""')
    (dag.folder / "asl_core/modules/new.py").write_text("NUMBER = 1\n")
    assert dag.repro() == ({"code"}, set())
    assert "up to date" in dag.dvc("status")


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("asl_core/losses/distillation.py", "return", "assert True; return", {"dino", "ibot"}),
        ("asl_core/methods/asl.py", "1e-12", "1e-11", {"asl"}),
    ],
)
def test_an_edit_reaches_the_methods_that_run_it(
    dag: Dag, path: str, old: str, new: str, stale: set[str]
) -> None:
    before = refreshed(dag)
    edit(dag.folder / path, old, new)
    after = refreshed(dag)
    assert {f"code/pretrain-{name}.txt" for name in stale} == {
        name for name in before if before[name] != after[name]
    }


def refreshed(dag: Dag) -> dict[str, str]:
    return read_code(dag.folder).identities


def test_weights_that_are_the_same_again_stop_the_cascade(dag: Dag) -> None:
    dag.repro()
    ran = re.findall(r"Running stage '(.*)'", dag.dvc("repro", "--force", "-s", "pretrain@asl"))
    assert ran == ["pretrain@asl"]
    assert dag.repro()[0] == {"report"}  # its journal is another one


def test_code_that_is_out_of_date_or_was_edited_is_never_used(dag: Dag) -> None:
    dag.repro()
    file = dag.folder / "code/linprobe.txt"
    right = file.read_text()
    file.unlink()  # DVC may share it with its cache
    file.write_text("0" * 20 + "  asl_core\n")
    assert refresh_identities(dag.folder) == ["code/linprobe.txt"]
    assert file.read_text() == right
    assert "up to date" in dag.dvc("status")


def test_a_run_common_to_two_suites_is_made_once(dag: Dag) -> None:
    dag.repro()
    suite = dag.folder / "suites/coco-mini"
    (suite / "params.yaml").write_text(PARAMS.replace("suite: tiny", "suite: coco-mini"))
    write_suite_project(suite, dag.folder)
    ran, cached = dag.repro(suite="suites/coco-mini")
    assert ran == {"report"}
    assert cached == ALL - {"report"}


@pytest.mark.parametrize("suite", [".", "suites/cifar10-mini", "suites/coco-mini"])
def test_dvc_answers_about_one_suite_and_the_report_comes_last(dag: Dag, suite: str) -> None:
    names = dag.dvc("stage", "list", "--name-only", suite=suite).split()
    edges = dag.dvc("dag", "--dot", suite=suite)
    assert {"code", "report"} < set(names)
    assert "suites/" not in edges
    for name in names:
        assert name in edges
    status = dag.dvc("status", suite=suite)
    assert "report" in status
    assert "dvc.yaml" not in status.replace("params.yaml", "")  # another suite's would be named


def test_a_git_revision_holds_a_suite_that_dvc_can_read(dag: Dag, call) -> None:
    suite = dag.folder / "suites/coco-mini"
    (suite / "params.yaml").write_text(PARAMS.replace("suite: tiny", "suite: coco-mini"))
    dag.repro(suite="suites/coco-mini")
    for command in (("git", "add", "-A"), ("git", "commit", "-qm", "runs")):
        assert call(*command, cwd=dag.folder).returncode == 0
    edit(suite / "params.yaml", "asl, dataset: scenes, lr: 1.0e-3", "asl, dataset: scenes, lr: 9.0")
    (suite / "runs/detect/mae.json").write_text('{"acc1": 1.5}')
    rows = dag.dvc("params", "diff", suite="suites/coco-mini").splitlines()
    assert [row for row in rows if "params.yaml" in row] == rows[1:2]
    assert "experiments.asl.lr" in rows[1]
    assert "0.5" in dag.dvc("metrics", "diff", suite="suites/coco-mini")
    assert "No changes" in dag.dvc("data", "status", suite="suites/coco-mini")
    assert dag.dvc("metrics", "diff") == ""  # of the demo nothing has changed


def test_expand_deletes_no_stage_that_somebody_has_written(dvc_project: Path) -> None:
    write_suite_project(dvc_project, dvc_project)
    file = dvc_project / "dvc.yaml"
    file.write_text(file.read_text() + "  upload: {cmd: scp reports host:}\n")
    with pytest.raises(UserError, match=r"stages that expand would delete \(upload\)"):
        write_suite_project(dvc_project, dvc_project)
    assert "upload" in file.read_text()


def test_where_the_packages_are_installed_the_project_needs_none(dvc_project: Path, call) -> None:
    write_suite_project(dvc_project, dvc_project)
    (dvc_project / "params.yaml").write_text(PARAMS)
    assert code_root(dvc_project) is None
    assert "always_changed: true" in (dvc_project / "dvc.yaml").read_text()
    for _ in range(2):  # DVC cannot watch what is not of the project: it looks each time
        said = call("dvc", "repro", "code", cwd=dvc_project, PYTHONPATH=str(ROOT))
        assert "Running stage 'code'" in said.stdout, said.stderr
    for path, text in read_code(ROOT).identities.items():
        assert (dvc_project / path).read_text() == text
