"""Why the program's own modules cannot be imported, in one line.

Imports nothing that can be hidden: Python loads `sys` and `os` before it looks into any folder of
the user's.
"""

import os
import sys
from types import TracebackType

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ("asl_core", "pipeline")


def hiding_file() -> str | None:
    """Return the line for a file beside the packages that hides a library of its name.

    Python looks into the current folder first when it is started as `python -m pipeline`, and into
    those of PYTHONPATH.
    """
    places = [os.path.abspath(place) for place in sys.path]
    for number, folder in enumerate(places):
        if folder not in (HERE, os.getcwd()) or not os.path.isdir(folder) or _is_installed(folder):
            continue
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            name = entry.removesuffix(".py")
            is_module = name != entry or os.path.isfile(os.path.join(path, "__init__.py"))
            if is_module and name not in PACKAGES and _is_library(name, places[number + 1 :]):
                return f"{path} hides the library {name}; rename it"
    return None


def _is_installed(folder: str) -> bool:
    """Say whether the program was installed there: what lies beside it are libraries."""
    return any(name.startswith("asl_pipe-") for name in os.listdir(folder) if ".dist-info" in name)


def _is_library(name: str, places: list[str]) -> bool:
    """Say whether Python would find a module of the name without the folder."""
    if name in sys.stdlib_module_names:
        return True
    from importlib.machinery import PathFinder

    found = PathFinder.find_spec(name, places)
    return found is not None and found.origin is not None


def import_failure(error: BaseException) -> str | None:
    """Return the line for an error that kept a module from being imported; None for any other."""
    if isinstance(error, SyntaxError) and _in_project(error.filename or ""):
        return f"{error.filename}:{error.lineno or 1}: {error.msg}; correct the file"
    place = _importing(error.__traceback__)
    if place is None:
        return None
    if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in PACKAGES:
        remedy = "install asl-pipe again" if _is_installed(HERE) else "`make repro` completes it"
        return f"{error}: the environment is incomplete; {remedy}"
    said = " ".join(str(error).split())
    return f"{place}: {type(error).__name__}: {said}; correct the file"


def _importing(trace: TracebackType | None) -> str | None:
    """Return the last line of the project that ran, if it ran because its module was imported."""
    place, ran_as = "", ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if _in_project(file):
            place, ran_as = f"{file}:{trace.tb_lineno}", trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return place if ran_as == "<module>" else None


def _in_project(file: str) -> bool:
    return file.startswith(tuple(os.path.join(HERE, package, "") for package in PACKAGES))
