"""What cluster.yaml chooses by name: a row of a table, or `module:function` of the user's own."""

import importlib
from collections.abc import Callable, Mapping

from pipeline.config.suggest import hint, one_of


def load_named(name: str, table: Mapping[str, str]) -> object:
    """Import the function that a name stands for, and return what it returns.

    Args:
        name: A row's, or `module:function`.
        table: Name -> `module:function`.

    Raises:
        ValueError: Nothing of the kind; says what is expected.
    """
    target = table.get(name, name)
    module, _, function = target.partition(":")
    if not (module and function):
        raise ValueError(
            f"got {name!r}, expected one of {one_of(table)}, or module:function{hint(name, table)}"
        )
    try:
        made: Callable[[], object] = getattr(importlib.import_module(module), function)
        return made()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error
