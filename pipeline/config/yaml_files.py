"""Read a YAML file as DVC reads it, or say in one line why it cannot be."""

import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.error import YAMLError

from pipeline.config.suggest import printable, shown
from pipeline.errors import UserError

MOST_VALUES = 1_000_000
"""A file of a few aliases that refer to each other can stand for more than any memory holds."""
DEEPEST = 50
LONGEST_NUMBER = 18
PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")
}
"""Kinds of values that JSON has too; DVC and the recipes know no others."""
KEYS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}
"""Kinds of keys: texts, and `<<`."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping with the parser DVC uses, so that both see the same values.

    Raises:
        UserError: The file is missing, is not YAML, or is not a mapping of texts to plain values.
    """
    content = _load(path)
    if content is None:
        raise UserError(f"{path} is empty, expected a mapping of sections; restore it from git")
    return content


def read_yaml_if_any(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; empty where there is no such file, or nothing but comments in it.

    Raises:
        UserError: As for `read_yaml`.
    """
    return (_load(path) or {}) if os.path.lexists(path) else {}


def shared_mappings(content: Any) -> list[tuple[str, str]]:
    """Return pairs of places at which one and the same mapping stands, by an alias (`*name`).

    Args:
        content: Of a YAML file, as it was read.

    Returns:
        `knn.mae`, where it is written, and `knn.asl`, in the file's order. `dvc exp run -S` changes
        a mapping at all of its places or, as the last of them wins, at none.
    """
    first: dict[int, str] = {}
    found: list[tuple[str, str]] = []

    def look(part: Any, place: str) -> None:
        if isinstance(part, dict) and part:
            if id(part) in first:
                found.append((first[id(part)], place))
                return
            first[id(part)] = place
        items = part.items() if isinstance(part, dict) else enumerate(part)
        for key, value in items:
            if isinstance(value, dict | list):
                look(value, f"{place}.{key}" if place else str(key))

    look(content, "")
    return found


def _load(path: Path) -> dict[str, Any] | None:
    text = _read_text(path)
    parser = YAML(typ="safe", pure=True)
    try:
        node = parser.compose(text)
        _Check(path).count(node)
        content = None if node is None else parser.constructor.construct_document(node)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise _not_valid(path, reason, mark) from error
    except RecursionError:
        raise _not_valid(path, "nested too deeply") from None
    except (ValueError, LookupError) as error:  # `!!int x`
        raise _not_valid(path, str(error).split("\n")[0]) from error
    if not isinstance(content, dict | None):
        kind = "a list" if isinstance(content, list) else shown(content)
        raise UserError(
            f"{path}: got {kind}, expected a mapping of sections; write `name: value` lines"
        )
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; go to a folder that has one") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a file; move it away") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path} line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; make it readable") from None


def _not_valid(path: Path, reason: str, mark: Any = None) -> UserError:
    where, remedy = (
        ("", "correct it") if mark is None else (f" line {mark.line + 1}", "fix that line")
    )
    return UserError(f"{path}{where}: not valid YAML: {printable(reason)[:200]}; {remedy}")


class _Check:
    """Looks at a file as parsed, before anything is built from it that aliases make enormous.

    Args:
        path: The file, for what is said of it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[int, int] = {}
        """Values that a node stands for, by its identity; an alias is the node that it names."""

    def count(self, node: Node | None, depth: int = 0) -> int:
        """Return how many values a node stands for.

        Raises:
            UserError: Too many, too deep, a part of itself, or of a kind that JSON does not have.
        """
        if node is None or id(node) in self._counts:
            count = 1 if node is None else self._counts[id(node)]
            if node is not None and count == 0:
                raise self._refusal(node, "an alias refers to what it is part of")
            return count
        if depth > DEEPEST:
            raise self._refusal(node, f"nested more than {DEEPEST} levels deep")
        self._counts[id(node)] = 0  # being counted
        count = 1 + sum(self.count(part, depth + 1) for part in self._parts(node))
        if count > MOST_VALUES:
            raise self._refusal(node, f"aliases make more than {MOST_VALUES:,} values of it")
        self._counts[id(node)] = count
        return count

    def _parts(self, node: Node) -> list[Node]:
        """Return the values in a node, after a look at the node itself and its keys."""
        kind = str(node.tag).rpartition(":")[2]
        if isinstance(node, ScalarNode):
            if str(node.tag).endswith(":int") and len(node.value) > LONGEST_NUMBER:
                raise self._refusal(node, f"a number of {len(node.value)} digits")
            if any("\ud800" <= sign <= "\udfff" for sign in node.value):
                raise self._refusal(node, "half of a surrogate pair is no character")
        if node.tag not in PLAIN:
            raise self._refusal(node, f"a value of the kind {kind} (in quotes it would be a text)")
        if not isinstance(node, MappingNode):
            return node.value if isinstance(node, SequenceNode) else []
        for key, _ in node.value:
            if key.tag not in KEYS:
                raise self._refusal(key, "a key that is no text (put it in quotes)")
        return [value for _, value in node.value]

    def _refusal(self, node: Node, reason: str) -> UserError:
        return _not_valid(self._path, reason, node.start_mark)
