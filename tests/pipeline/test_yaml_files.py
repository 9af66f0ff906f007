"""YAML files of every kind of damage: one line each that names the file, and no more memory."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config.cluster import load_resources
from pipeline.config.params import load_params
from pipeline.config.yaml_files import read_yaml, read_yaml_if_any, shared_mappings
from pipeline.errors import UserError
from pipeline.project import find_project

READERS: dict[str, Callable[[Path], object]] = {
    "params.yaml": load_params,
    "cluster.yaml": lambda path: load_resources(path, "pretrain"),
}


def laughs(line: str) -> bytes:
    """Return levels of which each names the one before nine times."""
    levels = [line.format(n=n, before=", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 10)]
    return "\n".join(["a0: &a0 {x: 1}", *levels]).encode()


DAMAGED = {
    "a list of itself": (b"a: &x [*x]", "line 1: .*an alias refers to what it is part of"),
    "a mapping of itself": (b"b: 1\na: &x {b: *x}", "line 2: .*an alias refers to what it is part"),
    "merged into itself": (b"a: &x {<<: *x}", "an alias refers to what it is part of"),
    "a billion laughs": (laughs("a{n}: &a{n} [{before}]"), "line 7: .*1,000,000 values"),
    "merged laughs": (laughs("a{n}: &a{n} {{<<: [{before}]}}"), "1,000,000 values"),
    "very deep": (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "deep": (b"a: " + b"[" * 60 + b"]" * 60, "nested more than 50 levels deep"),
    "a key twice": (b"suite: a\nsuite: b", 'line 2: .*duplicate key "suite"'),
    "a tab": (b"suite:\n\ta: 1", "line 2: .*that cannot start any token"),
    "NUL": (b"suite: a\0b", "special characters are not allowed"),
    "Latin-1": (b"a: 1\ntitle: \xe9t\xe9", "line 2: byte 0xe9 is not UTF-8; save"),
    "UTF-16": ("suite: a".encode("utf-16"), "byte 0xff is not UTF-8"),
    "a list": (b"- a", "got a list, expected a mapping"),
    "a word": (b"hello", "got 'hello', expected a mapping"),
    "two documents": (b"a: 1\n---\nb: 2", "line 2: .*another document"),
    "a brace": (b"{", "line 1: .*expected the node content"),
    "brackets that cross": (b"a: {b: [c}", "line 1: .*expected ',' or ']'"),
    "a number for a key": (b"1: a", "line 1: .*a key that is no text"),
    "a list for a key": (b"? [a]\n: b", "a key that is no text"),
    "nothing for a key": (b"~: a", "a key that is no text"),
    "a date": (b"title: 2024-01-01", r"kind timestamp \(in quotes it would be a text\)"),
    "a set": (b"a: !!set {x, y}", "kind set"),
    "bytes": (b"a: !!binary eHh4", "kind binary"),
    "an object": (b"a: !!python/object:os.system x", "kind os.system"),
    "a tag": (b"a: !foo x", "kind !foo"),
    "no number": (b"a: !!int x", "invalid literal"),
    "a huge number": (b"a: " + b"1" * 5000, "a number of 5000 digits"),
    "half a character": (b'a: "\\ud800"', "no character"),
    "no such anchor": (b"a: *x", "undefined alias 'x'"),
    "a number merged": (b"a: {<<: 3}", "for merging"),
}


@pytest.fixture(autouse=True)
def _a_gigabyte_more() -> Iterator[None]:
    """Let whatever grows without an end fail, and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, case: str) -> None:
    content, said = DAMAGED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        READERS[name](tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_readable_file_is_said(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(UserError, match=r"is a folder, expected a file; move it away"):
        READERS[name](path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot be read: Too many levels"):
        READERS[name](path)


def test_a_folder_named_params_yaml_is_the_problem_and_not_the_folder_around_it(
    tmp_path: Path,
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UserError, match=r"params\.yaml is a folder"):
        load_params(find_project(tmp_path).params_file)


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_no_suite_and_a_cluster_of_defaults(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match="is empty, expected a mapping of sections; restore"):
        load_params(path)
    assert load_resources(path, "pretrain") == load_resources(tmp_path / "none.yaml", "pretrain")


def test_a_dangling_link_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(UserError, match="does not exist"):
        read_yaml_if_any(tmp_path / "cluster.yaml")
    assert read_yaml_if_any(tmp_path / "none.yaml") == {}


def test_aliases_merges_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfa: &a {x: 1, y: [1, 2.5, ~, true]}\nb: {<<: *a, x: off}\nc: *a\n"
    )
    assert read_yaml(path) == {
        "a": {"x": 1, "y": [1, 2.5, None, True]},
        "b": {"x": "off", "y": [1, 2.5, None, True]},
        "c": {"x": 1, "y": [1, 2.5, None, True]},
    }


def test_mappings_that_dvc_would_change_together_are_found(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "knn:\n  mae: &knn {dataset: icons, grid_k: [10]}\n  asl: *knn\n  dle: {<<: *knn}\n"
        "experiments:\n  mae: &mae {model: {size: a}, betas: [1]}\n  asl: {<<: *mae, lr: 1}\n"
        "empty: [{}, {}]\n"
    )
    assert shared_mappings(read_yaml(path)) == [
        ("knn.mae", "knn.asl"),
        ("experiments.mae.model", "experiments.asl.model"),
    ]
