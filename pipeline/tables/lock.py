"""What dvc.lock says about a stage: recorded, still current against params.yaml, output hashes.

Reads `dvc.lock` and `params.yaml` of a suite folder; writes nothing. Changes of code and data are
DVC's to find (`dvc status`): they need hashing, which a table must not wait for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config.yaml_files import read_yaml, read_yaml_if_any
from pipeline.stages.table import CODE_FOLDER

State = Literal["current", "outdated", "unrecorded"]


@dataclass(frozen=True)
class Lock:
    """The stages of a dvc.lock and the params.yaml beside it."""

    stages: Mapping[str, Any]
    params: Mapping[str, Any]

    def state(self, name: str) -> State:
        """Compare a stage's recorded parameters and inputs with the present ones.

        Args:
            name: Stage name with key, `linprobe@asl`.

        Returns:
            unrecorded: dvc.lock has no such stage. outdated: a parameter differs from
            params.yaml, or an input was made anew or is outdated itself. current: neither.
        """
        return self._state(name, frozenset())

    def _state(self, name: str, above: frozenset[str]) -> State:
        entry = self.stages.get(name)
        if entry is None:
            return "unrecorded"
        recorded = entry.get("params", {}).get("params.yaml", {})
        if any(_at(self.params, path) != value for path, value in recorded.items()):
            return "outdated"
        for dependency in entry.get("deps", []):
            maker, output = self._maker(dependency["path"])
            if output is None or maker == name or maker in above:
                continue
            if output.get("md5") != dependency.get("md5"):
                return "outdated"
            if self._state(maker, above | {name}) == "outdated":
                return "outdated"
        return "current"

    def _maker(self, path: str) -> tuple[str, Mapping[str, Any] | None]:
        for name, entry in self.stages.items():
            for output in entry.get("outs", []):
                if output["path"] == path:
                    return name, output
        return "", None

    def digest(self, name: str, path: str) -> str | None:
        """Return the md5 that DVC recorded for an output of a stage."""
        outputs = self.stages.get(name, {}).get("outs", [])
        return next((out.get("md5") for out in outputs if out["path"] == path), None)

    def code(self, name: str) -> str | None:
        """Return the md5 of the text that stands for the code of a stage's result."""
        dependencies = self.stages.get(name, {}).get("deps", [])
        found = (d.get("md5") for d in dependencies if d["path"].startswith(f"{CODE_FOLDER}/"))
        return next(found, None)

    def inputs(self, name: str) -> dict[str, str]:
        """Return path -> md5 of the data that a stage was made from."""
        dependencies = self.stages.get(name, {}).get("deps", [])
        return {
            dependency["path"]: dependency.get("md5", "")
            for dependency in dependencies
            if dependency["path"].startswith(("data/", "runs/"))
        }


def read_lock(suite_folder: Path) -> Lock:
    """Read dvc.lock (absent before the first run) and params.yaml of a suite.

    Raises:
        UserError: One of them is no YAML mapping.
    """
    path = suite_folder / "dvc.lock"
    stages = read_yaml_if_any(path).get("stages")
    return Lock(stages=stages or {}, params=read_yaml(suite_folder / "params.yaml"))


def _at(content: Any, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
