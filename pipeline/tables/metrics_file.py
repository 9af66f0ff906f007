"""The metrics file of one stage run: what it says, and whether dvc.lock recorded it. Reads only."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.stages.table import TEST_IMAGES


@dataclass(frozen=True)
class MetricsFile:
    """What a finished run left for people and tables."""

    content: bytes
    numbers: Mapping[str, float]
    undefined: frozenset[str]
    """Metrics that the data do not give: null in the file."""
    fingerprint: str | None
    scale: str | None
    code: str | None
    """md5 of the text that stands for the code it was made with."""
    test_images: int | None
    """How many images it was measured on."""

    def difference(self, md5: str) -> str:
        """Return in what the file is not the one of this md5; empty where it is that one."""
        if _md5(self.content) == md5:
            return ""
        if _md5(self.content.replace(b"\r\n", b"\n")) == md5:
            return "in its line ends, as git's core.autocrlf makes them"
        return "it was edited, or its run is not recorded yet"


def read_metrics_file(path: Path, remedy: str = "run its stage again") -> MetricsFile | None:
    """Read a metrics file; None where there is none.

    Raises:
        UserError: It is not what a stage writes; ends with the remedy.
    """
    if not path.is_file():
        return None
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}")
    numbers = _numbers(content)
    images = numbers.pop(TEST_IMAGES, 0)
    return MetricsFile(
        content=raw,
        numbers=numbers,
        undefined=frozenset(name for name, value in content.items() if value is None),
        fingerprint=_text(content, "fingerprint"),
        scale=_text(content, "scale"),
        code=_text(content, "code"),
        test_images=int(images) if images >= 1 else None,
    )


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) and value else None


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: number for name, value in content.items() if (number := _number(value)) is not None
    }


def _number(value: object) -> float | None:
    """Return a finite number as such, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have no end
        return None
    return number if math.isfinite(number) else None
