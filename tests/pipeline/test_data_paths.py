"""Where the folders of data sets are looked for, and how soon one is missed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asl_core.data.sources.catalogue import open_source
from asl_core.errors import InputError
from asl_core.recipes.datasets import Icons, ImageFolder, Union_, folders_of
from pipeline.project import Project, data_root

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets: {photos: {source: imagefolder, path: $PHOTOS/of me}}
experiments: {}
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos", "/data/photos"),
        ("/photos", "/photos"),
        ("~/photos", "/home/me/photos"),
        ("$PHOTOS/of me", "/pictures/of me"),
        ("${PHOTOS}", "/pictures"),
        ("$NOT_SET/x", "/data/$NOT_SET/x"),
        ("a~/b", "/data/a~/b"),
    ],
)
def test_home_and_variables_are_expanded(
    monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PHOTOS", "/pictures")
    dataset = ImageFolder(path=path)
    assert folders_of(dataset, Path("/data")) == [Path(expected)]
    assert folders_of(Union_(members=(dataset, Icons())), Path("/data")) == [Path(expected)]
    assert folders_of(Icons(), Path("/data")) == []
    assert dataset.path == path  # the identity of what is packed is the same on every machine
    with pytest.raises(InputError, match="does not exist") as caught:
        open_source(dataset, Path("/data"))
    assert str(caught.value).startswith(f"{expected} ")


def test_the_data_folder_may_begin_with_home(monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(Path("/lab/asl"), Path("/lab/asl"))
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("ASL_DATA", "~/data")
    assert data_root(project) == Path("/home/me/data")
    monkeypatch.delenv("ASL_DATA")
    assert data_root(project) == Path("/lab/shared/data")


def test_validate_notes_a_folder_that_is_missing_unless_it_is_packed_already(
    results, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.write(PARAMS)
    monkeypatch.chdir(results.folder)
    monkeypatch.setenv("PHOTOS", str(results.folder / "pictures"))
    say("expand")
    note = f"note: prepare@photos needs {results.folder}/pictures/of me, which does not exist; corr"
    assert note in say("validate")
    (results.folder / "data/photos").mkdir(parents=True)
    assert "note" not in say("validate")


def test_a_wrong_path_is_said_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.cli import run_command\n"
        "first = run_command(['run', 'prepare', 'photos'])\n"
        "print(first, run_command(['import-encoder', 'x']), 'torch' in sys.modules)"
    )
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text(PARAMS)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 2 False\n"
    first, second = done.stderr.splitlines()
    assert "$PHOTOS/of me, which does not exist; correct its `path` in params.yaml" in first
    assert second == "asl-pipe: x is not a file; give the path of a checkpoint"
