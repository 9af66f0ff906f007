"""README.md of an exported encoder, as Hugging Face calls it a model card. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

PACKAGE_DATA = ("templates/model_card.md.j2",)


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One number of an encoder beside that of a random one, as texts."""

    title: str
    data: str
    value: str
    error: str
    images: str
    floor: str
    above: str


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says.

    Attributes:
        name: Of the experiment.
        front: The fields of the YAML at its head.
        summary: What the encoder is, a sentence or two.
        scale: `reduced`, or another word.
        usage: Python that loads it.
        outputs: What it gives, a line each.
        preprocessing: What images go through before it.
        checked: Who has read the folder, and how far its features are from ours.
        data: What it was trained on, a line each.
        licence_note: Terms of the weights and of the images, as far as known.
        results: Its numbers.
        notes: What explains the marks of these.
        missing: Evaluations that the suite asks for and that have no result.
        settings: Every hyperparameter and its value.
        origin: What identifies the run: name and value.
    """

    name: str
    front: Mapping[str, Any]
    summary: str
    scale: str
    usage: str
    outputs: Sequence[str]
    preprocessing: str
    checked: str
    data: Sequence[str]
    licence_note: str
    results: Sequence[ResultRow]
    notes: Sequence[str]
    missing: Sequence[str]
    settings: Sequence[tuple[str, str]]
    origin: Sequence[tuple[str, str]]


def model_card(card: ModelCard) -> str:
    """Return the card as Markdown behind YAML."""
    environment = Environment(
        loader=PackageLoader("pipeline.execution", "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.filters["cell"] = _cell
    front = yaml.safe_dump(dict(card.front), sort_keys=False, allow_unicode=True)
    return environment.get_template("model_card.md.j2").render(card=card, front=front)


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table holds it."""
    return " ".join(str(text).split()).replace("|", "\\|") or "-"
