"""Who may import whom, what an import costs, and that no part is left without its counterpart."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from miniatures import OTHERS

from asl_core.methods import DYNAMIC_IMPORTS
from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES
from pipeline.config.cluster import Local
from pipeline.config.params import METHODS, SOURCES
from pipeline.results.code import dag_of
from pipeline.results.suite_project import wanted_files, wanted_links
from pipeline.stages.table import CODE_STAGE, MEASURED, STAGES
from pipeline.tables.paper import load_paper

ROOT = Path(__file__).parents[2]
SCIENCE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "asl_core").rglob("*.py")
    if path.name != "__init__.py"
)
FORBIDDEN = ("pipeline", "mlflow", "dvc", "submitit", "typer", "pydantic", "yaml", "ruamel")

BLOCKED_IMPORTS = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError(f"{{name}} is not for asl_core")
sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_layers_are_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_recipes_and_records_need_the_standard_library_only() -> None:
    modules = [name for name in SCIENCE if ".recipes." in name]
    modules += [f"asl_core.engine.{name}" for name in ("context", "journal", "witness")]
    modules += ["asl_core.analysis.watched"]
    forbidden = (*FORBIDDEN, "torch", "torchvision", "timm", "numpy", "PIL", "psutil")
    done = run_python(BLOCKED_IMPORTS.format(forbidden=forbidden, modules=modules))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["pipeline.execution.run", "pipeline.tables.formats"])
def test_actions_do_not_load_torch_or_mlflow(module: str) -> None:
    heavy = ("torch", "torchvision", "timm", "mlflow", "dvc", "sklearn")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_method_has_a_recipe_a_module_and_a_name_in_the_paper() -> None:
    for name in METHODS:
        assert (ROOT / f"asl_core/methods/{name}.py").is_file()
        assert (ROOT / f"asl_core/recipes/{name}.py").is_file()
        # an imported encoder is named by its row or its key
        assert name in load_paper().methods or name == "imported"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_method_is_documented_tested_and_has_a_row(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs/methods.md").read_text()
    own = ROOT / f"tests/asl_core/test_{name}.py"
    tests = own if own.is_file() else ROOT / "tests/asl_core/test_methods.py"
    text = tests.read_text()
    assert DYNAMIC_IMPORTS[name].split(":")[1] in text, f"not tested in {tests.name}"
    assert "parity(" in text or "compare_gradients(" in text, "compared with no equation"
    assert name in {"mae", "asl", *OTHERS}, "not trained by several processes, nor on a GPU"
    assert name in load_paper().methods, "its row in a table has no name"


def test_recipes_and_modules_have_the_same_names() -> None:
    assert DYNAMIC_IMPORTS.keys() == {*RECIPES, *NOT_TRAINED}
    for name, recipe in RECIPES.items():
        assert recipe(dataset="none").method == name


def test_every_method_module_can_be_named_in_params() -> None:
    files = {path.stem for path in (ROOT / "asl_core/methods").glob("*.py")} - {"__init__"}
    assert files == set(METHODS)


def test_every_stage_of_the_dag_is_known_everywhere() -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert stages == {*STAGES, CODE_STAGE}
    assert {*STAGES, "default"} == set(Local.model_fields)
    for name in STAGES:
        assert (ROOT / f"pipeline/stages/{name}.py").is_file()


@pytest.mark.parametrize("name", [stage.name for stage in MEASURED])
def test_every_measurement_can_be_made_again_from_what_was_stored(name: str) -> None:
    text = (ROOT / f"pipeline/stages/{name}.py").read_text()
    assert "\ndef reevaluate(run: StoredRun[" in text


@pytest.mark.parametrize("word", ["slurm", "sbatch", "squeue", "scontrol", "fake"])
def test_no_word_of_one_scheduler_is_spoken_outside_its_package(word: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "pipeline").rglob("*.py")}
    rest = {name: path for name, path in files.items() if "/schedulers/slurm/" not in name}
    said = {name for name, path in rest.items() if word in path.read_text("utf-8").lower()}
    assert said <= {"pipeline/config/schedulers.py"}, "the table alone names it"


def test_no_word_of_one_tracker_is_spoken_outside_its_package() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "pipeline").rglob("*.py")}
    rest = {name: path for name, path in files.items() if "/tracking/mlflow/" not in name}
    said = {name for name, path in rest.items() if "mlflow" in path.read_text("utf-8").lower()}
    assert said == {"pipeline/config/trackers.py"}, "the table alone names it"


def test_every_source_says_its_own_name() -> None:
    for name, declared in SOURCES.items():
        assert declared.__dataclass_fields__["source"].default == name


@pytest.mark.parametrize("suite", sorted(p.parent.name for p in ROOT.glob("suites/*/params.yaml")))
def test_a_suite_is_params_and_what_follows_from_the_project(suite: str) -> None:
    folder = ROOT / "suites" / suite
    for name, target in wanted_links(folder, ROOT).items():
        assert str((folder / name).readlink()) == target
    for name, text in wanted_files(folder, ROOT).items():
        assert not (folder / name).is_symlink()
        if name != ".dvc/config":  # it follows from what people set in the project's
            assert (folder / name).read_text() == text
    assert yaml.safe_load((folder / "params.yaml").read_text())["suite"] == suite


def test_the_demo_has_the_dag_that_suites_have() -> None:
    assert (ROOT / "dvc.yaml").read_text() == dag_of(ROOT)


def test_the_lock_file_has_exact_versions_and_no_places() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all("==" in line and "@" not in line and "/" not in line for line in lines)
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lines)
