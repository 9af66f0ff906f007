"""Files what a bundle brought back, as a job files its result, and refuses all else.

Everything is checked before anything is filed: names, sizes and sha256 of all files, then, run by
run, that the project as it is now would make the run from the same code, parameters and inputs.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.bundles.manifest import (
    CODE,
    METRICS,
    RUNS,
    Marks,
    Record,
    Results,
    Status,
    mark_file,
    mark_folder,
    under,
)
from pipeline.bundles.unpack import unpacked_results
from pipeline.config.params import load_params
from pipeline.execution.inputs import recipe_of, results_read
from pipeline.jobs.folder import PROVISIONAL, JobFolder
from pipeline.project import Project
from pipeline.results.closure import changed_modules, parse_code_text
from pipeline.results.code import code_folder, freeze, read_code
from pipeline.results.documents import (
    Hashes,
    code_of,
    differences,
    hashes_of,
    missing_deps,
)
from pipeline.results.port import Filing, ResultCache, StageFacts
from pipeline.results.sources import refresh_sources
from pipeline.stages.request import DETAILS
from pipeline.stages.table import RUN_BY_JOBS, key_of, stage_of
from pipeline.writing import write_json

SHOWN = 3
"""Differences that are named."""


class Verdict(StrEnum):
    """What became of one run of an archive."""

    FILED = "filed"
    THERE = "filed already"
    OTHER = "left out"
    """Its key has another result, made elsewhere."""
    REFUSED = "refused"
    UNFINISHED = "not finished"
    FAILED = "failed there"


@dataclass(frozen=True)
class Accepted:
    """What became of one run of an archive.

    Attributes:
        name: `linprobe@asl`.
        verdict: What happened.
        detail: Why, or where it was made.
        key: Under which it is filed.
    """

    name: str
    verdict: Verdict
    detail: str = ""
    key: str | None = None


def accept(root: Path, file: Path, cache: ResultCache) -> list[Accepted]:
    """File the finished runs of an archive; the caller adopts them.

    Args:
        root: Folder that has `.dvc`.
        file: What a bundle left.
        cache: Where results go.

    Returns:
        What became of each run.

    Raises:
        UserError: The archive is damaged, or not of this project; nothing was filed.
    """
    with unpacked_results(root, file) as (results, folder):
        filing = _Acceptance(Project(root, root / results.folder), cache, results, folder)
        return [filing.take(record) for record in results.runs]


class _Acceptance:
    """Files one run after the other; what the first made is an input of the next."""

    def __init__(
        self, project: Project, cache: ResultCache, results: Results, unpacked: Path
    ) -> None:
        self.project, self.cache, self.results, self.unpacked = project, cache, results, unpacked
        self.names: dict[str, str] = {}
        """Names that stood for what was not known yet -> what is known now."""
        self.inputs = unpacked / "inputs"
        self.linked: dict[str, str] = {}

    def take(self, record: Record) -> Accepted:
        """File a run, if it is finished and what this project would make."""
        if record.status is Status.FAILED:
            return Accepted(record.name, Verdict.FAILED, record.detail)
        if record.status is not Status.FINISHED:
            detail = f"{record.status}{f': {record.detail}' if record.detail else ''}"
            return Accepted(record.name, Verdict.UNFINISHED, detail)
        facts = self._facts(record.name)
        if facts is None:
            detail = "params.yaml has no such run any more"
            return Accepted(record.name, Verdict.REFUSED, detail)
        try:
            refusal = self._refusal(record, facts)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, FileNotFoundError):
            refusal = "its record does not say what it was made from"
        if refusal is not None:
            return Accepted(record.name, Verdict.REFUSED, refusal)
        key = facts.fingerprint
        assert key is not None
        self._name_what_is_known(record, facts)
        places = self._places(record)
        if facts.outputs is not None:
            return self._there(record, facts.outputs, places, key)
        self._file(record, facts, places)
        machine = record.machine.get("host", "an unknown machine")
        return Accepted(record.name, Verdict.FILED, f"made on {machine}", key)

    def _facts(self, name: str) -> StageFacts | None:
        params = load_params(self.project.params_file)
        refresh_sources(self.project, params.datasets, self.cache)
        known = {s.run_name(key) for s in RUN_BY_JOBS for key in params.section(s.name)}
        return self.cache.survey(self.project.suite, [name])[name] if name in known else None

    def _refusal(self, record: Record, facts: StageFacts) -> str | None:
        """Say why a run is not what this project would make; None if it is."""
        different = self._differences(record, facts)
        if different:
            shown = "; ".join(different[:SHOWN])
            more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            return f"made from something else: {shown}{more}; put that back, or bundle it again"
        if facts.fingerprint is None:
            lacking = ", ".join(missing_deps(facts.document))
            return f"needs {lacking}, not made here yet; accept that first"
        other = self._other_inputs(record, facts)
        if other is None and record.fingerprint not in (
            facts.fingerprint, PROVISIONAL + facts.recipe
        ):  # fmt: skip
            other = f"made for the key {record.fingerprint[:12]}, now {facts.fingerprint[:12]}"
        return other

    def _differences(self, record: Record, facts: StageFacts) -> list[str]:
        code, md5 = code_of(facts.document)
        text = (self.unpacked / CODE / code).read_text(encoding="utf-8")
        now = (self.project.suite / code).read_text(encoding="utf-8")
        made, unknown = record.document, {*missing_deps(facts.document), *facts.upstream}
        found: list[str] = []
        for each in differences(made, facts.document):
            if each == code:
                found.append(f"code of {', '.join(changed_modules(text, now)[:SHOWN])}")
            elif each not in unknown:  # what other runs make is compared file by file
                found.append(each)
        if not found and code_of(made)[1] == md5 and text != now:
            found.append(code)
        declared = parse_code_text(text)
        found += [
            f"{module} that was loaded is not the one that it names"
            for module, digest in record.code.items() if declared.get(module) != digest
        ]  # fmt: skip
        return found

    def _other_inputs(self, record: Record, facts: StageFacts) -> str | None:
        """Say which file was read there that has another content here; None if none has."""
        hashes = hashes_of(facts.document["deps"])
        for path in self._read_by(record.name):
            md5 = str(hashes[path]["md5"])
            if self.linked.get(path) != md5:
                shutil.rmtree(self.inputs / path, ignore_errors=True)
                self.cache.link(self.project.root, {path: {"md5": md5}}, self.inputs)
                self.linked[path] = md5
            here = under(path, mark_folder(self.inputs / path))
            there = {n: m for n, m in record.inputs.items() if n.startswith(f"{path}/")}
            differing = sorted(dict(here.items() ^ there.items()))
            if differing:
                return f"made from another {differing[0]} than is filed here"
        return None

    def _read_by(self, name: str) -> list[str]:
        """Return the paths of other runs' outputs that a run reads."""
        stage, key = stage_of(name), key_of(name)
        recipe = recipe_of(load_params(self.project.params_file), stage.name, key)
        return list(results_read(stage, key, recipe).values())

    def _name_what_is_known(self, record: Record, facts: StageFacts) -> None:
        """Put keys and digests in the place of the names that stood for them there.

        Only in what nobody reads but people, and in the metrics: journal and key.
        """
        hashes = hashes_of(facts.document["deps"])
        unknown = sorted(path for path in hashes if path not in hashes_of(record.document["deps"]))
        if record.fingerprint.startswith(PROVISIONAL):
            self.names[record.fingerprint] = str(facts.fingerprint)
            for number, path in enumerate(unknown):
                self.names[f"{record.fingerprint}.{number}"] = str(hashes[path]["md5"])
        folder = self.unpacked / RUNS / record.name
        journal = sorted((folder / DETAILS / "journal").rglob("*.jsonl"))
        for file in [folder / METRICS, folder / DETAILS / METRICS, *journal]:
            if file.is_file():
                content = file.read_bytes()
                for name in sorted(self.names, key=len, reverse=True):
                    content = content.replace(name.encode(), self.names[name].encode())
                file.write_bytes(content)

    def _places(self, record: Record) -> dict[str, Path]:
        """Return path in the suite's folder -> where that output lies now."""
        stage, key = stage_of(record.name), key_of(record.name)
        folder = self.unpacked / RUNS / record.name
        places = {path: folder / role for role, path in stage.output_paths(key).items()}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)  # an output may be an empty folder
        metrics = stage.metrics_path(key)
        return places if metrics is None else {**places, metrics: folder / METRICS}

    def _there(
        self, record: Record, outputs: Hashes, places: Mapping[str, Path], key: str
    ) -> Accepted:
        """Say whether the result that there is is this one."""
        there = self.unpacked / "there" / record.name
        self.cache.link(self.project.root, outputs, there)
        if all(_marks(there / path) == _marks(place) for path, place in places.items()):
            return Accepted(record.name, Verdict.THERE, key=key)
        detail = "its key has another result already, made elsewhere; that one stays"
        return Accepted(record.name, Verdict.OTHER, detail, key)

    def _file(self, record: Record, facts: StageFacts, places: Mapping[str, Path]) -> None:
        root, scratch = self.project.root, self.project.scratch
        code = code_folder(scratch, freeze(read_code(root), scratch))
        self.inputs.mkdir(exist_ok=True)
        self.cache.file(Filing(
            root=root, suite=self.project.suite, document=facts.document, outputs=places,
            code=code, inputs=self.inputs, params=self.project.params_file, scratch=self.unpacked,
        ))  # fmt: skip
        job = JobFolder.of(scratch, str(facts.fingerprint))
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.accepted, {"bundle": self.results.bundle, **dataclasses.asdict(record)})


def _marks(place: Path) -> Marks:
    return mark_folder(place) if place.is_dir() else {"": mark_file(place)}
