"""What of the project's code a bundle's runs may load, and what they import of other projects."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.results.closure import PACKAGES, Codebase
from pipeline.results.imports import imported_names
from pipeline.results.meaning import parse

ENTRIES = ("pipeline.bundles.runner",)
LAUNCHER = "pipeline/bundles/launcher.py"
COMES_ALONG = frozenset({"numpy", "PIL", "tqdm", "yaml"})
"""Installed with torch, torchvision and timm."""
OPTIONAL = frozenset({"matplotlib"})
"""Something stands in for it: `undrawn.py`."""


def code_files(codebase: Codebase, modules: Iterable[tuple[str, str | None]]) -> dict[str, bytes]:
    """Return path -> content of the files that runs may load, those of the runner included.

    Args:
        codebase: All code.
        modules: Those of stages and recipes, each with what it loads by name.
    """
    wanted: set[str] = set()
    for module, variant in [*((entry, None) for entry in ENTRIES), *modules]:
        wanted |= codebase.closure(module, variant).keys()
    paths = {codebase.modules.get(name, name) for name in wanted if " -> " not in name}
    return {path: codebase.files[path] for path in sorted(paths)}


def packages_of(codebase: Codebase, module: str, variant: str | None) -> tuple[str, ...]:
    """Return the packages without which a stage's module cannot be imported, but for common ones.

    What is imported within a function is left out: only some data need it.
    """
    found: set[str] = set()
    for name in codebase.closure(module, variant):
        path = codebase.modules.get(name)
        if path is not None:
            found |= set(_imported_at_once(name, path, codebase.files[path]))
    return tuple(sorted(found - COMES_ALONG - OPTIONAL))


def _imported_at_once(name: str, path: str, source: bytes) -> Iterator[str]:
    tree = parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    is_package = Path(path).name == "__init__.py"
    for imported in imported_names(tree, name, is_package=is_package).names:
        top = imported.partition(".")[0]
        if top and top not in sys.stdlib_module_names and top not in PACKAGES:
            yield top
