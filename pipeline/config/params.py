"""params.yaml of a suite, resolved into the frozen dataclasses of asl_core.recipes."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from asl_core.recipes import datasets as sources
from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES
from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Optimisation
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.tokenizers import Tokenizer, Tokenizing, require_tokenizer
from pipeline.config.check_starts import problems_of_starts
from pipeline.config.expand import SUITE_FILE, expansion_of
from pipeline.config.files import STRICT, FieldNames, Location, Problems, each, validate
from pipeline.config.held_out import OF_SELECTIONS
from pipeline.config.suggest import unknown_name
from pipeline.config.sweeps import HALVING, KEY, SELECT, SWEEPS, Halving, Sweep, written_place
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.stages.table import EVALUATIONS, RUN_BY_JOBS, STAGES, TOKENIZE

NAME = re.compile(r"[a-z][a-z0-9_-]*")
"""Names become parts of DVC stage names, dotted keys, paths and shell words."""

METHODS: dict[str, type[Any]] = {**RECIPES, **NOT_TRAINED}
SOURCES: dict[str, type[Any]] = {
    declared.__dataclass_fields__["source"].default: declared
    for declared in get_args(sources.Dataset)
}

TOKENIZERS: dict[str, type[Any]] = {
    declared.__dataclass_fields__["kind"].default: declared for declared in get_args(Tokenizer)
}

_EVALUATED = {stage.name: stage.recipe for stage in EVALUATIONS}
_DECLARED = (
    Optimisation, *NOT_TRAINED.values(), Vit, Initialise, sources.Packing, sources.Regions,
    Tokenizing, *_EVALUATED.values(),
)  # fmt: skip
for _declared in _DECLARED:
    # Pydantic reads this attribute off plain dataclasses and their subclasses; set here, so that
    # asl_core stays free of Pydantic.
    _declared.__pydantic_config__ = STRICT  # type: ignore[attr-defined]

Dataset = Annotated[sources.Dataset, Field(discriminator="source")]
if TYPE_CHECKING:
    Recipe = Any
else:
    Recipe = Annotated[Union[tuple(METHODS.values())], Field(discriminator="method")]  # noqa: UP007


class Params(BaseModel):
    """A suite: which data, which experiments, and a section for each stage that measures them.

    A suite need not write the sections that it does not use.
    """

    model_config = STRICT

    suite: str
    title: str
    scale: Literal["reduced", "paper", "own"]
    """Of the runs: that of the paper, a reduced one, or `own`: nothing that the paper did."""
    tables: tuple[str, ...] = ()
    """Tables of the paper that the suite fills; absent: one of its own, a row an experiment."""
    datasets: dict[str, Dataset]
    tokenizers: dict[str, Annotated[Tokenizer, Field(discriminator="kind")]] = {}
    """Name of the dataset that results -> what is done to which dataset."""
    experiments: dict[str, Recipe]
    rows: dict[str, str] = {}
    """Experiment -> its `row`, for those that name one."""
    sweeps: dict[str, Sweep] = {}
    """Experiment of suite.yaml -> the runs that its sweep has become."""

    def section(self, stage: str) -> Mapping[str, Any]:
        """Return the entries that a stage runs on, by key."""
        return getattr(self, str(STAGES[stage].section))


_SECTIONS: dict[str, Any] = {
    str(stage.section): (dict[str, stage.recipe], {}) for stage in EVALUATIONS
}
_SUITE = create_model("Suite", __base__=Params, **_SECTIONS)
_ADAPTER: TypeAdapter[Params] = TypeAdapter(_SUITE)


def load_params(
    path: Path,
    tables: Collection[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Params:
    """Read and check a suite's params.yaml.

    Args:
        path: The file.
        tables: Names that `tables` may have; absent: not checked.
        environment: As DVC has set it: in an experiment of its (`dvc exp run -S`) the file is
            meant to differ from what the suite.yaml beside it becomes.

    Raises:
        UserError: One line per problem: file, dotted key, what was found, what is expected.
    """
    expanded = expansion_of(path.parent)
    raw = read_yaml(path) if expanded is None or path.is_file() else {}
    if expanded is not None and expanded != raw and not environment.get("DVC_EXP_NAME"):
        raise UserError(
            f"{path} does not match the {SUITE_FILE} beside it; change what is meant in "
            f"{SUITE_FILE}, then asl-pipe expand {path.parent.name} writes {path.name} anew"
        )
    place = written_place(raw.get(SWEEPS), path, path.with_name(SUITE_FILE))
    problems = Problems(path, place)
    _check_names(raw, problems)
    if "rows" in raw:
        problems.add(("rows",), "unknown key; write `row` into the experiment")
    _refuse_seeds(raw, problems)
    rows = _take_rows(raw, problems)
    _resolve_models(raw, problems)
    _check_members(raw, problems)
    try:
        params = validate(_ADAPTER, {**raw, "rows": rows})
    except ValidationError as error:
        problems.add_all(error, raw, FieldNames(lambda location: _fields_at(raw, location)))
        problems.raise_if_any()
        raise
    _check_references(params, problems, tables)
    problems.raise_if_any()
    return params


def _check_names(raw: Mapping[str, Any], problems: Problems) -> None:
    for section in (str(stage.section) for stage in RUN_BY_JOBS):
        for key, _ in each(raw.get(section)):
            if not (isinstance(key, str) and NAME.fullmatch(key)):
                problems.add(
                    (section, key),
                    f"got the name {key!r}, expected lower-case letters, digits, - and _, "
                    "a letter first",
                )


def _refuse_seeds(raw: dict[str, Any], problems: Problems) -> None:
    """Say where several seeds are written: DVC cannot make runs of a list."""
    text = f"unknown key; several seeds go into {SUITE_FILE}, from which asl-pipe expand "
    text += "generates this file; a single seed is `seed`"
    if raw.pop("seeds", None) is not None:
        problems.add(("seeds",), text)
    for name in (KEY, SELECT, HALVING):
        if raw.pop(name, None) is not None:
            problems.add((name,), _SWEPT)
    for key, item in each(raw.get("experiments")):
        found = {"seeds": text, KEY: _SWEPT}.items() if isinstance(item, Mapping) else ()
        for written, told in found:
            if written in item:
                problems.add(("experiments", key, written), told)
                item = {name: item[name] for name in item if name != written}
                raw["experiments"][key] = item


_SWEPT = (
    f"unknown key; a sweep goes into {SUITE_FILE}, from which asl-pipe expand generates this file"
)


def _take_rows(raw: dict[str, Any], problems: Problems) -> dict[str, str]:
    """Move `row` out of the experiments: a label is no hyperparameter."""
    rows: dict[str, str] = {}
    experiments: dict[str, Any] = {}
    for key, item in each(raw.get("experiments")):
        if isinstance(item, Mapping) and "row" in item:
            item = dict(item)
            row = item.pop("row")
            if not isinstance(row, str):
                problems.add(("experiments", key, "row"), f"got {row!r}, expected a text")
            rows[str(key)] = str(row)
        experiments[key] = item
    if isinstance(raw.get("experiments"), Mapping):
        raw["experiments"] = experiments
    return rows


def _resolve_models(raw: dict[str, Any], problems: Problems) -> None:
    """Replace `model: NAME` and `model: {size: NAME, ...}` by all fields of the size."""
    for key, item in each(raw.get("experiments")):
        if not isinstance(item, Mapping) or "model" not in item:
            continue
        model, where = item["model"], ("experiments", key, "model")
        overrides = dict(model) if isinstance(model, Mapping) else {"size": model}
        size = overrides.pop("size", None)
        fields: dict[str, Any] = {}
        if isinstance(size, str) and size in MODELS:
            fields = dataclasses.asdict(MODELS[size]) | overrides
        elif size is None:
            problems.add(where, "is missing its size; add one, for instance size: vit-b")
        else:
            problems.add(where, unknown_name("model", size, MODELS))
        raw["experiments"][key] = {**item, "model": fields}


def _check_members(raw: dict[str, Any], problems: Problems) -> None:
    """Check the `source` of a union's members, which Pydantic would compare with every class."""
    valid = [name for name in SOURCES if name != "union"]
    for key, item in each(raw.get("datasets")):
        members = item.get("members") if isinstance(item, Mapping) else None
        for i, member in enumerate(members if isinstance(members, list) else []):
            source = member.get("source") if isinstance(member, Mapping) else None
            if source not in valid:
                where = ("datasets", key, "members", i, "source")
                problems.add(where, unknown_name("source", source, valid))


def _check_references(params: Params, problems: Problems, tables: Collection[str] | None) -> None:
    for stage in RUN_BY_JOBS:
        section = str(stage.section)
        if "dataset" not in stage.inputs:
            continue
        for key, item in params.section(stage.name).items():
            if stage.evaluates and key not in params.experiments:
                line = unknown_name("experiment", key, params.experiments)
                problems.add((section, key), line)
            known = [*params.datasets, *(() if stage is TOKENIZE else params.tokenizers)]
            if item.dataset not in known:
                line = unknown_name("dataset", item.dataset, known)
                problems.add((section, key, "dataset"), line)
    _check_tokenizers(params, problems)
    _check_regions(params, problems)
    _check_truth(params, problems)
    _check_sizes(params, problems)
    _check_decay(params, problems)
    for key, sweep in params.sweeps.items():
        for run in sweep.runs:
            if run not in params.experiments:
                text = unknown_name("experiment", run, params.experiments)
                problems.add((SWEEPS, key, "runs"), text)
        _check_metric(params, key, problems)
    for key, field, text in problems_of_starts(params.experiments):
        problems.add(("experiments", key, "initialise", field), text)
    for key, item in params.datasets.items():
        if item.selection and params.tables:
            problems.add(
                ("datasets", key, "selection"),
                "results on a selection are not comparable with the paper; leave tables empty",
            )
    if params.scale == "own" and params.tables:
        problems.add(("tables",), "the paper has no numbers for scale own; leave tables out")
    for i, name in enumerate(params.tables):
        if tables is not None and name not in tables:
            problems.add(("tables", i), unknown_name("table", name, tables))


def _check_metric(params: Params, key: str, problems: Problems) -> None:
    """Refuse a sweep that is ranked by test images."""
    sweep = params.sweeps[key]
    metric = OF_SELECTIONS.get(sweep.metric)
    if metric is None:
        return
    section = params.section(metric.stage)
    for item in (section[run] for run in sweep.runs if run in section):
        tokenized = params.tokenizers.get(item.dataset)
        packed = params.datasets.get(tokenized.dataset if tokenized else item.dataset)
        if packed is not None and not packed.selection:
            text = "is measured on test images, on which nothing is chosen; name another"
            problems.add((SWEEPS, key, "metric"), text)
            return


def _check_tokenizers(params: Params, problems: Problems) -> None:
    """Refuse two datasets of one name, and methods whose codes no tokenizer gives."""
    for key in params.tokenizers:
        if key in params.datasets:
            problems.add(("tokenizers", key), "`datasets` has this name too; choose another")
    for key, item in params.experiments.items():
        known = item.dataset in params.datasets or item.dataset in params.tokenizers
        if isinstance(item, TokenPretraining) and known:
            try:
                require_tokenizer(item, params.tokenizers.get(item.dataset))
            except ValueError as error:
                problems.add(("experiments", key, "dataset"), str(error))


def _check_regions(params: Params, problems: Problems) -> None:
    """Refuse methods that want regions on datasets that are packed without them."""
    for key, item in params.experiments.items():
        tokenized = params.tokenizers.get(item.dataset)
        name = tokenized.dataset if tokenized else item.dataset
        packed = params.datasets.get(name)
        wanted = isinstance(item, Pretraining) and item.view_plan().regions
        if packed is None or packed.regions or not wanted:
            continue
        problems.add(
            ("experiments", key, "dataset"),
            f"{item.method} wants regions, which {name} is packed without; give datasets.{name} "
            "regions: {scales: [500, 1000, 1500]}, or smaller scales for small images",
        )


def _check_truth(params: Params, problems: Problems) -> None:
    """Refuse stages that want of images what their source is known not to have."""
    wanted: list[tuple[str, str, str, str]] = []
    for stage in EVALUATIONS:
        if stage.wants is not None:
            section = str(stage.section)
            for key, item in params.section(stage.name).items():
                wanted.append((section, key, item.dataset, stage.wants))
    for key, item in params.experiments.items():
        if isinstance(item, Pretraining) and item.view_plan().labels:
            wanted.append(("experiments", key, item.dataset, "labels"))
    for section, key, dataset, what in wanted:
        tokenized = params.tokenizers.get(dataset)
        name = tokenized.dataset if tokenized else dataset
        packed = params.datasets.get(name)
        if not isinstance(packed, sources.Images | sources.WebDataset | sources.HuggingFace):
            continue
        if what == "labels" and packed.labelled:
            continue
        option = "label_column" if isinstance(packed, sources.HuggingFace) else "labels"
        how = f"set its {option}, or " if what == "labels" else ""
        problems.add(
            (section, key, "dataset"),
            f"wants {what}, which {name} has not; {how}take another dataset",
        )


def _check_sizes(params: Params, problems: Problems) -> None:
    """Refuse inputs of transfer tasks that are no whole patches of the encoder they get."""
    for stage in EVALUATIONS:
        if stage.input_side is None:
            continue
        for key, item in params.section(stage.name).items():
            side = getattr(item, stage.input_side)
            if side is None or key not in params.experiments:
                continue
            patch = params.experiments[key].model.patch_size
            multiple = stage.whole_patches * patch
            if side % multiple:
                problems.add(
                    (str(stage.section), key, stage.input_side),
                    f"got {side}, expected a multiple of {multiple}: patches of {key} have {patch} "
                    f"pixels{', and this stage wants an even number' * (stage.whole_patches == 2)}",
                )


def _check_decay(params: Params, problems: Problems) -> None:
    """Refuse decay by layer where there is none, and where it would scale another schedule."""
    for stage in RUN_BY_JOBS:
        section = str(stage.section)
        for key, item in params.section(stage.name).items():
            if getattr(item, "layer_decay", None) is None:
                continue
            if not stage.layer_decay:
                problems.add((section, key, "layer_decay"), "has no effect here; remove it")
            elif item.weight_decay_end is not None:
                problems.add(
                    (section, key, "weight_decay_end"),
                    "cannot go with layer_decay, which would scale it; set layer_decay: null",
                )


def _fields_at(raw: Mapping[str, Any], location: Location) -> list[str]:
    """Return the valid keys of the mapping at a location of params.yaml."""
    if not location:
        return [name for name in _SUITE.model_fields if name not in ("rows", SWEEPS)]
    item: Any = raw
    for part in location:
        item = item[part]
    section, extra = location[0], []
    if section == SWEEPS:
        return [*(Halving if location[-1] == HALVING and len(location) > 2 else Sweep).model_fields]
    if section == "experiments":
        extra = ["size"] if location[-1] == "model" else ["row"]
        nested = {"model": Vit, "initialise": Initialise}.get(str(location[-1]))
        extra = extra if nested in (None, Vit) else []
        declared = nested or METHODS.get(item.get("method"))
    elif section == "datasets":
        of_regions = location[-1] == "regions"
        declared = sources.Regions if of_regions else SOURCES.get(item.get("source"))
    elif section == TOKENIZE.section:
        declared = TOKENIZERS.get(item.get("kind"))
    else:
        declared = next(stage.recipe for stage in EVALUATIONS if stage.section == section)
    return [*(f.name for f in dataclasses.fields(declared)), *extra] if declared else extra
