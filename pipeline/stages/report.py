"""The report of a suite: tables beside the paper's, figures, one page."""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.config.params import Params
from pipeline.stages.request import StageRequest
from pipeline.tables.collect import Suite, collect, doubts
from pipeline.tables.html import page
from pipeline.tables.latex import latex
from pipeline.tables.layout import all_tables
from pipeline.tables.paper import load_paper
from pipeline.tables.records import csv_tables, json_tables
from pipeline.tables.render import markdown
from pipeline.tables.sweep import sweep_tables
from pipeline.tables.sweep_formats import markdown as sweep_markdown

logger = logging.getLogger(__name__)

FILES = ("index.html", "tables.md", "tables.csv", "tables.json", "tables.tex")


def run(request: StageRequest[Params]) -> dict[str, float]:
    """Write the report of the suite; a report measures nothing itself."""
    write_report(request.inputs["suite"], request.recipe, request.out, request.page_of)
    for name in FILES:
        request.journal.artifact(name)
    return {}


def write_report(
    suite_folder: Path,
    params: Params,
    out: Path,
    page_of: Callable[[str], str | None] = lambda _: None,
) -> None:
    """Write index.html, which needs no network, and the tables by themselves.

    Numbers that are not those of dvc.lock are marked, and a warning is logged.

    Args:
        suite_folder: Folder with params.yaml, dvc.lock and runs/.
        params: The suite's resolved params.yaml.
        out: Folder to write into; made if missing.
        page_of: Finds the address at which a run is shown, by its fingerprint.

    Raises:
        UserError: A metrics file is damaged, or params.yaml names an unknown table.
    """
    suite, paper = collect(suite_folder, params), load_paper()
    for doubt in doubts(suite.results.values()):
        logger.warning("%s", doubt)
    tables = all_tables(suite, paper)
    contents = (
        page(suite, paper, page_of),
        f"# Results of suite {suite.name}\n\n{markdown(tables)}{_sweeps(suite)}",
        csv_tables(suite, tables),
        json_tables(suite, tables),
        latex(tables),
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in zip(FILES, contents, strict=True):
        (out / name).write_text(content, encoding="utf-8")


def _sweeps(suite: Suite) -> str:
    """Return the tables of a suite's sweeps as Markdown; nothing where it has none."""
    return f"\n{sweep_markdown(sweep_tables(suite))}" if suite.sweeps else ""
