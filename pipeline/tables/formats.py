"""The tables of a suite in one of the formats. Reads only."""

import shutil
from collections.abc import Callable

from pipeline.tables import latex, render
from pipeline.tables.collect import Suite
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tracking.find import find_tracker


def render_tables(suite: Suite, form: str, width: int | None = None) -> str:
    """Return a suite's tables: the paper's numbers, ours, the difference.

    Args:
        suite: Its results.
        form: text for a terminal; md; latex (booktabs); html: the whole report page.
        width: Columns of the terminal; absent: as it is.
    """
    paper = load_paper()
    if form == "html":
        from pipeline.tables.html import page  # brings matplotlib, which the others do not need

        return page(suite, paper, find_tracker(suite.root).page_of)
    found = lay_out(suite, paper)
    columns = width or shutil.get_terminal_size((140, 24)).columns
    forms: dict[str, Callable[[], str]] = {
        "text": lambda: render.text(found, width=columns),
        "md": lambda: render.markdown(found),
        "latex": lambda: latex.latex(found),
    }
    return forms[form]()
