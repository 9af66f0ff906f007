"""The project's code, read once: its identity for DVC, and the copy that jobs run from.

The identity of a stage's code is one small text under `code/` in the suite's folder, a line for
each module that the stage may run; `pipeline.results.closure` says what a line stands for.
"""

import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config.dag import dag_text
from pipeline.config.params import METHODS, SOURCES
from pipeline.config.yaml_files import read_yaml_if_any
from pipeline.errors import UserError
from pipeline.results.closure import PACKAGES, Codebase
from pipeline.results.sources import reads_disk
from pipeline.stages.table import CODE_FOLDER, PREPARE, PRETRAIN, STAGES, Stage
from pipeline.writing import write_bytes

_DIGITS = 24


@dataclass(frozen=True)
class Code:
    """Every file of the project's packages, read at one moment.

    Attributes:
        files: Path relative to the packages' root -> content.
    """

    files: dict[str, bytes]

    @cached_property
    def digest(self) -> str:
        """Name of this code; other content, another name."""
        total = hashlib.sha256()
        for path in sorted(self.files):
            total.update(f"{path}\0{hashlib.sha256(self.files[path]).hexdigest()}\n".encode())
        return total.hexdigest()[:_DIGITS]

    @property
    def identities(self) -> dict[str, str]:
        """Path under the suite's folder -> the text that stands for a stage's code, of all stages.

        Raises:
            UserError: A file is no Python, or a declaration in it is wrong.
        """
        return {path: self.identity(path) for path in _IDENTITIES}

    def identity(self, path: str) -> str:
        """Return the text at a path under the suite's folder; reads what that stage may run.

        Raises:
            UserError: A file is no Python, or a declaration in it is wrong.
        """
        if path not in self._texts:
            self._texts[path] = self._codebase.code_text(*_IDENTITIES[path])
        return self._texts[path]

    @cached_property
    def _codebase(self) -> Codebase:
        return Codebase(self.files)

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {}


def _variants(stage: Stage) -> list[str | None]:
    """Return the keys by which a stage loads code by name; None where it does not."""
    if stage is PRETRAIN:
        return list(METHODS)
    return list(SOURCES) if stage is PREPARE else [None]


_IDENTITIES = {
    f"{CODE_FOLDER}/{stage.name}{'' if variant is None else f'-{variant}'}.txt":
        (stage.module, variant)
    for stage in STAGES.values()
    for variant in _variants(stage)
}  # fmt: skip
"""Path under the suite's folder -> the module where a stage's code begins, and its variant."""


def code_root(folder: Path) -> Path | None:
    """Return the nearest folder above that holds the packages; None where they are installed."""
    for above in (folder, *folder.parents):
        if all((above / package / "__init__.py").is_file() for package in PACKAGES):
            return above
    return None


def read_code(folder: Path) -> Code:
    """Read the packages that a project holds, or, where it holds none, the installed ones.

    Compiled files and what editors leave are passed over.

    Args:
        folder: Of the project or of one of its suites.
    """
    root = packages_folder(folder)
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        top = root / package
        for parent, folders, names in os.walk(top, followlinks=True):
            folders[:] = sorted(name for name in folders if not _is_no_code(name))
            for name in sorted(names):
                path = Path(parent, name)
                if _is_no_code(name) or not path.is_file():  # a link that leads nowhere, a pipe
                    continue
                with contextlib.suppress(FileNotFoundError):  # gone since the folder was listed
                    files[f"{package}/{path.relative_to(top).as_posix()}"] = path.read_bytes()
    return Code(files)


def packages_folder(folder: Path) -> Path:
    """Return the folder of the packages that a project holds, or, where it holds none, installed.

    Args:
        folder: Of the project or of one of its suites.

    Raises:
        UserError: The packages are neither in the project nor installed.
    """
    return code_root(folder) or Path(_installed_package()).parent


def _installed_package() -> str:
    spec = importlib.util.find_spec(PACKAGES[0])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {PACKAGES[0]} is neither in the project nor installed")
    return spec.submodule_search_locations[0]


def _is_no_code(name: str) -> bool:
    return name.startswith((".", "__pycache__")) or name.endswith((".pyc", ".pyo", ".tmp"))


def refresh_identities(
    suite: Path, code: Code | None = None, only: Collection[str] | None = None
) -> list[str]:
    """Bring `code/` of a suite up to the code as it is; return the files that changed.

    Files that are right stay untouched, so that DVC's outputs do. Others are replaced and not
    written over: DVC may share them with its cache.

    Args:
        suite: Its folder.
        code: As it is; read if absent.
        only: Paths under the suite's folder: of `code/` these alone, the others are left.

    Raises:
        UserError: A file is no Python, or a declaration in it is wrong.
    """
    code, changed = code or read_code(suite), []
    (suite / CODE_FOLDER).mkdir(exist_ok=True)
    for path in _IDENTITIES:
        if only is not None and path not in only:
            continue
        text = code.identity(path)
        with contextlib.suppress(OSError):
            if (suite / path).read_text(encoding="utf-8") == text:
                continue
        write_bytes(suite / path, text.encode())
        changed.append(path)
    for left in () if only is not None else (suite / CODE_FOLDER).glob("*.txt"):
        if f"{CODE_FOLDER}/{left.name}" not in _IDENTITIES:
            left.unlink(missing_ok=True)
            changed.append(f"{CODE_FOLDER}/{left.name}")
    return changed


def dag_of(suite: Path) -> str:
    """Return the text of a suite's dvc.yaml; where the packages are installed DVC watches none."""
    code = PACKAGES if code_root(suite) is not None else ()
    params = read_yaml_if_any(suite / "params.yaml")
    return dag_text(code, reads_disk=reads_disk(suite), params=params)


def code_folder(scratch: Path, digest: str) -> Path:
    """Return where frozen code lies; it is what a job's PYTHONPATH names."""
    return scratch / "code" / digest


def freeze(code: Code, scratch: Path) -> str:
    """Write code and its identity, unless they are there, and return the digest.

    The folder is there whole or not at all; its files are read-only.

    Args:
        code: What to keep.
        scratch: The project's `.asl`.
    """
    target = code_folder(scratch, code.digest)
    try:
        os.utime(target)  # it is in use again: gc leaves young code alone
        return code.digest
    except FileNotFoundError:
        pass
    except PermissionError:  # another user's
        return code.digest
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    texts = {path: text.encode() for path, text in code.identities.items()}
    try:
        for path, content in {**code.files, **texts}.items():
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o444)
        with contextlib.suppress(OSError):  # another process was quicker
            os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return code.digest
