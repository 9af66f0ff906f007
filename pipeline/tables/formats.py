"""The tables of a suite in one of the formats. Reads only."""

import shutil
from collections.abc import Callable

from pipeline.config.params import load_params
from pipeline.project import Project
from pipeline.tables import latex, render
from pipeline.tables.collect import collect
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tracking.find import find_tracker


def render_tables(project: Project, form: str, width: int | None = None) -> str:
    """Return a suite's tables: the paper's numbers, ours, the difference.

    Args:
        project: The project and the suite.
        form: text for a terminal; md; latex (booktabs); html: the whole report page.
        width: Columns of the terminal; absent: as it is.

    Raises:
        UserError: params.yaml or a result cannot be read.
    """
    paper = load_paper()
    suite = collect(project.suite, load_params(project.params_file, paper.references()))
    if form == "html":
        from pipeline.tables.html import page  # brings matplotlib, which the others do not need

        return page(suite, paper, find_tracker(project.root).page_of)
    found = lay_out(suite, paper)
    columns = width or shutil.get_terminal_size((140, 24)).columns
    forms: dict[str, Callable[[], str]] = {
        "text": lambda: render.text(found, width=columns),
        "md": lambda: render.markdown(found),
        "latex": lambda: latex.latex(found),
    }
    return forms[form]()
