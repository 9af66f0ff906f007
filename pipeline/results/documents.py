"""Run-cache documents of DVC as plain data: {cmd, deps, params, outs}. Pure, no DVC.

A dep is {path, hash, md5, size, nfiles}; of one that does not exist yet only path and hash are
known. Keys are in the order in which DVC writes them.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.stages.table import CODE_FOLDER

Document = dict[str, Any]
Hashes = Mapping[str, Mapping[str, Any]]
"""Path -> {md5, size, nfiles}."""


def missing_deps(document: Document) -> list[str]:
    """Return the paths of the inputs whose content is not known yet."""
    return [dep["path"] for dep in document.get("deps", []) if "md5" not in dep]


def with_deps(document: Document, hashes: Hashes) -> Document:
    """Return a document with the inputs' hashes filled in; those it has stay."""
    filled = copy.deepcopy(document)
    for dep in filled.get("deps", []):
        if "md5" not in dep and dep["path"] in hashes:
            dep.update(_ordered(hashes[dep["path"]]))
    return filled


def with_outs(document: Document, hashes: Hashes) -> Document:
    """Return the document of a result: every output with its hash, sorted by path.

    Raises:
        KeyError: An output has no hash.
    """
    filled = copy.deepcopy(document)
    outs = sorted(filled["outs"], key=lambda out: out["path"])
    filled["outs"] = [
        {"path": out["path"], "hash": "md5", **_ordered(hashes[out["path"]])} for out in outs
    ]
    return filled


def hashes_of(items: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return path -> {md5, size, nfiles} of deps or outs that have a hash."""
    return {item["path"]: _ordered(item) for item in items if "md5" in item}


def recipe_id(document: Document, upstream: Mapping[str, str]) -> str:
    """Return what a run can be told by before its inputs exist.

    Args:
        document: What is known of it.
        upstream: Path of an input that another stage makes -> recipe of that run.
    """
    deps = [[dep["path"], upstream.get(dep["path"]) or dep["md5"]] for dep in document["deps"]]
    content = [document["cmd"], deps, document.get("params"), [o["path"] for o in document["outs"]]]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def code_of(document: Document) -> tuple[str, str]:
    """Return path and md5 of the text that stands for a run's code.

    Raises:
        KeyError: The document has none.
    """
    for dep in document["deps"]:
        if dep["path"].startswith(f"{CODE_FOLDER}/"):
            return dep["path"], dep["md5"]
    raise KeyError("a run depends on the text that stands for its code")


def differences(old: Document, new: Document) -> list[str]:
    """Say in what two runs of a stage differ: `experiments.asl.lr 0.001 -> 0.002`, `data/icons`."""
    found = ["command"] if old.get("cmd") != new.get("cmd") else []
    before, after = dict(_flat(old.get("params", {}))), dict(_flat(new.get("params", {})))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            found.append(f"{key} {before.get(key, 'absent')} -> {after.get(key, 'absent')}")
    hashes = ({dep["path"]: dep.get("md5") for dep in d.get("deps", [])} for d in (old, new))
    before, after = hashes
    found += [path for path in sorted(before.keys() | after.keys())
              if before.get(path) != after.get(path)]  # fmt: skip
    if [out["path"] for out in old.get("outs", [])] != [out["path"] for out in new.get("outs", [])]:
        found.append("outputs")
    return found


def _flat(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return dotted keys and plain values of every params file."""
    for values in params.values():
        for key, value in values.items():
            yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _ordered(hashes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a file in DVC's order, without what is absent."""
    names = ("md5", "size", "nfiles", "isexec")
    return {name: hashes[name] for name in names if hashes.get(name) is not None}
