"""The documentation builds without a network, loads nothing from one, and leads nowhere in vain."""

import dataclasses
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urldefrag

import pytest
import typer.main

from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES
from pipeline.cli import app
from pipeline.stages.table import STAGES

ROOT = Path(__file__).parents[2]
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
FROM_ELSEWHERE = ("http:", "https:", "//")
NOWHERE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@dataclass(frozen=True, kw_only=True)
class Base:
    """Settings of several."""

    path: str
    rate: float = 1.0
    """How fast."""
    form: Literal["round", "square"] | None = None
    sides: tuple[int, ...] = (1, 2)
    """Of it."""
    wanted: bool = True


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """Settings of one of them."""

    rate: float = 2.0


class Html(HTMLParser):
    """What a page loads, where it leads, and where one can be led in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in LOADING and LOADING[tag] in given:
            self.loads.append(given[LOADING[tag]])
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        self.anchors |= {given[name] for name in ("id", "name") if name in given}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).with_name("mkdocs")
    done = subprocess.run(
        [program, "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, **NOWHERE, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    """All pages but the one for addresses that do not exist, which is served from anywhere."""
    files = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    return {path: Html(path.read_text(encoding="utf-8")) for path in files}


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    for path, page in pages.items():
        assert [place for place in page.loads if place.startswith(FROM_ELSEWHERE)] == [], path
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8").replace('"', "").replace("'", "")
        assert "url(http" not in text, path
        assert "@import" not in text, path


def test_what_pages_load_and_where_they_lead_is_there(pages: dict[Path, Html]) -> None:
    missing = []
    for path, page in pages.items():
        for address in {*page.loads, *page.leads}:
            place, anchor = urldefrag(address)
            if ":" in place:
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            page_there = pages.get(target)
            anchors = {anchor} if page_there is None else {"", *page_there.anchors}
            if not target.is_file() or unquote(anchor) not in anchors:
                missing.append(f"{path.name}: {address}")
    assert missing == []


def test_every_setting_has_a_place_on_the_page_of_its_method(
    site: Path, pages: dict[Path, Html]
) -> None:
    for name, recipe in {**RECIPES, **NOT_TRAINED}.items():
        anchors = pages[site / f"recipes/{name}.html"].anchors
        found = {anchor.rpartition("-")[2] for anchor in anchors if "-" in anchor}
        expected = {field.name for field in dataclasses.fields(recipe)} - {"method"}
        assert expected <= found, name


def test_a_setting_has_the_default_of_its_class_and_the_docstring_of_its_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/hooks")
    described = importlib.import_module("recipe_pages").settings_of(Derived)
    assert [(s.name, s.kind, s.default, s.meaning, s.owner) for s in described] == [
        ("rate", "float", "2.0", "How fast.", Derived),
        ("path", "str", None, "", Base),
        ("form", "round | square", "absent", "", Base),
        ("sides", "tuple[int, ...]", "[1, 2]", "Of it.", Base),
        ("wanted", "bool", "true", "", Base),
    ]


def test_every_command_every_option_and_every_stage_is_described(
    site: Path, pages: dict[Path, Html]
) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert commands.keys() <= pages[site / "commands.html"].anchors
    text = (site / "commands.html").read_text(encoding="utf-8")
    for command in commands.values():
        for parameter in command.params:
            assert max(parameter.opts, key=len) in text or parameter.metavar in text
    stages = (site / "stages.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in stages for name in STAGES)


def test_the_notebook_is_a_page_with_its_pictures(site: Path, pages: dict[Path, Html]) -> None:
    shown = [name for name in pages[site / "own_images.html"].loads if "own_images_files" in name]
    assert len(shown) >= 3
    assert (site / "own_images.ipynb").is_file()
