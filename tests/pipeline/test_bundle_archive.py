"""What is taken out of an archive from elsewhere: what its list says, and nothing anywhere else."""

import dataclasses
import importlib
import stat
import zipfile
from pathlib import Path

import pytest
from bare_environment import PACKAGES

from asl_core.recipes.catalogue import RECIPES
from asl_core.recipes.models import MODELS, Vit
from pipeline.bundles import undrawn
from pipeline.bundles.archive import Archive, ArchiveError, is_plain_path, write_archive
from pipeline.bundles.contents import packages_of
from pipeline.bundles.manifest import Mark, mark_bytes
from pipeline.bundles.plain import from_plain, to_plain
from pipeline.config.params import METHODS
from pipeline.results.closure import Codebase
from pipeline.results.code import read_code
from pipeline.stages.table import DETECT, EMBED, EVALUATIONS, FEWSHOT, PRETRAIN, Stage

NONE = frozenset[str]()
EXTRA = {DETECT.name: {"faster_coco_eval"}, FEWSHOT.name: {"sklearn"}, EMBED.name: {"pyarrow"}}
"""What a stage imports besides the four packages that all need."""
ROOT = Path(__file__).parents[2]


def made(path: Path, **entries: bytes) -> Path:
    write_archive(path, {name.replace("__", "/"): content for name, content in entries.items()})
    return path


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/", "", "c:/a", "a\\b", "a\0b"]
)
def test_a_path_that_leads_elsewhere_is_no_plain_one(name: str) -> None:
    assert not is_plain_path(name)
    assert is_plain_path("runs/pretrain@asl/details/journal/attempt-000.jsonl")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "folder/"])
def test_an_entry_that_leads_out_is_refused_before_anything_is_read(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "in" / "evil.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"content")
    with pytest.raises(ArchiveError, match="leads out of it"):
        Archive(path)
    assert [each.name for each in tmp_path.rglob("*")] == ["in", "evil.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="a link or a device"):
        Archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(ArchiveError, match="has a twice"):
        Archive(path)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "whole.zip", a=b"x" * 10_000)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match="no whole zip archive; copy it once more"):
        Archive(path)
    with pytest.raises(ArchiveError, match="No such file"):
        Archive(tmp_path / "missing.zip")


def test_what_the_list_does_not_say_is_refused(tmp_path: Path) -> None:
    marks = {"a": mark_bytes(b"1"), "b": mark_bytes(b"22")}
    for entries, said in (
        ({"a": b"1"}, "b: it is missing"),
        ({"a": b"1", "b": b"22", "c": b"3"}, "c: its list does not name it"),
        ({"a": b"1", "b": b"2"}, "b has 1 bytes, its list says 2"),
    ):
        path = made(tmp_path / "archive.zip", **entries)
        with Archive(path) as archive, pytest.raises(ArchiveError, match=said):
            archive.check_list(marks, NONE)


def test_content_of_the_right_size_is_compared_too(tmp_path: Path) -> None:
    with Archive(made(tmp_path / "archive.zip", a__b=b"right")) as archive:
        archive.extract("a/b", tmp_path / "out" / "b", mark_bytes(b"right"))
        with pytest.raises(ArchiveError, match="is not what the list says"):
            archive.extract("a/b", tmp_path / "out" / "c", mark_bytes(b"wrong"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_an_entry_that_unpacks_to_more_than_it_says_ends_at_what_it_says(tmp_path: Path) -> None:
    bomb = made(tmp_path / "bomb.zip", a=b"\0" * 5_000_000)
    assert bomb.stat().st_size < 50_000
    with Archive(bomb) as archive:
        with pytest.raises(ArchiveError, match="is not what the list says"):
            archive.extract("a", tmp_path / "out", Mark(1000, "0" * 64))
        with pytest.raises(ArchiveError, match="has more than 100 bytes"):
            archive.read("a", 100)
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_damage_wherever_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    path, name = tmp_path / "archive.zip", "a.npz"  # not compressed: every byte counts
    write_archive(path, {name: content})
    whole = path.read_bytes()
    start = whole.index(content)
    for place in range(start, start + len(content), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with Archive(path) as archive, pytest.raises(ArchiveError, match="is damaged"):
            archive.extract(name, tmp_path / "out", mark_bytes(content))
        assert not (tmp_path / "out").exists()


def test_every_recipe_is_the_same_as_plain_values(tmp_path: Path) -> None:
    vit = next(iter(MODELS.values()))
    for declared in RECIPES.values():
        fields = {field.name for field in dataclasses.fields(declared)}
        recipe = declared(dataset="icons", **({"model": vit} if "model" in fields else {}))
        assert from_plain(to_plain(recipe), importlib.import_module) == recipe
    for stage in EVALUATIONS:
        assert stage.recipe is not None
        recipe = stage.recipe(dataset="icons")
        again = from_plain(to_plain(recipe), importlib.import_module)
        assert again == recipe
        assert type(again) is type(recipe)
    assert isinstance(from_plain(to_plain(vit), importlib.import_module), Vit)


@pytest.mark.parametrize("stage", [PRETRAIN, *EVALUATIONS], ids=lambda stage: stage.name)
def test_a_stage_needs_four_packages_and_says_which_more(stage: Stage) -> None:
    codebase = Codebase(read_code(ROOT).files)
    extra = EXTRA.get(stage.name, set())
    found = {
        package for variant in (METHODS if stage is PRETRAIN else [None])
        for package in packages_of(codebase, stage.module, variant)
    }  # fmt: skip
    assert extra <= found <= extra | set(PACKAGES)


def test_no_other_class_is_made_of_plain_values() -> None:
    with pytest.raises(ValueError, match="is no recipe"):
        from_plain({"__class__": "pathlib:Path"}, importlib.import_module)
    with pytest.raises(TypeError, match="Path is no value of a recipe"):
        to_plain((1, Path()))


def test_without_matplotlib_axes_have_the_shapes_of_matplotlib(tmp_path: Path) -> None:
    figure, axes = undrawn._subplots(2, 3, squeeze=False)
    assert axes.shape == (2, 3)
    assert undrawn._subplots(1, 4)[1].shape == (4,)
    low, high = undrawn._subplots()[1].get_ylim()
    assert low < high
    axes[0, 1].imshow([1], cmap="any").anything.at_all(2)
    figure.savefig(tmp_path / "picture.png", dpi=110)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
