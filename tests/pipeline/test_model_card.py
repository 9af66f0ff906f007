"""The card of an exported encoder as text; what it says of a suite: test_weights_exchange.py."""

from dataclasses import replace

import yaml

from pipeline.execution.model_card import ModelCard, ResultRow, model_card

ROW = ResultRow(
    title="Probe", data="a|b", value="53.3 ru", error="2.5", images="400", floor="47.3",
    above="**no**",
)  # fmt: skip
CARD = ModelCard(
    name="mae",
    front={"library_name": "timm", "tags": ["vit", "yes: no"]},
    summary="An encoder.",
    scale="reduced",
    usage="import timm",
    outputs=["`model(images)`: vectors"],
    preprocessing="RGB",
    checked="Read by timm.",
    data=["`icons`", "a note"],
    licence_note="Not stated.",
    results=[ROW],
    notes=["u: not above"],
    missing=["Box AP"],
    settings=[("lr", "0.1"), ("note", "two\nlines")],
    origin=[("commit", "`c0ffee`")],
)


def test_the_card_is_yaml_and_markdown() -> None:
    _, front, body = model_card(CARD).split("---\n", 2)
    assert yaml.safe_load(front) == CARD.front
    lines = body.splitlines()
    assert r"| Probe | a\|b | 53.3 ru | 2.5 | 400 | 47.3 | **no** |" in lines
    assert "| `lr` | 0.1 |" in lines
    assert "| `note` | two lines |" in lines
    assert {"# mae", "import timm", "- a note", "- u: not above", "- commit: `c0ffee`"} <= {*lines}
    assert "No result yet: Box AP." in lines
    assert any("reduced scale" in line for line in lines)
    # a table is one only if nothing but an empty line stands before it, and its rows stay together
    first = lines.index(next(line for line in lines if line.startswith("| evaluation")))
    assert lines[first - 1] == ""
    assert lines[first + 2].startswith("| Probe")
    assert lines[first + 3] == ""


def test_without_results_it_says_so() -> None:
    card = model_card(replace(CARD, results=[], notes=[], missing=[], scale="paper"))
    assert "None: nothing was measured of this encoder." in card
    assert "| evaluation" not in card
    assert "No result yet" not in card
    assert "reduced scale" not in card
