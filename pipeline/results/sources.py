"""Whether the files that datasets are packed from are still those that they were packed from.

`sources/<dataset>.txt` in a suite's folder says what is there: how many files in each folder, their
names and sizes. `prepare` depends on it, so that DVC packs a source anew when it has changed. Where
a source is not there, as after a pull, the text stays. Times are no part of it, for each copy has
its own; the scratch folder remembers them, and a file that was edited in place without changing its
size adds a line.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from asl_core.recipes.packing import Packing
from asl_core.recipes.undivided import HuggingFace
from pipeline.config.params import load_params
from pipeline.config.yaml_files import read_yaml
from pipeline.project import Project, data_root
from pipeline.results.documents import hashes_of
from pipeline.results.port import ResultCache
from pipeline.stages.table import PREPARE
from pipeline.writing import write_bytes, write_json

_DIGITS = 20
_THREADS = 16
"""On a network filesystem asking for a file's size is waiting."""
_TOGETHER = 64
"""Files that a thread is given at a time: handing over one takes longer than a local disk does."""
_EDITED = "edited in place"
_NAMES = "names and sizes"


@dataclass(frozen=True)
class _Listing:
    """What a source's folders hold now.

    Attributes:
        text: A line for each folder or file that the source reads.
        times: Digest of when each file was last written.
        found: Whether anything of it is there.
    """

    text: str
    times: str
    found: bool


def reads_disk(suite: Path) -> bool:
    """Say whether a suite has a dataset that is packed from files, however wrong its params are."""
    file = suite / "params.yaml"
    datasets = read_yaml(file).get("datasets") if file.is_file() else None
    entries = list(datasets.values()) if isinstance(datasets, Mapping) else []
    for entry in entries:
        if isinstance(entry, Mapping):
            if "path" in entry:
                return True
            members = entry.get("members")
            entries += members if isinstance(members, list) else []
    return False


def refresh_sources(project: Project, datasets: Mapping[str, object], cache: ResultCache) -> None:
    """Bring texts of `sources/` up to what is on the disk. What is right stays untouched.

    Args:
        project: The project and the suite.
        datasets: Recipes by name; texts of others are left alone.
        cache: Has the texts that dvc.lock knows.

    Raises:
        OSError: A folder cannot be read.
    """
    for key, recipe in datasets.items():
        _refresh(project, key, recipe, cache)


def refresh_all_sources(project: Project, cache: ResultCache) -> None:
    """Bring `sources/` of a suite up to what is on the disk, for the datasets that it has.

    Raises:
        UserError: params.yaml is wrong.
        OSError: A folder cannot be read.
    """
    datasets = load_params(project.params_file).datasets
    refresh_sources(project, datasets, cache)
    wanted = {project.suite / _path(key, recipe) for key, recipe in datasets.items()}
    for folder in {path.parent for path in wanted}:
        for left in set(folder.glob("*.txt")) - wanted:
            left.unlink(missing_ok=True)


def changed_source(
    project: Project, path: str, recorded: str | None, cache: ResultCache
) -> list[str]:
    """Say how a source differs from what a dataset was packed from, as far as that is known.

    Args:
        project: The project and the suite.
        path: `sources/coco.txt`.
        recorded: md5 of the text that it was packed under.
        cache: Where the earlier text is.
    """
    new = (project.suite / path).read_bytes()
    if recorded == hashlib.md5(new).hexdigest():
        return []
    old = None if recorded is None else cache.read(project.root, recorded)
    return [path] if old is None else [f"source {each}" for each in changes(old, new.decode())]


def changed_since(text: str, recipe: object, root: Path) -> list[str]:
    """Say how the files that a recipe reads differ from what a text of `sources/` says.

    It says nothing where the source could not be seen, on a node without those disks.

    Args:
        text: The text.
        recipe: The dataset's.
        root: Folder of relative paths.
    """
    return changes(_without_edits(text), _list(recipe, root).text) if _NAMES in text else []


def changes(old: str, new: str) -> list[str]:
    """Say in what two texts of `sources/` differ: `train: 12 files, 90 bytes -> 11 files, ...`."""
    before, after = _lines(old), _lines(new)
    found = []
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name, "not read"), after.get(name, "not read")
        if was != now:
            shown = [part.partition(f", {_NAMES}")[0] for part in (was, now)]
            same = shown[0] == shown[1]
            found.append(f"{name}: {'other files' if same else ' -> '.join(shown)}")
    return found


def _lines(text: str) -> dict[str, str]:
    parts = (line.partition(": ") for line in text.splitlines())
    return {name: said for name, _, said in parts}


def _refresh(project: Project, key: str, recipe: object, cache: ResultCache) -> None:
    file = project.suite / _path(key, recipe)
    state = project.scratch / "sources" / f"{project.name}-{key}.json"
    try:
        here = old = file.read_text(encoding="utf-8")
    except OSError:  # DVC removes outputs of a stage before it runs it
        here, old = None, _recorded(project, key, recipe, cache)
    listing = _list(recipe, data_root(project))
    same = old is not None and _without_edits(old) == listing.text
    known = _read_times(state)
    text = listing.text
    if old is not None and not listing.found:
        text = old
    elif same and old is not None:
        text = old if known in (None, listing.times) else (
            f"{listing.text}{_EDITED}: times {listing.times}\n"
        )  # fmt: skip
    if text != here:
        file.parent.mkdir(exist_ok=True)
        write_bytes(file, text.encode())
    if known != listing.times:
        state.parent.mkdir(parents=True, exist_ok=True)
        write_json(state, {"times": listing.times})


def _path(key: str, recipe: object) -> str:
    return PREPARE.input_paths(key, recipe)["source"]


def _recorded(project: Project, key: str, recipe: object, cache: ResultCache) -> str | None:
    """Return the text that a dataset was packed under, as far as dvc.lock and the cache know it."""
    lock = project.suite / "dvc.lock"
    stages = read_yaml(lock).get("stages", {}) if lock.is_file() else {}
    deps = stages.get(PREPARE.run_name(key), {}).get("deps", [])
    md5 = hashes_of(deps).get(_path(key, recipe), {}).get("md5")
    return None if md5 is None else cache.read(project.root, str(md5))


def _without_edits(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(f"{_EDITED}:"))


def _read_times(state: Path) -> str | None:
    try:
        return str(json.loads(state.read_text(encoding="utf-8"))["times"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- what is there


def _list(recipe: object, root: Path) -> _Listing:
    """Look at all files that a recipe reads."""
    lines, times, found = [], hashlib.sha256(), False
    assert isinstance(recipe, Packing)
    for shown, places in recipe.places(root):
        files = sorted(each for place in places for each in _files(place))
        there = any(place.exists() for place in places)
        found |= there
        lines.append(f"{shown}: {_summary(files) if there else 'not there'}\n")
        for name, _, written in files:
            times.update(f"{name}\0{written}\n".encode(errors="surrogateescape"))
    if not lines and isinstance(recipe, HuggingFace):
        return _Listing("fetched by its name and revision: reads no files\n", "", found=True)
    if not lines:
        return _Listing("composed by the project: reads no files\n", "", found=True)
    return _Listing("".join(lines), times.hexdigest()[:_DIGITS], found)


def _summary(files: list[tuple[str, int, int]]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    count = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    total = sum(size for _, size, _ in files)
    return f"{count}, {total} bytes, {_NAMES} {digest.hexdigest()[:_DIGITS]}"


def _files(place: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, bytes and time of each visible file below a folder, or of one file.

    Links are followed; one that leads nowhere has a size of -1, and so has a folder that cannot be
    read: packing says what that means.
    """
    if place.is_file():
        yield _facts(place.name, str(place))
        return
    seen: set[tuple[int, int]] = set()
    names: list[tuple[str, str]] = []
    waiting = [("", str(place))] if place.is_dir() else []
    while waiting:
        prefix, folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link upwards
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except PermissionError:
            yield prefix, -1, 0
            continue
        for entry in found:
            # a link in a circle is no folder either, but is_dir would raise
            below = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            target = waiting if below else names
            target.append((f"{prefix}{entry.name}{'/' * below}", entry.path))
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = (names[start : start + _TOGETHER] for start in range(0, len(names), _TOGETHER))
        for found in pool.map(lambda part: [_facts(*each) for each in part], parts):
            yield from found


def _facts(name: str, path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:  # it is gone, leads nowhere, or lies in a folder that may not be entered
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns
