"""costs/<fingerprint>.json: what a run took, kept when its records go, or are forgotten elsewhere.

`gc` deletes records and journals, and a cluster its accounting; a result outlives both.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

from pipeline.jobs.state import RunStatus
from pipeline.jobs.usage import RunCost, Usage
from pipeline.writing import write_json

FOLDER = "costs"


def keep_cost(scratch: Path, cost: RunCost) -> None:
    """Keep what a run took; on a full or read-only disk, nothing."""
    with contextlib.suppress(OSError):
        folder = scratch / FOLDER
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{cost.fingerprint}.json", dataclasses.asdict(cost))


def kept_costs(scratch: Path) -> list[RunCost]:
    """Return what is kept; a file that cannot be read is left out."""
    found: list[RunCost] = []
    for path in sorted((scratch / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            raw = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in dataclasses.fields(Usage)}
            starts = tuple(
                Usage(**{name: value for name, value in start.items() if name in known})
                for start in raw["starts"]
            )
            found.append(
                RunCost(
                    stage=raw["stage"], key=raw["key"], suite=raw["suite"],
                    fingerprint=raw["fingerprint"], status=RunStatus(raw["status"]), starts=starts,
                )
            )  # fmt: skip
    return found
