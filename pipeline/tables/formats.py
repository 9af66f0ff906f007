"""The tables of a suite in one of the formats. Reads only."""

import shutil
from collections.abc import Callable

from pipeline.config.suggest import unknown_name
from pipeline.errors import UserError
from pipeline.project import suite_folders
from pipeline.tables import latex, records, render
from pipeline.tables.collect import Suite
from pipeline.tables.layout import all_tables, lay_out, suite_table
from pipeline.tables.paper import load_paper
from pipeline.tracking.find import find_tracker


def render_tables(
    suite: Suite, form: str, width: int | None = None, table: str | None = None
) -> str:
    """Return a suite's tables: the paper's numbers, ours, the difference.

    Args:
        suite: Its results.
        form: text for a terminal; md; latex (booktabs); html: the whole report page; csv and json:
            every cell with what is known of it, the tables of the analyses included.
        width: Columns of the terminal; absent: as it is.
        table: One of the suite's, by its name or as it is printed; absent: all.

    Raises:
        UserError: There is no such table.
    """
    paper = load_paper()
    if form == "html":
        from pipeline.tables.html import page  # brings matplotlib, which the others do not need

        return page(suite, paper, find_tracker(suite.root).page_of)
    found = all_tables(suite, paper) if form in ("csv", "json") else lay_out(suite, paper)
    if table is not None:
        reference = suite_table(suite, paper, table)
        if reference is None:
            valid = [*suite_folders(suite.root), *suite.tables]
            raise UserError(unknown_name("suite or table", table, valid))
        # the one table of a reduced suite has the numbers of all
        place = 0 if suite.reduced else suite.tables.index(reference)
        found = [found[place]]
    columns = width or shutil.get_terminal_size((140, 24)).columns
    forms: dict[str, Callable[[], str]] = {
        "text": lambda: render.text(found, width=columns),
        "md": lambda: render.markdown(found),
        "latex": lambda: latex.latex(found),
        "csv": lambda: records.csv_tables(suite, found),
        "json": lambda: records.json_tables(suite, found),
    }
    return forms[form]()
