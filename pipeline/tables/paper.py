"""The paper's numbers (paper.yaml) as typed records, and which experiment fills which row."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from asl_core.recipes.catalogue import NOT_TRAINED
from asl_core.recipes.pretraining import MaskedPretraining, Pretraining
from pipeline.config.files import FieldNames, Problems
from pipeline.config.suggest import unknown_name
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError
from pipeline.stages.table import STAGES

Value = str | int | float | bool
PACKAGE_DATA = ("paper.yaml",)
FLOPS = "FLOPs"
"""Header of the paper's column of training cost."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    """A number that a stage writes to its metrics file."""

    name: str
    """As the metrics files have it: `lp_acc1`."""
    stage: str
    header: str
    unit: str
    decimals: int
    meaning: str
    suffix: str = ""
    """Printed behind the number itself: 1.59x."""
    optional: bool = False
    """A run may rightly leave it out; then a dash stands in the cell, not "missing"."""
    exact: bool = False
    """Counted, not measured: the same for every seed, and no better for being more or less."""
    tested: Literal["share", "mean", "whole"] | None = None
    """What it is of the test images: the share that is right, a mean over them, or one number of
    all together (AP, mIoU), whose standard error their number does not give."""

    @property
    def more_is_better(self) -> bool:
        """Whether it says how good an encoder is; a mean, as the similarity of tokens, does not."""
        return STAGES[self.stage].evaluates and self.tested in ("share", "whole")


class Column(_Record):
    """One measured column of a table."""

    metric: str
    header: str
    group: str = ""
    """Header above the column, where the paper has two levels."""
    part: str = ""
    """Name by which a suite takes this column alone: `table6-cifar10`."""
    data: str
    """What the metric is measured on, a key of `data`."""


class Data(_Record):
    """What the paper measured on, and how a suite's dataset shows that it is the same."""

    dataset: str
    """Its name under `datasets` of params.yaml."""
    test_images: int
    """Of the official split."""


class Row(_Record):
    """One row of a table: a method and its numbers."""

    name: str
    cite: int | None = None
    given: tuple[str, ...] = ()
    values: tuple[float | None, ...]
    """In the order of the table's columns; None where the paper prints a dash."""
    source: Literal["run", "quoted"]
    match: Mapping[str, Value]
    at: Mapping[str, Value] = {}
    instead: Mapping[str, str] = {}
    """Metric of a column -> what this row has in it: a supervised encoder's own accuracy, where
    the others are fine-tuned."""


class Table(_Record):
    """One table of the paper."""

    number: str
    title: str
    pretrained_on: str
    pretraining: tuple[str, ...]
    """The same as names under `datasets` of params.yaml."""
    model: str
    epochs: str
    given: tuple[str, ...] = ()
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> "Table":
        for row in self.rows:
            if len(row.values) != len(self.columns) or len(row.given) != len(self.given):
                raise ValueError(f"{self.number}, row {row.name}: not one value per column")
        return self

    @property
    def comparable(self) -> tuple[str, str, str]:
        """What two tables must share for their numbers to stand under each other."""
        return self.pretrained_on, self.model, self.epochs

    def flops(self, row: int) -> str | None:
        """Return a row's training cost as the paper prints it: `~1.5x`."""
        if FLOPS not in self.given:
            return None
        return self.rows[row].given[self.given.index(FLOPS)]

    def part(self, name: str) -> "Table":
        """Return the table with only the columns of one part."""
        kept = [index for index, column in enumerate(self.columns) if column.part == name]
        rows = tuple(
            row.model_copy(update={"values": tuple(row.values[index] for index in kept)})
            for row in self.rows
        )
        columns = tuple(self.columns[index].model_copy(update={"part": ""}) for index in kept)
        return self.model_copy(update={"columns": columns, "rows": rows})

    def row_of(self, recipe: Any, label: str | None, *, full_scale: bool) -> int | None:
        """Return the index of the row that an experiment fills, None where there is none.

        A label that names a row decides. Otherwise every entry of the row's `match` must equal
        the recipe's field and every other field of the recipe's own method must have its default;
        of several such rows the one with most entries counts, then the first.

        Args:
            recipe: The resolved recipe of a pre-training method.
            label: The `row` of the experiment in params.yaml.
            full_scale: Whether the rows' `at` (data, epochs) must hold as well.
        """
        named = [index for index, row in enumerate(self.rows) if row.name == label]
        candidates = named or [
            index for index, row in enumerate(self.rows) if _matches(recipe, row.match)
        ]
        if full_scale:
            candidates = [i for i in candidates if _has(recipe, _known_of(recipe, self.rows[i].at))]
        return max(candidates, key=lambda i: (len(self.rows[i].match), -i), default=None)


class Variant(_Record):
    """How a value of a recipe's field is called in a row's name."""

    field: str
    value: Value
    name: str


class FigureMethod(_Record):
    """One point of Figure 1; `base` is the method that a hybrid starts from."""

    method: str
    family: str
    base: str | None = None


class Figure(_Record):
    """Figure 1: its axes and methods; the text gives no coordinates."""

    title: str
    x: str
    y: str
    model: str
    finding: str
    methods: tuple[FigureMethod, ...]


class Paper(_Record):
    """Everything that the paper states as a number."""

    metrics: Mapping[str, Metric]
    headline: tuple[str, ...]
    similarity: tuple[str, ...]
    contrastive: tuple[str, ...]
    methods: Mapping[str, str]
    variants: tuple[Variant, ...]
    data: Mapping[str, Data]
    tables: Mapping[str, Table]
    figure1: Figure

    @model_validator(mode="before")
    @classmethod
    def _metrics_know_their_names(cls, content: Any) -> Any:
        metrics = content.get("metrics") if isinstance(content, dict) else None
        if not isinstance(metrics, dict):
            return content
        named = {k: {"name": k, **v} if isinstance(v, dict) else v for k, v in metrics.items()}
        return {**content, "metrics": named}

    @model_validator(mode="after")
    def _names_exist(self) -> "Paper":
        for key, table in self.tables.items():
            unknown = {column.metric for column in table.columns} - set(self.metrics)
            unknown |= {column.data for column in table.columns} - set(self.data)
            matched = {str(row.match.get("method", "no method")) for row in table.rows}
            unknown |= matched - {*self.methods, *NOT_TRAINED}
            if unknown:
                raise ValueError(f"{key} names {sorted(unknown)}, which is not defined")
        for names in (self.headline, self.similarity, self.contrastive):
            if unknown := set(names) - set(self.metrics):
                raise ValueError(f"{sorted(unknown)} is not among the metrics")
        return self

    def references(self) -> list[str]:
        """Return every name that `tables:` in params.yaml may have."""
        parts = [
            f"{key}-{part}"
            for key, table in self.tables.items()
            for part in dict.fromkeys(column.part for column in table.columns if column.part)
        ]
        return [*self.tables, *parts]

    def table(self, reference: str) -> Table:
        """Return a table, or one part of it: `table6-cifar10`.

        Raises:
            UserError: No table has this name.
        """
        if reference not in self.references():
            raise UserError("params.yaml: " + unknown_name("table", reference, self.references()))
        key, _, part = reference.partition("-")
        return self.tables[key].part(part) if part else self.tables[key]

    def method_label(self, recipe: Any) -> str:
        """Return a method's name with what distinguishes its variant: `ASL (DLE), mae_on ori`.

        A choice of design is always named, any other field only where it is not the default.
        """
        name = self.methods.get(recipe.method, recipe.method)
        fields = _own_fields(recipe)
        design = [f"({value.upper()})" for field, value, _ in fields if field == "design"]
        remarks = [
            self._remark(field, value)
            for field, value, default in fields
            if field != "design" and value != default
        ]
        return ", ".join([" ".join([name, *design]), *remarks])

    def _remark(self, field: str, value: Value) -> str:
        for variant in self.variants:
            if (variant.field, variant.value) == (field, value):
                return variant.name
        if isinstance(value, bool):
            return f"{field} {'yes' if value else 'no'}"
        return f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"


def _own_fields(recipe: Any) -> list[tuple[str, Any, Any]]:
    """Return (name, value, default) of the fields that not all methods of its kind have."""
    kinds = [Pretraining, *[MaskedPretraining] * isinstance(recipe, MaskedPretraining)]
    shared = {"method", *(field.name for kind in kinds for field in dataclasses.fields(kind))}
    return [
        (field.name, getattr(recipe, field.name), field.default)
        for field in dataclasses.fields(recipe)
        if field.name not in shared
    ]


def _known_of(recipe: Any, wanted: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return what a recipe can tell: on what an imported encoder was trained its row says alone."""
    told = recipe.method != "imported"
    return {name: value for name, value in wanted.items() if told or name != "dataset"}


def _has(recipe: Any, wanted: Mapping[str, Value]) -> bool:
    missing = object()
    return all(getattr(recipe, name, missing) == value for name, value in wanted.items())


def _matches(recipe: Any, wanted: Mapping[str, Value]) -> bool:
    others = all(
        value == default for name, value, default in _own_fields(recipe) if name not in wanted
    )
    return _has(recipe, wanted) and others


@cache
def load_paper() -> Paper:
    """Read and check paper.yaml, which is part of this package.

    Raises:
        UserError: One line per problem: a method that was added, for instance, with a wrong key.
    """
    return read_paper(Path(str(resources.files("pipeline.tables") / "paper.yaml")))


def read_paper(path: Path) -> Paper:
    """Read and check such a file.

    Raises:
        UserError: One line per problem.
    """
    raw = read_yaml(path)
    try:
        return Paper.model_validate(raw)
    except ValidationError as error:
        problems = Problems(path)
        problems.add_all(error, raw, FieldNames(lambda _: []))
        problems.raise_if_any()
        raise
