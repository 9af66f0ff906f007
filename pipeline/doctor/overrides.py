"""What cluster.yaml sets for single experiments: does it fit any, and what do jobs ask for."""

import contextlib
from collections.abc import Mapping

from pipeline.config.cluster import ClusterFile
from pipeline.config.job_resources import JobResources
from pipeline.config.overrides import Override
from pipeline.config.suggest import hint
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.project import Project, suite_folders
from pipeline.stages.table import STAGES

Keys = Mapping[str, frozenset[str]]


def keys_of_all_suites(project: Project) -> Keys:
    """Return the keys that each stage has in any suite; a file that cannot be read has none."""
    found: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for folder in suite_folders(project.root).values():
        with contextlib.suppress(UserError):
            raw = read_yaml(folder / "params.yaml")
            for stage, row in STAGES.items():
                section = raw.get(str(row.section))
                found[stage].update(map(str, section) if isinstance(section, Mapping) else ())
    return {stage: frozenset(keys) for stage, keys in found.items()}


def unfitting(file: ClusterFile, keys: Keys) -> list[str]:
    """Return a line for each entry that is of no experiment here; another checkout may have it."""
    lines: list[str] = []
    for section, each in file.overrides:
        known = sorted(set().union(*(keys[stage] for stage in each.stages)))
        if not any(map(each.fits, known)):
            place = ".".join((section, *each.place))
            lines.append(f"{file.path}: {place}: no experiment of any suite is called so"
                         f"{hint(each.name, known)}")  # fmt: skip
    return lines


def requests_of(file: ClusterFile, keys: Keys) -> dict[str, JobResources]:
    """Return what jobs ask for: each stage's, and where it differs those of an experiment."""
    found = {stage: file.job_request(stage).asked for stage in STAGES}
    for section, each in file.overrides:
        if section != file.settings.section:
            continue
        for stage in each.stages:
            key = _example(each, keys[stage])
            if key is None:
                continue
            asked = file.job_request(stage, key).asked
            if asked not in found.values():
                found[f"{stage} {key}"] = asked
    return found


def _example(override: Override, keys: frozenset[str]) -> str | None:
    return next((key for key in sorted(keys) if override.fits(key)), None)
