"""Sweeps: an experiment of a suite.yaml becomes one for each combination of values that it names.

    experiments:
      mae: {method: mae, ..., sweep: {lr: [1.0e-3, 2.0e-3], epochs: [4, 8]}}    # four
      asl: {method: asl, ..., sweep: [{lr: 1.0e-3, epochs: 4}, {lr: 2.0e-3, epochs: 8}]}    # two

A run's name is its experiment's with each swept field and its value behind it, in the order in
which the fields are written: `mae-lr2e-3-epochs8`. It does not depend on the other values, so that
values that are added later leave the runs that there are as they were.
"""

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES
from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import Vit
from pipeline.config.files import STRICT, Location, each
from pipeline.config.held_out import METRICS, HeldOut, measured, metric_of, why_not
from pipeline.config.suggest import hint, one_of, printable, shown
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.stages.table import EVALUATIONS, PRETRAIN

KEY, SELECT, HALVING = "sweep", "select", "halving"
SWEEPS = "sweeps"
"""Of params.yaml, generated."""
MOST_RUNS = 1000
LONGEST_NAME = 100
"""Characters: it becomes a part of paths."""
NESTED = {"model": Vit, "initialise": Initialise}
"""Fields with fields of their own, which a sweep names as `model.depth`."""
_PLAIN_FROM, _PLAIN_BELOW = 0.01, 1e6
"""Smaller and larger numbers are written with an exponent."""


class Halving(BaseModel):
    """Which runs are stopped before their end: see pipeline/jobs/halving.py."""

    model_config = STRICT

    metric: str
    """What pre-training is watched for."""
    at: tuple[float, ...]
    """Rungs: shares of a run's length."""
    keep: float
    """Share of the runs at a rung that goes on."""


class Sweep(BaseModel):
    """What params.yaml says of one: generated, so that tables know which runs belong together."""

    model_config = STRICT

    metric: str
    """By which its runs are ranked."""
    runs: dict[str, dict[str, Any]]
    """Experiment -> swept field -> its value; those that differ in the seed alone have the same."""
    halving: Halving | None = None
    """None: every run goes on to its end."""


@dataclass(frozen=True)
class Swept:
    """A suite.yaml whose sweeps are experiments.

    Attributes:
        content: Without `sweep` and `select`.
        written: Experiment -> that of the file it comes from.
        values: Experiment as written -> run -> swept field -> value.
        metrics: Experiment as written -> the metric by which its runs are ranked.
        halving: Of all sweeps: where runs are stopped; None: nowhere.
    """

    content: dict[str, Any]
    written: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    halving: Mapping[str, Any] | None = None


def expand_sweeps(content: Mapping[str, Any], path: Path) -> Swept:
    """Return a suite with an experiment for each run of its sweeps, and entries that measure them.

    `sweep` of the suite holds for all experiments that have none of their own. `untrained` takes
    part in it with the fields that it has, an imported encoder not at all.

    Args:
        content: Of a suite.yaml.
        path: The file, for what is said of it.

    Raises:
        UserError: A sweep is not valid.
    """
    _refuse_elsewhere(content, path)
    everywhere = content.get(KEY)
    plain = {key: value for key, value in content.items() if key not in (KEY, SELECT, HALVING)}
    if not isinstance(content.get("experiments"), Mapping):
        return Swept(plain)
    made: dict[str, list[dict[str, Any]]] = {}
    for key, item in each(content["experiments"]):
        if isinstance(item, Mapping) and (own := item.get(KEY, everywhere)) is not None:
            where = f"experiments.{key}.{KEY}" if KEY in item else KEY
            made[key] = _combinations(own, item, where, path, shared=KEY not in item)
    _refuse_too_many(content, made, path)
    written: dict[str, str] = {}
    values: dict[str, dict[str, dict[str, Any]]] = {}
    experiments: dict[str, Any] = {}
    for key, item in each(content["experiments"]):
        combinations = made.get(key)
        if not combinations:
            bare = isinstance(item, Mapping)
            experiments[key] = {k: v for k, v in item.items() if k != KEY} if bare else item
            continue
        where = f"experiments.{key}.{KEY}" if KEY in item else KEY
        for combination in combinations:
            name = _name(str(key), combination, f"{path}: {where}")
            if name in written or name in content["experiments"]:
                taken = "two of its runs have" if written.get(name) == key else "there is already"
                raise UserError(f"{path}: {where}: {taken} the name {name}; remove or rename one")
            base = {k: copy.deepcopy(v) for k, v in item.items() if k != KEY}
            experiments[name] = _with_values(base, combination)
            written[name] = str(key)
            values.setdefault(str(key), {})[name] = combination
    _begin_with_runs(experiments, written, values, path)
    swept = {**plain, "experiments": experiments}
    for section in (str(stage.section) for stage in EVALUATIONS):
        if isinstance(plain.get(section), Mapping):
            swept[section] = _measured(plain[section], values, f"{path}: {section}")
    trained = {
        key: runs for key, runs in values.items()
        if str(content["experiments"][key].get("method")) not in NOT_TRAINED
    }  # fmt: skip
    metrics = _metrics(content, trained, path)
    return Swept(swept, written, trained, metrics, _halving(content.get(HALVING), path))


def _measured(
    entries: Mapping[str, Any], values: Mapping[str, Iterable[str]], where: str
) -> dict[str, Any]:
    """Return a section's entries with one for each run of a sweep.

    Raises:
        UserError: A run has one of its own beside that of its sweep.
    """
    found: dict[str, Any] = {}
    for key, entry in entries.items():
        for name in values.get(key, [key]):
            if name in found:
                raise UserError(
                    f"{where}: {name} is measured by two entries, its own and that of its sweep; "
                    "remove one"
                )
            found[name] = entry
    return found


def sweep_section(swept: Swept, seeds: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return `sweeps` of params.yaml.

    Args:
        swept: The suite.
        seeds: Run -> those that it has become, one for each seed.
    """
    return {
        key: {
            "metric": swept.metrics[key],
            **({} if swept.halving is None else {HALVING: _halving_of(swept, key)}),
            "runs": {
                name: dict(values)
                for run, values in runs.items()
                for name in seeds.get(run, [run])
            },
        }
        for key, runs in swept.values.items()
    }  # fmt: skip


def is_halved(sweeps: Mapping[str, Sweep], run: str) -> bool:
    """Say whether a run belongs to a sweep whose hopeless runs are stopped."""
    return any(run in sweep.runs and sweep.halving is not None for sweep in sweeps.values())


def written_place(
    sweeps: object, params_file: Path, suite_file: Path
) -> Callable[[Location], tuple[Path, Location]]:
    """Return what tells where a person has written what stands at a location of params.yaml.

    Args:
        sweeps: `sweeps` of params.yaml, as read.
        params_file: The file.
        suite_file: From which it was generated.
    """
    origins = {
        run: (experiment, values)
        for experiment, sweep in each(sweeps)
        for run, values in (each(sweep.get("runs")) if isinstance(sweep, Mapping) else ())
    }

    sections = {"experiments", *(stage.section for stage in EVALUATIONS)}

    def place(location: Location) -> tuple[Path, Location]:
        if len(location) < 2 or location[0] not in sections or location[1] not in origins:
            return params_file, location
        if not suite_file.is_file():
            return params_file, location
        experiment, values = origins[location[1]]
        dotted = ".".join(map(str, location[2:]))
        if location[0] == "experiments" and isinstance(values, Mapping) and dotted in values:
            own = read_yaml(suite_file)["experiments"].get(experiment, {})
            above = ("experiments", experiment) if KEY in own else ()
            return suite_file, (*above, KEY, dotted)
        return suite_file, (location[0], experiment, *location[2:])

    return place


def _halving_of(swept: Swept, key: str) -> dict[str, Any]:
    """Return how a sweep is halved: by its own metric where that is watched in pre-training."""
    own = metric_of(swept.metrics[key])
    watched = next(metric for metric in METRICS.values() if metric.stage == PRETRAIN.name)
    metric = own if own.stage == PRETRAIN.name else watched
    return {"metric": metric.name, **(swept.halving or {})}


def value_text(value: object) -> str:
    """Return a value as a run's name has it: `2e-3`, `0p15`, `8`, `_dle`, `_true`, `_none`.

    Numbers from .01 to a million are written plainly, others with an exponent; a point is p, a
    minus m. Of a word stays what a name may have, behind an underscore.
    """
    if isinstance(value, bool) or value is None:
        return f"_{str(value).lower()}"
    if isinstance(value, int | float):
        return _number_text(value)
    if isinstance(value, list | tuple):
        return "_".join(value_text(part).lstrip("_") for part in value) or "_empty"
    return "_" + (re.sub(r"[^a-z0-9_]+", "-", str(value).lower()).strip("-") or "empty")


def _number_text(value: float) -> str:
    sign, size = "m" * (value < 0), abs(value)
    if not math.isfinite(size):
        return f"{sign}{size}"
    if size and not _PLAIN_FROM <= size < _PLAIN_BELOW:
        digits = repr(size) if isinstance(size, float) else str(size)
        mantissa, exponent = _scientific(digits)
        return f"{sign}{mantissa.replace('.', 'p')}e{exponent}"
    whole = int(size) if size == int(size) else size
    return f"{sign}{whole}".replace(".", "p")


def _scientific(digits: str) -> tuple[str, int]:
    """Return mantissa and exponent of a positive number that Python has written."""
    mantissa, _, exponent = digits.partition("e")
    whole, _, rest = mantissa.partition(".")
    figures = (whole + rest).lstrip("0")
    leading = len(whole + rest) - len(figures)
    power = int(exponent or 0) + len(whole) - 1 - leading
    figures = figures.rstrip("0") or "0"
    return (figures[0] + ("." + figures[1:] if figures[1:] else "")), power


def _name(experiment: str, combination: Mapping[str, Any], where: str) -> str:
    lasts = [dotted.rpartition(".")[2] for dotted in combination]
    parts = [experiment]
    for dotted, value in combination.items():
        last = dotted.rpartition(".")[2]
        shown_field = last if lasts.count(last) == 1 else dotted.replace(".", "_")
        parts.append(f"{shown_field}{value_text(value)}")
    name = "-".join(parts)
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"{where}: would make a name of {len(name)} characters, {name[:40]}..., at most "
            f"{LONGEST_NAME} are possible; sweep fewer fields, or shorter values"
        )
    return name


def _combinations(
    sweep: object, item: Mapping[str, Any], where: str, path: Path, *, shared: bool
) -> list[dict[str, Any]]:
    """Return the values of each run; none for one that does not take part."""
    method = item.get("method")
    if method == "imported":
        if shared:
            return []
        raise UserError(f"{path}: {where}: an imported encoder is not trained; remove the sweep")
    valid = _valid_fields(method)
    if isinstance(sweep, Mapping) and sweep:
        lists = {
            dotted: _checked_values(values, f"{path}: {where}.{dotted}")
            for dotted, values in sweep.items()
        }
        names = list(lists)
    elif isinstance(sweep, list) and sweep and all(isinstance(e, Mapping) and e for e in sweep):
        lists, names = None, list(sweep[0])
        for number, entry in enumerate(sweep):
            if {*entry} != {*names}:
                raise UserError(
                    f"{path}: {where}.{number}: has {one_of(map(str, entry))}, the first has "
                    f"{one_of(map(str, names))}; give every entry the same fields"
                )
            for dotted, value in entry.items():
                _refuse_mapping(value, f"{path}: {where}.{number}.{dotted}", str(dotted))
    else:
        raise UserError(
            f"{path}: {where}: got {shown(sweep)}, expected fields with lists of values, "
            "{lr: [1.0e-3, 2.0e-3]}, or a list of paired ones, [{lr: 1.0e-3, epochs: 4}, ...]"
        )
    if shared and str(method) in NOT_TRAINED:
        names = [name for name in names if name in (valid or ())]
    for dotted in names:
        _check_field(dotted, valid, method, f"{path}: {where}")
    if lists is not None:
        count = math.prod(len(lists[name]) for name in names)
        if count > MOST_RUNS:
            raise _too_many(count, f"{path}: {where}")
        found = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(lists[name] for name in names))
        ]
    else:
        assert isinstance(sweep, list)
        found = [{name: entry[name] for name in names} for entry in sweep]
    if not names:
        return []
    return [e for i, e in enumerate(found) if not shared or e not in found[:i]]


def _checked_values(values: object, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{where}: got {shown(values)}, expected a list of values, for instance "
            f"[{shown(values) if isinstance(values, int | float) else '1.0e-3'}, ...]"
        )
    texts: dict[str, Any] = {}
    for value in values:
        _refuse_mapping(value, where, where.rpartition(".")[2])
        text = value_text(value)
        if text in texts:
            other = texts[text]
            twice = "is there twice" if other == value else f"and {shown(other)} make one name"
            raise UserError(f"{where}: {shown(value)} {twice}; remove one")
        texts[text] = value
    return values


def _refuse_mapping(value: object, where: str, name: str) -> None:
    if isinstance(value, Mapping):
        first = next(iter(value), "field")
        raise UserError(
            f"{where}: got {shown(value)}, expected plain values; sweep {name}.{first} instead"
        )


def _valid_fields(method: object) -> list[str] | None:
    """Return what may be swept of a method; None where the method is not known."""
    declared = {**RECIPES, **NOT_TRAINED}.get(str(method))
    if declared is None:
        return None
    names = [each.name for each in fields(declared) if each.name != "seed"]
    for name, nested in NESTED.items():
        if name in names:
            names += [f"{name}.{each.name}" for each in fields(nested)]
    return [*names, *(["model.size"] if "model" in names else [])]


def _check_field(dotted: object, valid: Sequence[str] | None, method: object, where: str) -> None:
    if dotted in ("seed", "seeds"):
        raise UserError(f"{where}.{dotted}: several seeds are `seeds: [0, 1]`, beside the sweep")
    if valid is not None and dotted not in valid:
        words = str(dotted).split(".")
        near = hint(dotted, [name for name in valid if name.count(".") == len(words) - 1])
        raise UserError(
            f"{where}.{printable(str(dotted))}: unknown key of {method}{near or '; see its recipe'}"
        )


def _refuse_elsewhere(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a sweep of an evaluation: it measures the encoder of its name, once."""
    for stage in EVALUATIONS:
        section = str(stage.section)
        for key, entry in each(content.get(section)):
            if isinstance(entry, Mapping) and KEY in entry:
                grids = {metric.stage: metric.option for metric in METRICS.values()}
                grid = grids.get(stage.name)
                remedy = f"{grid} tries several" if grid else "sweep the experiment"
                raise UserError(
                    f"{path}: {section}.{key}.{KEY}: an evaluation is not swept, it has one result "
                    f"for each encoder; {remedy}, or make a suite for each setting"
                )


def _refuse_too_many(
    content: Mapping[str, Any], made: Mapping[str, Sequence[object]], path: Path
) -> None:
    total = 0
    for key, combinations in made.items():
        item = content["experiments"][key]
        seeds = item.get("seeds", content.get("seeds") if "seed" not in item else None)
        total += len(combinations) * (len(seeds) if isinstance(seeds, list) else 1)
    if total > MOST_RUNS:
        raise _too_many(total, f"{path}: {KEY}, seeds counted")


def _too_many(count: int, where: str) -> UserError:
    return UserError(
        f"{where}: would make {count:,} runs, at most {MOST_RUNS:,} are possible; "
        "name fewer values, or pairs of them"
    )


def _with_values(item: dict[str, Any], combination: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment with the values of one run, those of whole fields first."""
    for dotted, value in sorted(combination.items(), key=lambda pair: pair[0].count(".")):
        above, dot, name = dotted.partition(".")
        if not dot:
            item[dotted] = copy.deepcopy(value)
            continue
        given = item.get(above)
        inside = {} if given is None else {"size": given}
        if isinstance(given, Mapping):
            inside = dict(given)
        item[above] = {**inside, name: copy.deepcopy(value)}
    return item


def _begin_with_runs(
    experiments: dict[str, Any],
    written: Mapping[str, str],
    values: Mapping[str, Mapping[str, object]],
    path: Path,
) -> None:
    """Let experiments begin with the weights of a sweep's run where it has only one.

    Raises:
        UserError: It has several.
    """
    for name, item in experiments.items():
        start = item.get("initialise") if isinstance(item, Mapping) else None
        if not isinstance(start, Mapping):
            continue
        source = start.get("experiment")
        if not isinstance(source, str) or source not in values:
            continue
        runs = list(values[source])
        if len(runs) > 1:
            raise UserError(
                f"{path}: experiments.{written.get(name, name)}.initialise.experiment: {source} "
                f"is a sweep of {len(runs)} runs; name one, for instance {runs[0]}, or pick first"
            )
        experiments[name] = {**item, "initialise": {**start, "experiment": runs[0]}}


def _halving(given: object, path: Path) -> dict[str, Any] | None:
    """Return where runs are stopped.

    Raises:
        UserError: It is not valid.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or {*given} != {"at", "keep"}:
        raise UserError(
            f"{path}: {HALVING}: got {shown(given)}, expected {{at: [0.25, 0.5], keep: 0.5}}"
        )
    at, keep = given["at"], given["keep"]
    if not isinstance(at, list) or not at or not all(map(_is_share, at)) or (at != sorted({*at})):
        raise UserError(
            f"{path}: {HALVING}.at: got {shown(at)}, expected shares of a run's length between 0 "
            "and 1 that grow, for instance [0.25, 0.5]"
        )
    if not _is_share(keep):
        raise UserError(
            f"{path}: {HALVING}.keep: got {shown(keep)}, expected the share that goes on, between "
            "0 and 1, for instance 0.5"
        )
    return {"at": at, "keep": keep}


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _metrics(content: Mapping[str, Any], swept: Mapping[str, object], path: Path) -> dict[str, str]:
    """Return experiment -> the metric by which its runs are ranked."""
    select = content.get(SELECT)
    chosen: HeldOut | None = None
    if select is not None:
        if not isinstance(select, Mapping) or {*select} != {"metric"}:
            raise UserError(
                f"{path}: {SELECT}: got {shown(select)}, expected {{metric: NAME}}, one of "
                f"{one_of(METRICS)}"
            )
        try:
            chosen = metric_of(select["metric"])
        except ValueError as error:
            raise UserError(f"{path}: {SELECT}.metric: {error}") from None
    found: dict[str, str] = {}
    for key in swept:
        known = list(measured(content, key))
        if chosen is not None and chosen not in known:
            others = one_of(metric.name for metric in known)
            raise UserError(
                f"{path}: {SELECT}.metric: {why_not(chosen, key)}, or take one of {others}"
            )
        found[key] = (chosen or known[0]).name
    return found
