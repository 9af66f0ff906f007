"""Seeds and sweeps: a suite.yaml names them once, and becomes the params.yaml that DVC reads.

DVC makes a stage of every entry of params.yaml and cannot multiply them itself.
"""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.files import each
from pipeline.config.sweeps import SWEEPS, Swept, expand_sweeps, sweep_section
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.stages.table import EVALUATIONS

SUITE_FILE = "suite.yaml"


def expand(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a suite with an experiment for each run of its sweeps, and each of its seeds.

    `seeds` of the suite holds for all experiments, `seeds` of an experiment for that one. The first
    seed keeps the experiment's name; another one, s, makes `<name>-seed<s>`, with an entry in each
    section that has one for the name. One that begins with another experiment's weights begins with
    those of the same seed, where that one has it.

    Args:
        content: Of a suite.yaml.
        path: The file, for what is said of it.

    Raises:
        UserError: Seeds are no list of different whole numbers, or made twice; or a sweep is not
            valid.
    """
    swept = expand_sweeps(content, path)
    return _expand_seeds(swept, path)


def _expand_seeds(swept: Swept, path: Path) -> dict[str, Any]:
    """Return the suite with an experiment for each seed, and which belong to a sweep."""
    content = swept.content
    expanded = {key: copy.deepcopy(value) for key, value in content.items() if key != "seeds"}
    everywhere = content.get("seeds")
    names: dict[str, list[str]] = {}
    taken: dict[str, list[int]] = {}
    experiments: dict[str, Any] = {}
    for key, item in each(content.get("experiments")):
        if not isinstance(item, Mapping):
            experiments[key] = item
            continue
        fields = dict(copy.deepcopy(item))
        own = fields.pop("seeds", None)
        if own is not None and "seed" in fields:
            raise UserError(
                f"{path}: experiments.{swept.written.get(key, key)}: has both seed and seeds; "
                "remove one"
            )
        if own is not None and fields.get("method") == "imported":
            raise UserError(
                f"{path}: experiments.{key}.seeds: an imported encoder is not trained; give "
                "its tasks seeds, or remove it"
            )
        seeds = own if own is not None else everywhere
        if seeds is None or "seed" in fields or fields.get("method") == "imported":
            experiments[key] = fields
            continue
        where = f"experiments.{swept.written.get(key, key)}.seeds" if own is not None else "seeds"
        taken[key] = _checked(seeds, where, path)
        for seed in taken[key]:
            name = key if seed == seeds[0] else f"{key}-seed{seed}"
            if name in experiments or (name in content["experiments"] and name != key):
                raise UserError(
                    f"{path}: {where}: would create {name}, which exists already; rename one"
                )
            # the default is not written: seeds that are added later leave the first run valid
            experiments[name] = {**fields, "seed": seed} if seed else fields
            names.setdefault(key, []).append(name)
    _pair_seeds(experiments, names, taken)
    expanded["experiments"] = experiments
    for section in (str(stage.section) for stage in EVALUATIONS):
        # entries follow the experiments'; their own seeds stay what they are
        entries: dict[str, Any] = {}
        for key, item in each(content.get(section)):
            for name in names.get(key, [key]):
                entries[name] = copy.deepcopy(item)
        if isinstance(content.get(section), Mapping):
            expanded[section] = entries
    if swept.values:
        expanded[SWEEPS] = sweep_section(swept, names)
    return expanded


def _pair_seeds(
    experiments: dict[str, Any], names: Mapping[str, list[str]], taken: Mapping[str, list[int]]
) -> None:
    """Let repetitions begin with weights of their own seed: else they would share a pre-training.

    Args:
        experiments: By name, seeds told apart; changed in place.
        names: Experiment as written -> those it has become.
        taken: Experiment as written -> its seeds, in the same order.
    """
    for key, made in names.items():
        for name, seed in zip(made, taken[key], strict=True):
            start = experiments[name].get("initialise")
            source = start.get("experiment") if isinstance(start, Mapping) else None
            if not (isinstance(source, str) and source in names):
                continue
            own = dict(zip(taken[source], names[source], strict=True))
            if seed in own:
                start = {**start, "experiment": own[seed]}
                experiments[name] = {**experiments[name], "initialise": start}


def expansion_of(folder: Path) -> dict[str, Any] | None:
    """Return what a suite's params.yaml has to be; None where nothing but itself says so.

    Raises:
        UserError: suite.yaml is not valid.
    """
    path = folder / SUITE_FILE
    return expand(read_yaml(path), path) if os.path.lexists(path) else None


def params_text(expanded: Mapping[str, Any]) -> str:
    """Return the text of a params.yaml."""
    head = f"# Generated from {SUITE_FILE} by asl-pipe expand; edit that file.\n"
    return head + yaml.dump(dict(expanded), Dumper=_Plain, sort_keys=False, width=100)


class _Plain(yaml.SafeDumper):
    """Writes what is the same twice: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _checked(seeds: Any, where: str, path: Path) -> list[int]:
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) != len(seeds):
        raise UserError(
            f"{path}: {where}: got {seeds!r}, expected different whole numbers, for instance [0, 1]"
        )
    return seeds
