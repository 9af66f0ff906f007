"""Whether the code that runs here is the code that a result is going to be filed under.

They differ where the packages are imported from another folder than the project's: the environment
of another checkout, a variable that did not reach a job, the copy in which DVC runs an experiment.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pipeline.errors import NotFinishedError, UserError
from pipeline.results.closure import parse_code_text
from pipeline.results.meaning import IMPORTS_TABLE, meaning, short_digest

_TO_FIRST_IMPORT_S = 0.02
"""What Python needs at least until it imports anything of ours."""
_COMPILED_AFTER_S = 2.0
"""Compiled files name the time of their source in whole seconds."""


def check_running_code(text: str, root: Path) -> None:
    """Compare each module that was imported, and each file that it reads, with a text of `code/`.

    The same code imported from elsewhere is the same code. Call it before a result is kept too:
    modules may be imported late.

    Args:
        text: What stands for the stage's code.
        root: Folder of the packages that the text was made from.

    Raises:
        UserError: Something else was imported than the text says; names both places.
    """
    for loaded, relative in _differing(text):
        expected = root / relative
        # the same file has been edited since the text was read: for the caller to notice
        if loaded.resolve() != expected.resolve():
            raise UserError(
                f"the code that runs is not the code of this project: {loaded} was loaded, but "
                f"the result would be recorded as made by {expected}; give this checkout an "
                f"environment of its own (make), or set PYTHONPATH={root}"
            )


def check_loaded_code(text: str, root: Path) -> None:
    """Check what was just loaded: `check_running_code`, and that it is what the files say now.

    Raises:
        UserError: See there; or Python took a compiled file whose source is another.
        NotFinishedError: A module was edited after this process began.
    """
    check_running_code(text, root)
    began = _process_start() + _TO_FIRST_IMPORT_S
    for module in _modules(text):
        source = _source_of(module)
        try:
            changed = source.stat().st_mtime
        except FileNotFoundError:
            changed = began + _TO_FIRST_IMPORT_S
        if began < changed <= time.time():
            raise NotFinishedError(
                f"{source} was changed while it was being loaded; run the same command again"
            )
        _check_compiled(module, source)


def loaded_code(text: str) -> dict[str, str]:
    """Return module -> digest of what was loaded of a text of `code/`, for who reads it later."""
    found = {module.__name__: _meaning_of(_source_of(module)) for module in _modules(text)}
    return {name: digest or "no source" for name, digest in sorted(found.items())}


def _modules(text: str) -> Iterator[ModuleType]:
    """Yield the modules of a code text that have been imported from a file."""
    for name in parse_code_text(text):
        module = sys.modules.get(name)
        if module is not None and module.__file__ is not None:
            yield module


def _differing(text: str) -> Iterator[tuple[Path, Path]]:
    """Yield what was loaded and means something else, and which file of the packages it should be.

    Of a table of imports the entry counts; of a file beside a module its bytes.
    """
    digests = parse_code_text(text)
    for module in _modules(text):
        source, relative = _source_of(module), _relative_path(module)
        if _meaning_of(source) != digests[module.__name__]:
            yield source, relative
        for key, entry in getattr(module, IMPORTS_TABLE, {}).items():
            expected = digests.get(f"{module.__name__} -> {key}")
            if expected not in (None, short_digest(ascii(entry).encode())):
                yield source, relative
    for name in digests:
        package = sys.modules.get(name.partition("/")[0])
        if "/" in name and package is not None and package.__file__ is not None:
            path = Path(package.__file__).parents[1] / name
            if not path.is_file() or short_digest(path.read_bytes()) != digests[name]:
                yield path, Path(name)


def _relative_path(module: ModuleType) -> Path:
    path = Path(*module.__name__.split("."))
    return path / "__init__.py" if hasattr(module, "__path__") else path.with_suffix(".py")


def _meaning_of(source: Path) -> str | None:
    """Return the digest of a source; None of what is none: compiled code goes before a source."""
    try:
        return meaning(source.read_bytes()) if source.suffix == ".py" else None
    except (OSError, SyntaxError):
        return None


def _source_of(module: ModuleType) -> Path:
    return Path(str(module.__file__))


def _check_compiled(module: ModuleType, source: Path) -> None:
    """Refuse a compiled file that Python took for that of its source, going by size and seconds.

    An edit of equal length that follows a run within a second leaves one.
    """
    compiled = Path(getattr(module, "__cached__", None) or os.devnull)
    try:
        late = compiled.stat().st_mtime - source.stat().st_mtime > _COMPILED_AFTER_S
    except FileNotFoundError:
        return
    loader = None if module.__spec__ is None else module.__spec__.loader
    read = getattr(loader, "get_code", None)
    if late or read is None:
        return
    if read(module.__name__) != compile(source.read_bytes(), source, "exec", dont_inherit=True):
        raise UserError(f"Python used {compiled}, which was compiled before {source} was last "
                        "edited; delete it and run the same command again")  # fmt: skip


def _process_start() -> float:
    """Return when this process began, in seconds since 1970, to a hundredth."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    ticks = int(fields.rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
