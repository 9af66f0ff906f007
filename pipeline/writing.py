"""Files that are there whole or not at all, whoever is killed meanwhile."""

import json
import math
import os
import socket
from pathlib import Path


def write_json(path: Path, content: object, *, sort_keys: bool = True) -> None:
    """Write JSON to a sibling, flush it to the disk, and rename it into place.

    A float that is not finite becomes null: JSON has no name for it. The sibling is this
    process's own: of two writers at once one wins, whole.
    """
    text = json.dumps(or_null(content), indent=2, sort_keys=sort_keys, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def or_null(value: object) -> object:
    """Return the value with None for every float in it that is not finite."""
    if isinstance(value, dict):
        return {key: or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file to a sibling, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
