"""Check what a configuration file holds, and turn what Pydantic finds into one line per problem."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.config.suggest import hint, one_of, printable, shown
from pipeline.errors import UserError

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
"""No unknown keys; a string is no number, though 12 is a float."""

Location = tuple[str | int, ...]

_PLAIN_MEMBER = re.compile(r"str|int|float|bool|none|(tuple|list)\[.*\]")
"""How Pydantic calls the members of a union that are no classes."""


class Problems:
    """Collects what is wrong with one file; each problem becomes one line.

    What several entries share through a YAML anchor is one problem.

    Args:
        path: The file.
        place: Location in it -> file and location where a person has written what stands there;
            absent: in the file itself.
    """

    def __init__(
        self, path: Path, place: Callable[[Location], tuple[Path, Location]] | None = None
    ) -> None:
        self.path = path
        self._place = place or (lambda location: (path, location))
        self._entries: dict[tuple[Path, Location, Location, str], list[str | int]] = {}

    def add(self, location: Location, text: str) -> None:
        """Note one problem at a dotted key: section, entry, rest."""
        path, location = self._place(location)
        entries = self._entries.setdefault((path, location[:1], location[2:], text), [])
        entries.extend(part for part in location[1:2] if part not in entries)

    @property
    def lines(self) -> list[str]:
        """One line per problem."""
        found = []
        for (path, section, rest, text), entries in self._entries.items():
            where = ".".join(map(str, (*section, *entries[:1], *rest))) or "(top level)"
            others = f" (and {', '.join(map(str, entries[1:]))})" if entries[1:] else ""
            found.append(printable(f"{path}: {where}{others}: {text}"))
        return found

    def add_all(
        self, error: ValidationError, raw: Any, fields: "FieldNames", at: Location = ()
    ) -> None:
        """Note every problem that Pydantic found in `raw`, or in the part of it at a location."""
        for detail in error.errors(include_url=False):
            location = clean_location((*at, *detail["loc"]), raw)
            if location is not None and detail["type"].startswith("union_tag"):
                location = (*location, detail.get("ctx", {})["discriminator"].strip("'"))
            if location is not None:
                self.add(location, describe(detail, location, raw, fields))

    def raise_if_any(self) -> None:
        """Raise one UserError with a line per problem."""
        if self._entries:
            raise UserError("\n".join(self.lines))


class FieldNames:
    """Valid keys next to an unknown one: asked from whoever knows the schema."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __call__(self, location: Location) -> list[str]:
        """Return the valid keys of the mapping at `location`."""
        return list(self._of(location))


def validate(adapter: TypeAdapter[Any], raw: Any) -> Any:
    """Validate strictly in JSON mode, in which a list is a tuple and 12 a float, "12" neither."""
    return adapter.validate_json(json.dumps(raw, default=str))


def at(raw: Any, location: Location) -> Any:
    """Return the value at a location; None where there is none."""
    for part in location:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            raw = raw[part]
            continue
        return None
    return raw


def clean_location(location: Location, raw: Any) -> Location | None:
    """Drop what Pydantic adds to a location: the tag or class of the union's chosen member.

    Returns:
        The keys as the file has them; None for a complaint of a member that was not meant.
    """
    kept: list[str | int] = []
    for position, part in enumerate(location):
        here = at(raw, tuple(kept))
        tag = {str(here.get(name)).lower() for name in ("source", "method", "kind")} if (
            isinstance(here, Mapping)
        ) else set()  # fmt: skip
        is_key = part in here if isinstance(here, Mapping) else isinstance(part, int)
        if not is_key and str(part).lower() in tag:
            continue
        if not is_key and str(part)[:1].isupper():
            return None
        if not is_key and _PLAIN_MEMBER.fullmatch(str(part)) and not isinstance(here, Mapping):
            if isinstance(here, list) and not str(part).endswith("]"):
                return None
            continue
        kept.append(part)
        if not is_key and position < len(location) - 1:
            return tuple(kept)
    return tuple(kept)


def describe(detail: Mapping[str, Any], location: Location, raw: Any, fields: FieldNames) -> str:
    """Return `got X, expected Y` with the remedy for one of Pydantic's findings."""
    kind, context, got = detail["type"], detail.get("ctx", {}), at(raw, location)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = fields(location[:-1])
        return "unknown key" + (hint(location[-1], valid) or f" (valid: {one_of(valid)})")
    if kind.startswith("missing"):
        return "is missing; add it"
    if kind == "union_tag_not_found":
        return "is missing; add it"
    if kind == "union_tag_invalid":
        return _not_one_of(got, context["expected_tags"])
    if kind == "literal_error":
        return _not_one_of(got, context["expected"].replace(" or ", ","))
    if kind == "value_error":
        return str(context["error"])
    return f"got {shown(got)}, expected {_expected(detail)}"


def _not_one_of(got: object, names: str) -> str:
    valid = [name.strip("' ") for name in names.split(",")]
    return f"got {shown(got)}, expected one of {one_of(valid)}{hint(got, valid)}"


_EXPECTED = {
    "a mapping": ("dict_type", "model_type", "dataclass_type", "model_attributes_type"),
    "a list": ("list_type", "tuple_type", "set_type"),
    "a text": ("string_type",),
    "a whole number": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing", "decimal_type"),
    "a finite number": ("finite_number",),
    "true or false": ("bool_type", "bool_parsing"),
    "nothing": ("none_required",),
}
"""What a value has to be, in the words of a YAML file -> Pydantic's names for its absence."""


def _expected(detail: Mapping[str, Any]) -> str:
    for words, kinds in _EXPECTED.items():
        if detail["type"] in kinds:
            return words
    return str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def each(section: Any) -> Iterator[tuple[Any, Any]]:
    """Return the items of a section, none where it is not a mapping."""
    return iter(section.items() if isinstance(section, Mapping) else ())
