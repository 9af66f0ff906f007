"""Recipes as JSON, and back without the library that reads params.yaml. Standard library only."""

import dataclasses
from collections.abc import Callable
from typing import Any

CLASS, TUPLE = "__class__", "__tuple__"
RECIPES = "asl_core.recipes"


def to_plain(value: Any) -> Any:
    """Return a frozen dataclass, whatever it holds, as JSON values that say what they are of.

    Raises:
        TypeError: It holds something that a recipe has not.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {CLASS: f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, tuple):
        return {TUPLE: [to_plain(item) for item in value]}
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is no value of a recipe")


def from_plain(value: Any, load: Callable[[str], Any]) -> Any:
    """Return what `to_plain` was given; of classes only those of recipes.

    Args:
        value: The JSON values.
        load: Imports a module.

    Raises:
        ValueError: It names another class, or a recipe refuses its values.
    """
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(from_plain(item, load) for item in value[TUPLE])
    fields = {name: from_plain(item, load) for name, item in value.items() if name != CLASS}
    if CLASS not in value:
        return fields
    module, _, name = str(value[CLASS]).partition(":")
    if not module.startswith(f"{RECIPES}."):
        raise ValueError(f"{value[CLASS]} is no recipe")
    return getattr(load(module), name)(**fields)


def modules_in(value: Any) -> set[str]:
    """Return the modules that `from_plain` imports."""
    if isinstance(value, list):
        return {module for item in value for module in modules_in(item)}
    if not isinstance(value, dict):
        return set()
    own = {str(value[CLASS]).partition(":")[0]} if CLASS in value else set[str]()
    return own | modules_in([item for name, item in value.items() if name != CLASS])
