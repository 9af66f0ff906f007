"""Files that are there whole or not at all, whoever is killed meanwhile."""

import json
import os
import socket
from pathlib import Path


def write_json(path: Path, content: object, *, sort_keys: bool = True) -> None:
    """Write JSON to a sibling, flush it to the disk, and rename it into place.

    The sibling is this process's own: of two writers at once one wins, whole.
    """
    text = json.dumps(content, indent=2, sort_keys=sort_keys)
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file to a sibling, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
