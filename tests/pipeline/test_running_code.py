"""The code that runs must be the code that results are filed under."""

import importlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.errors import NotFinishedError, UserError
from pipeline.results import running_code
from pipeline.results.code import read_code
from pipeline.results.meaning import meaning, short_digest
from pipeline.results.running_code import check_loaded_code, check_running_code

ROOT = Path(__file__).parents[2]

# --- another checkout, in this one's environment


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def filed(project: Path) -> list[str]:
    entries = [path for path in (project / ".dvc/cache/runs").rglob("*") if path.is_file()]
    commands = [path.read_text().splitlines()[0] for path in entries]
    return [command for command in commands if "run code" not in command]


def test_a_stage_edited_in_another_checkout_is_not_filed_as_run(
    copied_project: Path, call: Any
) -> None:
    stage = copied_project / "pipeline/stages/prepare.py"
    edit(stage, '"""Pack the dataset, draw', 'raise RuntimeError("edited")\n    """Pack, draw')
    done = call("dvc", "repro", "prepare@icons", cwd=copied_project)
    assert done.returncode != 0
    assert str(stage) in done.stderr
    assert str(ROOT / "pipeline/stages/prepare.py") in done.stderr
    assert "Traceback" not in done.stderr
    assert not (copied_project / "data/icons").exists()
    assert filed(copied_project) == []
    alone = call("asl-pipe", "run", "prepare", "icons", cwd=copied_project)
    assert alone.returncode == 2, alone.stderr

    with_it = call(
        "dvc", "repro", "prepare@icons", cwd=copied_project, PYTHONPATH=str(copied_project)
    )
    assert "RuntimeError: edited" in with_it.stderr  # the code of this project runs now


def test_another_checkout_whose_code_means_the_same_is_as_good(
    copied_project: Path, call: Any
) -> None:
    edit(copied_project / "pipeline/stages/prepare.py", "import shutil\n", "import shutil  # \n")
    (copied_project / "asl_core/methods/mae.py").write_text("broken = 1 / 0\n")  # of no prepare
    done = call("asl-pipe", "run", "prepare", "icons", cwd=copied_project)
    assert done.returncode == 0, done.stderr
    assert (copied_project / "data/icons/manifest.json").is_file()


# --- what is compared, on a module of the tests'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a module that was imported from one folder; another has the same file."""
    source = 'DYNAMIC_IMPORTS = {"a": "there:run"}\nRATE = 1\n'
    for place in ("loaded", "project"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "probed.py").write_text(source)
        os.utime(tmp_path / place / "probed.py", (1e9, 1e9))
    monkeypatch.syspath_prepend(tmp_path / "loaded")
    monkeypatch.delitem(sys.modules, "probed", raising=False)
    found = importlib.import_module("probed")
    monkeypatch.setitem(sys.modules, "probed", found)
    return found


def text_of(module: ModuleType, entry: str = "there:run") -> str:
    source = Path(str(module.__file__)).read_bytes()
    return (
        f"{meaning(source)}  probed\n{short_digest(ascii(entry).encode())}  probed -> a\n"
        "00000000000000000000  never_imported\n"
    )


def test_equal_code_passes(module: ModuleType, tmp_path: Path) -> None:
    check_loaded_code(text_of(module), tmp_path / "project")


def test_an_edited_copy_is_named_with_the_original(module: ModuleType, tmp_path: Path) -> None:
    text = text_of(module)
    edit(tmp_path / "loaded/probed.py", "RATE = 1", "RATE = 2")
    with pytest.raises(UserError) as caught:
        check_running_code(text, tmp_path / "project")
    assert str(tmp_path / "loaded/probed.py") in str(caught.value)
    assert str(tmp_path / "project/probed.py") in str(caught.value)


def test_an_entry_that_was_changed_in_memory_counts(module: ModuleType, tmp_path: Path) -> None:
    module.DYNAMIC_IMPORTS["a"] = "elsewhere:run"
    with pytest.raises(UserError, match="not the code of this project"):
        check_running_code(text_of(module), tmp_path / "project")


def test_a_file_beside_a_module_counts(tmp_path: Path) -> None:
    data = (ROOT / "pipeline/tables/paper.yaml").read_bytes()
    check_running_code(f"{short_digest(data)}  pipeline/tables/paper.yaml\n", tmp_path)
    with pytest.raises(UserError, match=r"paper\.yaml was loaded"):
        check_running_code(f"{'0' * 20}  pipeline/tables/paper.yaml\n", tmp_path)


def test_an_edit_after_the_process_began_is_noticed(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(tmp_path / "loaded/probed.py", "RATE = 1", "RATE = 2")
    text = text_of(module)  # as a stage's identity would be computed: from the file as it is now
    with pytest.raises(NotFinishedError, match="changed while it was being loaded"):
        check_loaded_code(text, tmp_path / "loaded")
    monkeypatch.setattr(running_code, "_process_start", time.time)
    check_loaded_code(text, tmp_path / "loaded")  # by a process that is younger than the edit


def test_a_compiled_file_of_an_older_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit within the second of the run before, of the same length: Python keeps the old."""
    source = tmp_path / "hurried.py"
    source.write_text("RATE = 1\n")
    now = time.time()
    os.utime(source, (now, now))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    importlib.import_module("hurried")
    source.write_text("RATE = 2\n")
    os.utime(source, (now, now))
    monkeypatch.delitem(sys.modules, "hurried")
    importlib.invalidate_caches()
    stale = importlib.import_module("hurried")
    assert stale.RATE == 1  # what runs is not what the file says
    monkeypatch.setattr(running_code, "_process_start", time.time)
    with pytest.raises(UserError, match=r"hurried.*\.pyc.*delete it"):
        check_loaded_code(f"{meaning(source.read_bytes())}  hurried\n", tmp_path)
    Path(str(stale.__cached__)).unlink()
    check_loaded_code(f"{meaning(source.read_bytes())}  hurried\n", tmp_path)
    monkeypatch.delitem(sys.modules, "hurried")


def test_compiled_code_in_place_of_a_source_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import py_compile

    source = tmp_path / "compiled_only.py"
    source.write_text("RATE = 1\n")
    py_compile.compile(str(source), cfile=str(tmp_path / "compiled_only.pyc"))
    text = f"{meaning(source.read_bytes())}  compiled_only\n"
    source.rename(tmp_path / "kept")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("compiled_only")
    with pytest.raises(UserError, match=r"compiled_only\.pyc was loaded"):
        check_running_code(text, tmp_path)
    monkeypatch.delitem(sys.modules, "compiled_only")


def test_all_that_a_stage_has_imported_here_is_this_code() -> None:
    importlib.import_module("pipeline.stages.linprobe")
    check_running_code(read_code(ROOT).identities["code/linprobe.txt"], ROOT)
