"""Files that datasets are packed from: a change is noticed, a copy is none."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run_command
from pipeline.project import Project
from pipeline.results.sources import changes, refresh_sources

PARAMS = """
suite: own
title: Own
scale: reduced
tables: []
datasets:
  photos: {source: imagefolder, path: photos}
  icons: {source: icons, train: 8, test: 4}
  both:
    source: union
    members:
      - {source: icons, train: 8, test: 4}
      - {source: imagefolder, path: photos}
experiments: {}
"""


def make_photos(data: Path) -> None:
    for number, folder in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (data / "photos" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            (data / "photos" / folder / name).write_bytes(bytes(10 + number))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    make_photos(tmp_path / "data")
    monkeypatch.setenv("ASL_DATA", str(tmp_path / "data"))
    return Project(root, root)


def look(project: Project) -> str:
    refresh_sources(project)
    return (project.suite / "sources/photos.txt").read_text()


def touch(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def test_a_text_counts_files_and_stays_as_long_as_they_do(project: Project) -> None:
    text = look(project)
    assert text.startswith("photos/train: 4 files, 42 bytes, names and sizes ")
    assert "photos/val: 4 files, 50 bytes" in text
    before = (project.suite / "sources/photos.txt").stat()
    assert look(project) == text
    after = (project.suite / "sources/photos.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    icons = (project.suite / "sources/icons.txt").read_text()
    assert icons == "composed by the project: reads no files\n"
    assert (project.suite / "sources/both.txt").read_text() == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "train/cat/a.png").unlink(), "4 files, 42 bytes -> 3 files"),
        (lambda folder: (folder / "train/cat/c.png").write_bytes(b"1"), "-> 5 files, 43 bytes"),
        (lambda folder: (folder / "train/cat/a.png").write_bytes(b""), "-> 4 files, 32 bytes"),
        (lambda folder: (folder / "train/dog").rename(folder / "train/cow"), "other files"),
        (lambda folder: shutil.rmtree(folder / "val"), "4 files, 50 bytes -> not there"),
        (lambda folder: (folder / "train/x.png").symlink_to("nowhere"), "-> 5 files, 41 bytes"),
    ],
)  # fmt: skip
def test_every_change_of_names_and_sizes_is_noticed_and_counted(
    project: Project, change: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    old = look(project)
    change(tmp_path / "data/photos")
    new = look(project)
    [line] = changes(old, new)
    assert said in line
    assert look(project) == new


def test_an_edit_that_keeps_the_size_is_noticed_once(project: Project, tmp_path: Path) -> None:
    old = look(project)
    (tmp_path / "data/photos/train/cat/a.png").write_bytes(b"0123456789")
    touch(tmp_path / "data/photos/train/cat/a.png", 2_000_000_000)
    new = look(project)
    assert new.startswith(old)
    assert len(changes(old, new)) == 1
    assert look(project) == new
    touch(tmp_path / "data/photos/train/cat/a.png", 2_000_000_001)
    assert look(project) not in (old, new)


def test_a_copy_with_other_times_and_another_place_is_the_same(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = look(project)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(project.scratch)  # another person's
    monkeypatch.setenv("ASL_DATA", str(tmp_path / "elsewhere"))
    assert look(project) == text


def test_a_source_that_is_not_there_changes_nothing(project: Project, tmp_path: Path) -> None:
    text = look(project)
    (tmp_path / "data/photos").rename(tmp_path / "data/unplugged")
    assert look(project) == text
    (project.suite / "sources/photos.txt").unlink()
    assert "photos/train: not there" in look(project)


def test_hidden_files_do_not_count_and_links_upwards_end(project: Project, tmp_path: Path) -> None:
    old = look(project)
    (tmp_path / "data/photos/train/.DS_Store").write_bytes(b"1")
    (tmp_path / "data/photos/train/cat/up").symlink_to("..")
    assert look(project) == old


def test_texts_of_datasets_that_are_gone_go_too(project: Project) -> None:
    look(project)
    text = PARAMS.replace("  icons: {source: icons, train: 8, test: 4}\n", "")
    project.params_file.write_text(text)
    refresh_sources(project)
    found = {path.name for path in (project.suite / "sources").iterdir()}
    assert found == {"photos.txt", "both.txt"}


def test_dvc_repro_packs_a_changed_source_anew(
    stub_project: Path, call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_photos(tmp_path / "data")
    (stub_project / "params.yaml").write_text(PARAMS)
    here = {"ASL_DATA": str(tmp_path / "data"), "PYTHONPATH": str(stub_project)}

    def packed() -> list[str]:
        done = call("dvc", "repro", "prepare", cwd=stub_project, **here)
        assert done.returncode == 0, done.stderr
        ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
        return sorted(line.split("'")[1] for line in ran if "code" not in line)

    for name, value in here.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(stub_project)
    assert run_command(["expand"]) == 0  # stage `code` looks at the source each time
    assert packed() == ["prepare@both", "prepare@icons", "prepare@photos"]
    assert packed() == []
    (tmp_path / "data/photos/train/cat/a.png").unlink()
    (tmp_path / "data/photos/train/dog/new.png").write_bytes(bytes(10))
    capsys.readouterr()
    assert run_command(["validate"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == ["datasets.photos", "datasets.both"]
    assert "other files" in lines[0]  # as many, as large
    assert packed() == ["prepare@both", "prepare@photos"]
    assert packed() == []
