"""What dvc.lock says about a stage: recorded, still current against params.yaml, output hashes.

Reads `dvc.lock` and `params.yaml` of a suite folder; writes nothing. Changes of code and data are
DVC's to find (`dvc status`): they need hashing, which a table must not wait for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.config.starts import by_run
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.stages.table import CODE_FOLDER, SOURCES_FOLDER

State = Literal["current", "outdated", "unrecorded"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Item(_Record):
    """An input or an output of a stage."""

    path: str
    md5: str | None = None


class Entry(_Record):
    """What dvc.lock has for one stage."""

    params: Mapping[str, Mapping[str, Any]] = {}
    """File -> dotted path -> value."""
    deps: tuple[Item, ...] = ()
    outs: tuple[Item, ...] = ()


_STAGES = TypeAdapter(dict[str, Entry])


@dataclass(frozen=True)
class Lock:
    """The stages of a dvc.lock and the params.yaml beside it."""

    stages: Mapping[str, Entry]
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
        recorded = entry.params.get("params.yaml", {})
        if any(_at(self.params, path) != value for path, value in recorded.items()):
            return "outdated"
        for dependency in entry.deps:
            maker, output = self._maker(dependency.path)
            if output is None or maker == name or maker in above:
                continue
            if output.md5 != dependency.md5:
                return "outdated"
            if self._state(maker, above | {name}) == "outdated":
                return "outdated"
        return "current"

    def _maker(self, path: str) -> tuple[str, Item | None]:
        for name, entry in self.stages.items():
            for output in entry.outs:
                if output.path == path:
                    return name, output
        return "", None

    def digest(self, name: str, path: str) -> str | None:
        """Return the md5 that DVC recorded for an output of a stage."""
        return next((out.md5 for out in self._entry(name).outs if out.path == path), None)

    def code(self, name: str) -> str | None:
        """Return the md5 of the text that stands for the code of a stage's result."""
        dependencies = self._entry(name).deps
        found = (d.md5 for d in dependencies if d.path.startswith(f"{CODE_FOLDER}/"))
        return next(found, None)

    def inputs(self, name: str) -> dict[str, str]:
        """Return path -> md5 of the data that a stage was made from."""
        return {
            dependency.path: dependency.md5 or ""
            for dependency in self._entry(name).deps
            if dependency.path.startswith((f"{SOURCES_FOLDER}/", "data/", "runs/"))
        }

    def _entry(self, name: str) -> Entry:
        return self.stages.get(name, Entry())


def read_lock(suite_folder: Path) -> Lock:
    """Read dvc.lock (absent before the first run) and params.yaml of a suite.

    Raises:
        UserError: One of them is no YAML mapping, or dvc.lock is not as DVC writes it.
    """
    path = suite_folder / "dvc.lock"
    content = read_yaml(path) if path.exists() else {}
    try:
        stages = _STAGES.validate_python(content.get("stages") or {})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "stages"
        raise UserError(
            f"{path} is not as DVC writes it: {where}; restore it with git checkout"
        ) from error
    params = read_yaml(suite_folder / "params.yaml")
    return Lock(stages=by_run(stages, params), params=params)


def _at(content: Any, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    for part in path.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
