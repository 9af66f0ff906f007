"""A module and all that it imports as a package of another name, to be carried elsewhere.

The name holds a digest of the content: the project, and several such packages, can be loaded beside
each other.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.results.imports import imported_names
from pipeline.results.meaning import parse

DIGITS = 12


@dataclass(frozen=True)
class RenamedPackage:
    """Modules under another name.

    Attributes:
        name: Of the package.
        files: Path -> content; each path begins with that name.
    """

    name: str
    files: dict[str, bytes]

    def module(self, original: str) -> str:
        """Return what a module of the original package is called."""
        return f"{self.name}.{original.partition('.')[2]}"


def renamed_package(entry: str, prefix: str) -> RenamedPackage:
    """Return a module of a package with every module of it that it imports, directly or not.

    What packages run when they are imported is left out: their modules are imported by full names.

    Args:
        entry: Name of the module.
        prefix: How the new name begins.
    """
    package = entry.partition(".")[0]
    sources = dict(sorted(_sources(entry, package)))
    digest = hashlib.sha256(repr(sources).encode()).hexdigest()[:DIGITS]
    name = f"{prefix}_{digest}"
    imports = re.compile(rf"^(\s*(?:from|import)\s+){package}(?=[.\s])".encode(), re.MULTILINE)
    files: dict[str, bytes] = {}
    for module, source in sources.items():
        path = Path(name, *module.split(".")[1:]).with_suffix(".py")
        files[path.as_posix()] = imports.sub(rb"\g<1>" + name.encode(), source)
        for folder in [*path.parents][:-1]:
            files[(folder / "__init__.py").as_posix()] = b""
    return RenamedPackage(name, files)


def _sources(entry: str, package: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a module and of those that it imports."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    root = Path(next(iter(found.submodule_search_locations)))
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in seen or not name.startswith(f"{package}.") or not path.is_file():
            continue  # another package, or what is imported from a module
        seen.add(name)
        source = path.read_bytes()
        yield name, source
        waiting += imported_names(parse(source), name, is_package=False).names
