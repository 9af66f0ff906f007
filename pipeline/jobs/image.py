"""Which image a container was, to the bit: recorded with results, no part of their identity."""

import hashlib
import json
import logging
import os
import re
import subprocess
from pathlib import Path

from pipeline.config.container import PYXIS, Container
from pipeline.writing import write_json

logger = logging.getLogger(__name__)

FOLDER = "images"
"""Of `.asl`: digests of files that were hashed before."""

VERSION_S = 20.0
_IN_NAME = re.compile(r"@(sha256:[0-9a-f]{64})$")
_BLOCK = 1 << 20


def container_tags(container: Container, scratch: Path) -> dict[str, str]:
    """Return what a run says of its container.

    Args:
        container: The image and the runtime.
        scratch: The project's `.asl`, where digests are kept.
    """
    return {
        "container.image": container.image,
        "container.digest": image_digest(container, scratch),
        "container.runtime": _version(container.runtime),
    }


def image_digest(container: Container, scratch: Path) -> str:
    """Return `sha256:...` of a file, or the one in a name; else why there is none."""
    path = Path(container.image)
    if not container.is_local:
        named = _IN_NAME.search(container.image)
        return named[1] if named else "unknown: its name has no @sha256:..."
    if path.is_dir():
        return "none: it is a folder"
    try:
        return f"sha256:{_of_file(path.resolve(), scratch / FOLDER)}"
    except OSError as error:
        return f"unknown: {error.strerror}"


def _of_file(path: Path, kept: Path) -> str:
    """Return a file's digest: the one noted when it had this size, time and inode, else anew."""
    found = path.stat()
    seen = {"path": str(path), "size": found.st_size, "mtime_ns": found.st_mtime_ns,
            "inode": found.st_ino}  # fmt: skip
    note = kept / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        if {name: noted.get(name) for name in seen} == seen:
            return str(noted["sha256"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
        try:
            kept.mkdir(parents=True, exist_ok=True)
            write_json(note, {**seen, "sha256": digest.hexdigest()})
        except OSError as error:  # it is computed again next time
            logger.warning("%s: %s", note, error)
    return digest.hexdigest()


def _version(runtime: str) -> str:
    """Return what a runtime calls itself: `apptainer version 1.3.4`."""
    if runtime == PYXIS:
        return runtime
    try:
        done = subprocess.run(
            [runtime, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=VERSION_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return runtime
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else runtime
