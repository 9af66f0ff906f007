"""Choose of a sweep: what is written into suite.yaml, and why.

The sweep stays one, of a single combination: names of runs contain the swept values, so that what
was chosen keeps its name, and with it its result.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from asl_core.wording import counted
from pipeline.config.expand import expand
from pipeline.config.suite_text import with_sweep
from pipeline.config.sweeps import KEY, SWEEPS
from pipeline.errors import UserError
from pipeline.rounding import fixed
from pipeline.stages.table import EVALUATIONS, PRETRAIN
from pipeline.tables.collect import Suite, doubts
from pipeline.tables.sweep import Candidate, SweepTable, difference
from pipeline.tables.sweep_formats import DECIMALS

_COLUMNS = 96
_MOST_NAMED = 20


@dataclass(frozen=True)
class Choice:
    """What is chosen.

    Attributes:
        best: Of the sweep.
        reason: Lines that say by what, of how many, by which margin.
        text: Of suite.yaml.
        expanded: What it becomes.
    """

    best: Candidate
    reason: tuple[str, ...]
    text: str
    expanded: Mapping[str, Any]


def choose(
    suite: Suite, table: SweepTable, text: str, path: Path, today: str, *, partial: bool
) -> Choice:
    """Choose the best of a sweep.

    Args:
        suite: Its results.
        table: The sweep.
        text: Of suite.yaml.
        path: That file.
        today: The date.
        partial: Choose although runs are missing.

    Raises:
        UserError: Runs are missing or in doubt, there is nothing to choose, or the file is
            written in a way that cannot be changed in place.
    """
    name = table.experiment
    if len(table.candidates) == 1:
        raise UserError(
            f"{path}: experiments.{name}: its sweep has one combination, "
            f"{table.candidates[0].name}; nothing is left to choose"
        )
    _refuse_missing(table, partial=partial)
    _refuse_doubtful(table)
    best = table.ranked[0]
    reason = tuple(_reason(suite, table, today))
    value = _flow({field: [best.values[field]] for field in table.fields})
    content, before = _parsed(text), expand(_parsed(text), path)
    old = content["experiments"][name].get(KEY, content.get(KEY))
    comment = [*reason, *_wrapped(f"Before: {_flow(old)}")]
    by_hand = f"write `{KEY}: {value}` into experiments.{name} by hand"
    try:
        changed = with_sweep(text, name, value, comment)
        after = expand(_parsed(changed), path)
    except (ValueError, YAMLError, UserError) as error:
        said = str(error).splitlines()[0].removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot be changed in place ({said}); {by_hand}") from error
    _refuse_other_changes(before, after, table, best, path)
    return Choice(best, reason, changed, after)


def _parsed(text: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(text)


def _refuse_missing(table: SweepTable, *, partial: bool) -> None:
    missing = table.missing
    if not table.ranked:
        first = table.results[0].command
        raise UserError(
            f"sweep of {table.experiment}: no run has {table.metric.name} yet; `{first}` makes "
            "the first"
        )
    if missing and not partial:
        names = ", ".join(f"{run.stage}@{run.key}" for run in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise UserError(
            f"sweep of {table.experiment}: {len(missing)} of {len(table.results)} runs are "
            f"missing: {names}{more}; run them, or choose of the others with --partial"
        )


def _refuse_doubtful(table: SweepTable) -> None:
    found = doubts(table.results)
    old = [f"{run.stage}@{run.key}" for run in table.results if run.state == "outdated"]
    if old:
        found.append(
            f"sweep of {table.experiment}: {', '.join(old[:_MOST_NAMED])} made with other "
            "parameters or inputs than now; dvc repro makes them anew"
        )
    if found:
        raise UserError("\n".join(found))


def _reason(suite: Suite, table: SweepTable, today: str) -> list[str]:
    ranked, metric = table.ranked, table.metric
    best = ranked[0]
    images = "the dataset's selection" if metric.on_test else "training images held out"
    runs = sum(len(each.measured) for each in ranked)
    words = [
        f"picked {today}: {best.name} by {metric.name} of {metric.stage} ({images}), "
        f"{_number(best.value)}, the best of {counted(len(ranked), 'combination')}, "
        f"{counted(runs, 'run')}"
    ]
    if len(ranked) > 1:
        margin, error = difference(best, ranked[1])
        told = "not known" if error is None else _number(error)
        words.append(
            f"; {_number(margin)} above {ranked[1].name}, standard error of the difference {told}"
        )
    words.append(".")
    equal = sum(each.value == best.value for each in ranked)
    if equal > 1:
        words.append(f" It is the first of {equal} equal ones.")
    if best.floor is not None:
        words.append(f" An untrained encoder has {_number(best.floor)}.")
    if table.missing:
        words.append(f" Missing were {counted(len(table.missing), 'run')}.")
    stopped = sum(len(each.stopped) for each in table.candidates)
    if stopped:
        words.append(f" Halving had stopped {counted(stopped, 'run')}.")
    keys = (f"{each.name} {_number(each.value)} ({_keys(suite, each)})" for each in ranked)
    named = ", ".join([*keys][:_MOST_NAMED])
    more = f" and {len(ranked) - _MOST_NAMED} more" if len(ranked) > _MOST_NAMED else ""
    return [*_wrapped("".join(words)), *_wrapped(f"Runs, by keys of pretrain: {named}{more}.")]


def _keys(suite: Suite, each: Candidate) -> str:
    """Return the keys of a candidate's pre-trainings, short."""
    runs = (suite.results[PRETRAIN.name, key] for key in each.keys)
    return " ".join(run.short_fingerprint or "no key" for run in runs)


def _refuse_other_changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    table: SweepTable,
    best: Candidate,
    path: Path,
) -> None:
    """Refuse a change of anything but that the other runs of the sweep are gone."""
    dropped = {key for each in table.candidates for key in each.keys} - {*best.keys}
    expected = dict(before)
    for section in ("experiments", *(str(stage.section) for stage in EVALUATIONS)):
        entries = before.get(section)
        if isinstance(entries, Mapping):
            expected[section] = {k: v for k, v in entries.items() if k not in dropped}
    sweeps = {name: dict(sweep) for name, sweep in before[SWEEPS].items()}
    own = sweeps[table.experiment]
    own["runs"] = {key: values for key, values in own["runs"].items() if key in best.keys}
    expected[SWEEPS] = sweeps
    others = [
        name for name, sweep in sweeps.items()
        if after.get(SWEEPS, {}).get(name) != sweep and name != table.experiment
    ]  # fmt: skip
    if others:
        raise UserError(
            f"{path}: {', '.join(others)} would change too: the sweep is taken from "
            f"{table.experiment}; pick {others[0]} first, or write a sweep of its own into it"
        )
    if after != expected:
        raise UserError(
            f"{path}: the change would alter more than the sweep of {table.experiment}; write it "
            f"by hand: {KEY}: {_flow({f: [best.values[f]] for f in table.fields})}"
        )
    for name, item in expected["experiments"].items():
        start = item.get("initialise") if isinstance(item, Mapping) else None
        if isinstance(start, Mapping) and start.get("experiment") in dropped:
            raise UserError(
                f"{path}: experiments.{name} begins with the weights of {start['experiment']}, "
                f"which {best.name} beats; let it begin with {best.name}, or keep the sweep"
            )


def _flow(value: object) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    return text.strip().removesuffix("\n...")


def _wrapped(text: str) -> Sequence[str]:
    return textwrap.wrap(text, _COLUMNS - 4, break_long_words=False, break_on_hyphens=False)


def _number(value: float | None) -> str:
    return "-" if value is None else fixed(value, DECIMALS)
