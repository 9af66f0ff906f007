"""What a bundle and what comes back from it say of themselves: plain JSON. Standard library only.

A bundle is a zip that Python runs:

    __main__.py       `launcher.py`
    manifest.json     `Manifest`: its runs, and size and sha256 of every other file
    code/             the modules that its runs may load, and the texts that stand for them
    suite/            packed datasets and encoders, at their paths in the suite's folder

What comes back is a zip as well:

    results.json      `Results`: what became of each run, and size and sha256 of every other file
    results.sha256    of results.json
    code/             the texts of the code that ran
    runs/RUN/ROLE/    outputs; runs/RUN/metrics.json
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

VERSION = 1
BUNDLE, RESULTS = "asl-pipe bundle", "asl-pipe results"
"""What `kind` says."""

MANIFEST_FILE, RESULTS_FILE, RESULTS_DIGEST = "manifest.json", "results.json", "results.sha256"
CODE, SUITE, RUNS, METRICS = "code", "suite", "runs", "metrics.json"

PICTURES = "pictures"
"""Tag of a run whose pictures could not be drawn: why."""
BUNDLE_TAG = "bundle"
"""Tag of a run that was made by a bundle: which one."""


@dataclass(frozen=True)
class Mark:
    """By which the content of a file is known."""

    size: int
    sha256: str


Marks = dict[str, Mark]
"""Path with slashes -> mark."""


class Status(StrEnum):
    """How far a run of a bundle is."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Its checkpoint is where it ran: the same command goes on there."""
    WAITING = "not begun"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run of a bundle.

    Attributes:
        name: `linprobe@asl`.
        stage: `linprobe`.
        key: `asl`.
        fingerprint: DVC's key; `p-` and the recipe where an input is made by the bundle itself.
        document: What DVC would file the result under, see `pipeline.results.documents`.
        recipe: Of the stage, as `plain.py` writes it.
        place: Tags: the tables that show it.
        resources: Device, threads, workers: what cluster.yaml says of this stage here.
        inputs: Role -> path in the suite's folder.
        makers: Path of an input -> name of the run of the bundle that makes it.
        upstream: Path of each input that a run makes -> `recipe_id` of that run.
        digests: Path of each input of the document -> md5; where it is not known yet a name that
            `accept` puts it in place of.
        code: Path of the text that stands for its code.
        packages: Top-level names of other projects' modules that it imports.
    """

    name: str
    stage: str
    key: str
    fingerprint: str
    document: dict[str, Any]
    recipe: Any
    place: dict[str, str]
    resources: dict[str, Any]
    inputs: dict[str, str]
    makers: dict[str, str]
    upstream: dict[str, str]
    digests: dict[str, str]
    code: str
    packages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle consists of.

    Attributes:
        suite: Name of the suite, as params.yaml has it.
        folder: Of the suite, relative to the project's root.
        scale: reduced or paper.
        tags: Name the commit.
        runs: Each after those that it needs.
        files: All but the manifest and the launcher.
    """

    suite: str
    folder: str
    scale: str
    tags: dict[str, str]
    runs: tuple[RunPlan, ...]
    files: Marks
    kind: str = BUNDLE
    version: int = VERSION

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @property
    def digest(self) -> str:
        """Name of this bundle: other code, parameters or inputs, another name."""
        return hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of a run.

    Attributes:
        name: `linprobe@asl`.
        status: How far it is.
        detail: One line: what failed, at which step it stopped.
        fingerprint: As the plan has it.
        document: As the plan has it.
        machine: Where it ran: host, GPUs, versions, device, threads, kernels, pictures.
        seconds: Of the last attempt.
        inputs: What was found in its inputs before it began, by path in the suite's folder.
        code: Module -> digest of the meaning of the file that was loaded.
        files: Its outputs: `ROLE/...` and `metrics.json`.
    """

    name: str
    status: Status
    detail: str = ""
    fingerprint: str = ""
    document: dict[str, Any] = field(default_factory=dict[str, Any])
    machine: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float | None = None
    inputs: Marks = field(default_factory=dict[str, Mark])
    code: dict[str, str] = field(default_factory=dict[str, str])
    files: Marks = field(default_factory=dict[str, Mark])

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What comes back.

    Attributes:
        bundle: Digest of the manifest.
        suite: Name of the suite.
        folder: Of the suite, relative to the project's root.
        runs: What became of each, in the order of the bundle.
        files: Every other file of the archive.
    """

    bundle: str
    suite: str
    folder: str
    runs: tuple[Record, ...]
    files: Marks
    kind: str = RESULTS
    version: int = VERSION

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)


def read_manifest(text: str) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError: It is none, or of another version of this program.
    """
    raw = _checked(text, BUNDLE)
    try:
        raw |= {"runs": tuple(map(_read_plan, raw["runs"])), "files": marks_of(raw["files"])}
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not the manifest of a bundle ({error})") from error


def _read_plan(raw: dict[str, Any]) -> RunPlan:
    values: dict[str, Any] = {**raw, "packages": tuple(raw["packages"])}
    return RunPlan(**values)


def read_record(raw: Mapping[str, Any]) -> Record:
    """Return a record from its JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        marks = {name: marks_of(raw[name]) for name in ("inputs", "files")}
        values: dict[str, Any] = {**raw, "status": Status(raw["status"]), **marks}
        return Record(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it does not say what became of a run ({error})") from error


def read_results(text: str) -> Results:
    """Read what comes back.

    Raises:
        ValueError: It is something else, or of another version of this program.
    """
    raw = _checked(text, RESULTS)
    try:
        raw |= {"runs": tuple(map(read_record, raw["runs"])), "files": marks_of(raw["files"])}
        return Results(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not what a bundle brings back ({error})") from error


def _checked(text: str, kind: str) -> dict[str, Any]:
    raw: Any = json.loads(text)
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise ValueError(f"it is no file of the kind {kind!r}")
    if raw.get("version") != VERSION:
        raise ValueError(f"it is of version {raw.get('version')} of {kind}, known is {VERSION}")
    return raw


def marks_of(raw: Mapping[str, Mapping[str, Any]]) -> Marks:
    """Return marks from their JSON.

    Raises:
        KeyError, TypeError: They are none.
    """
    return {path: Mark(int(mark["size"]), str(mark["sha256"])) for path, mark in raw.items()}


def mark_file(path: Path) -> Mark:
    """Return the mark of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Mark(file.tell(), digest)


def mark_bytes(content: bytes) -> Mark:
    """Return the mark of a content."""
    return Mark(len(content), hashlib.sha256(content).hexdigest())


def mark_folder(folder: Path) -> Marks:
    """Return the marks of all files below a folder, by their paths in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): mark_file(path) for path in files}


def under(prefix: str, marks: Marks) -> Marks:
    """Return the same marks with a folder before their paths."""
    return {f"{prefix}/{path}": mark for path, mark in marks.items()}
