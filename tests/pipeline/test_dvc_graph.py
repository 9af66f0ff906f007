"""The DAG: what runs again after which change, and whether `deps` name the code that counts."""

import ast
import re
import stat
from pathlib import Path

import pytest
import yaml

from asl_core.methods import DYNAMIC_IMPORTS
from pipeline.config.params import METHODS

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "pretrain", "linprobe", "finetune", "detect", "segment", "analyze")

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
finetune: {}
detect: {mae: {dataset: scenes}}
segment: {}
analyze: {}
"""

FAKE = """#!/bin/sh
case $2 in
  prepare) mkdir -p data/$3; echo $3 > data/$3/manifest.json ;;
  report) mkdir -p reports; ls runs/* > reports/index.html ;;
  *) mkdir -p runs/$2/$3; echo $2 $3 > runs/$2/$3/weights; echo '{"acc1": 1.0}' > runs/$2/$3.json ;;
esac
"""

ALL = {
    "prepare@icons", "prepare@scenes", "pretrain@mae", "pretrain@asl", "linprobe@mae",
    "linprobe@asl", "detect@mae", "report",
}  # fmt: skip


class Dag:
    """A project whose stages do nothing but leave their outputs."""

    def __init__(self, folder: Path, programs: Path, call) -> None:
        self.folder, self._call = folder, call
        self._path = f"{programs}:/usr/bin:/bin"

    def dvc(self, *arguments: str) -> str:
        import os

        path = self._path.split(":")[0] + ":" + os.environ["PATH"]
        done = self._call("dvc", *arguments, cwd=self.folder, PATH=path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, *arguments: str) -> tuple[set[str], set[str]]:
        """Return the stages that ran and the ones taken from the run-cache."""
        said = self.dvc("repro", *arguments)
        ran = re.findall(r"Running stage '(?:.*:)?(.*)'", said)
        cached = re.findall(r"Stage '(?:.*:)?(.*)' is cached - skipping run", said)
        return set(ran), set(cached)


@pytest.fixture
def dag(copied_project: Path, tmp_path: Path, call) -> Dag:
    programs = tmp_path / "programs"
    programs.mkdir()
    fake = programs / "asl-pipe"
    fake.write_text(FAKE)
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
    with (dag.folder / "asl_core/methods/mae.py").open("a") as file:
        file.write("# a remark\n")
    ran, _ = dag.repro()
    assert "pretrain@mae" in ran
    assert not any(name.endswith("@asl") or name.startswith("prepare") for name in ran)
    pycache = dag.folder / "asl_core/modules/__pycache__"
    pycache.mkdir()
    (pycache / "encoder.cpython-311.pyc").write_bytes(b"compiled")
    assert dag.repro() == (set(), set())


def test_a_run_common_to_two_suites_is_made_once(dag: Dag) -> None:
    dag.repro()
    suite = dag.folder / "suites/coco-mini"
    (suite / "params.yaml").write_text(PARAMS.replace("suite: tiny", "suite: coco-mini"))
    ran, cached = dag.repro("suites/coco-mini/dvc.yaml")
    assert ran == {"report"}
    assert cached == ALL - {"report"}


@pytest.mark.parametrize("suite", [".", "suites/cifar10-mini", "suites/coco-mini"])
def test_status_and_dag_work_in_every_suite_and_the_report_comes_last(dag: Dag, suite: str) -> None:
    names = dag.dvc("stage", "list", f"{suite}/dvc.yaml", "--name-only").split()
    edges = dag.dvc("dag", "--dot", f"{suite}/dvc.yaml:report".removeprefix("./"))
    for name in names:
        assert name.removeprefix("./") in edges
    assert "report" in dag.dvc("status", f"{suite}/dvc.yaml")


def stages() -> dict[str, dict]:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in content.items()}


def imports_of(path: Path) -> set[Path]:
    """Return the project's files that a file imports itself."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("asl_core", "pipeline"):
                file = ROOT / (name.replace(".", "/") + ".py")
                init = ROOT / name.replace(".", "/") / "__init__.py"
                found |= {candidate for candidate in (file, init) if candidate.is_file()}
    return found


# The contract between a stage and whoever calls it; no result depends on it.
CONTRACT = ROOT / "pipeline/stages/request.py"


def import_closure(path: Path) -> set[Path]:
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file not in seen and file != CONTRACT:
            seen.add(file)
            todo += imports_of(file)
    return seen


def stage_closure(stage: str) -> set[Path]:
    """Return what a stage imports, and the methods that pre-training imports by name."""
    closure = import_closure(ROOT / f"pipeline/stages/{stage}.py")
    if ROOT / "asl_core/methods/__init__.py" not in closure:
        return closure
    modules = [place.split(":")[0] for place in DYNAMIC_IMPORTS.values()]
    return closure.union(*(import_closure(ROOT / f"{m.replace('.', '/')}.py") for m in modules))


def covered(file: Path, deps: list[str]) -> bool:
    relative = str(file.relative_to(ROOT))
    return any(relative == dep or relative.startswith(dep + "/") for dep in deps)


# One entry of each list counts for an experiment; dvc.yaml names it by ${item.method}.
BY_METHOD = re.compile(rf"asl_core/(methods/.*|recipes/({'|'.join(METHODS)})\.py)|.*/__init__\.py")


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_all_code_that_a_stage_imports(stage: str) -> None:
    deps = stages()[stage]["deps"]
    if stage != "prepare":
        # declares sources; what training reads of them, mean and std, comes with the packed data
        deps = [*deps, "asl_core/recipes/datasets.py"]
    missing = [
        str(file.relative_to(ROOT))
        for file in stage_closure(stage)
        if not BY_METHOD.fullmatch(str(file.relative_to(ROOT))) and not covered(file, deps)
    ]
    assert missing == []


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_no_code_that_a_stage_does_not_import(stage: str) -> None:
    closure = {str(p.relative_to(ROOT)) for p in stage_closure(stage)}
    idle = [
        dep
        for dep in stages()[stage]["deps"]
        if "${" not in dep and not any(f == dep or f.startswith(dep + "/") for f in closure)
    ]
    assert idle == []


@pytest.mark.parametrize("method", METHODS)
def test_a_method_imports_no_other_method(method: str) -> None:
    others = {
        str(p.relative_to(ROOT)) for p in import_closure(ROOT / f"asl_core/methods/{method}.py")
    }
    assert not {f for f in others if f.startswith("asl_core/methods/")} - {
        f"asl_core/methods/{method}.py", "asl_core/methods/__init__.py",
    }  # fmt: skip


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "pretrain"])
def test_an_edit_of_one_method_reaches_a_stage_through_its_pretraining_only(stage: str) -> None:
    closure = {str(p.relative_to(ROOT)) for p in stage_closure(stage)}
    assert not [file for file in closure if file.startswith("asl_core/methods/")]
