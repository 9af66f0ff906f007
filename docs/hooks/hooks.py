"""What mkdocs calls while it builds this site: pages that are made, links that lead out of docs.

Made when the site is built and not committed: all settings from the recipes, commands from the
command line's own help, Python from docstrings, the notebook as a page.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]  # this checkout, whatever is installed

import command_pages  # noqa: E402
import notebook_page  # noqa: E402
import python_pages  # noqa: E402
import recipe_pages  # noqa: E402

NOTEBOOK = ROOT / "docs/own_images.ipynb"
CONTRIBUTING = "contributing.md"
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`]*`")
_METHODS = "Methods"
"""Title in the navigation of mkdocs.yml below which every method gets a line."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every method into the navigation."""
    _extend(config.nav, recipe_pages.method_pages())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made: list[tuple[str, str | bytes]] = [
        (command_pages.PATH, command_pages.page()),
        (CONTRIBUTING, contributing.replace("](docs/", "](")),
        *recipe_pages.pages(),
        *python_pages.pages(),
        *notebook_page.pages(NOTEBOOK),
    ]
    for path, content in made:
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files that have a page here lead to it; write tables as this Markdown has it."""
    if page.file.src_uri != NOTEBOOK.with_suffix(".md").name:  # which offers the notebook itself
        markdown = markdown.replace(f"]({NOTEBOOK.name})", f"]({NOTEBOOK.stem}.md)")
    markdown = markdown.replace("](../CONTRIBUTING.md", f"]({CONTRIBUTING}")
    return _ROW.sub(lambda row: _CODE.sub(_without_escapes, row[0]), markdown)


def _without_escapes(code: re.Match[str]) -> str:
    r"""Write | for \| in code: elsewhere a cell would end there, here it does not."""
    return code[0].replace("\\|", "|")


def _extend(nav: Any, paths: list[str]) -> None:
    """Append pages to the part of a navigation that has the title of the methods."""
    for entry in nav:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            if title == _METHODS and isinstance(below, list):
                below.extend({Path(path).stem: path} for path in paths)
            elif isinstance(below, list):
                _extend(below, paths)
