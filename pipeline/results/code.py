"""Code as it was when a job was submitted: `.asl/code/<digest>`, one copy for all its jobs."""

import contextlib
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("asl_core", "pipeline")
_DIGITS = 24


@dataclass(frozen=True)
class Code:
    """Every file of the project's packages, read at one moment.

    Attributes:
        files: Path relative to the root -> content.
    """

    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Name of this code; other content, another name."""
        total = hashlib.sha256()
        for path in sorted(self.files):
            total.update(f"{path}\0{hashlib.sha256(self.files[path]).hexdigest()}\n".encode())
        return total.hexdigest()[:_DIGITS]


def read_code(root: Path) -> Code:
    """Read the packages of a project, without compiled files and what editors leave."""
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        for folder, folders, names in os.walk(root / package, followlinks=True):
            folders[:] = sorted(name for name in folders if not _is_no_code(name))
            for name in sorted(names):
                path = Path(folder, name)
                if _is_no_code(name) or not path.is_file():  # a link that leads nowhere, a pipe
                    continue
                with contextlib.suppress(FileNotFoundError):  # gone since the folder was listed
                    files[path.relative_to(root).as_posix()] = path.read_bytes()
    return Code(files)


def _is_no_code(name: str) -> bool:
    return name.startswith((".", "__pycache__")) or name.endswith((".pyc", ".pyo", ".tmp"))


def code_folder(scratch: Path, digest: str) -> Path:
    """Return where frozen code lies; it is what a job's PYTHONPATH names."""
    return scratch / "code" / digest


def freeze(code: Code, scratch: Path) -> str:
    """Write code, unless it is there, and return its digest.

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
    try:
        for path, content in code.files.items():
            file = part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o444)
        with contextlib.suppress(OSError):  # another process was quicker
            os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return code.digest
