"""The report page: self-contained, escaped, the same again. `results` is a suite's folder."""

import re
from html import escape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asl_core.engine.journal import Journal
from asl_core.recipes.optimisation import Resources
from pipeline.jobs.journal import read_records
from pipeline.stages.report import run, write_report
from pipeline.stages.request import StageRequest
from pipeline.tables.figures.pictures import PICTURE_WIDTH, embed_picture
from pipeline.tables.html import duration, is_shared, page, run_name
from pipeline.tables.paper import load_paper
from pipeline.tracking.find import find_tracker
from pipeline.tracking.mlflow.link import RunLink, write_link
from pipeline.tracking.mlflow.run_page import LOCAL_SERVER, run_page

PAPER = load_paper()
VOID = {"meta", "img", "br", "link", "input", "hr", "use", "path"}


class Outline(HTMLParser):
    """Collects attributes by tag and checks that tags are closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


@pytest.fixture
def finished(results: Any) -> Any:
    """A suite in which both experiments have a journal, pictures and a probe."""
    results.on_the_papers_data()
    for key, accuracy in (("mae", 51.0), ("asl", 53.0)):
        results.result("pretrain", key, **{"pretrain/loss": 0.5})
        results.result("linprobe", key, lp_acc1=accuracy)
        folder = results.folder / "runs" / "pretrain" / key
        with Journal.open(folder / "journal") as journal:
            journal.tags({"git.commit": "0123456789abcdef", "git.dirty": "true"})
            journal.dataset("icons", "fedcba9876543210", "data/icons", "train")
            journal.metrics(0, {"system/node/process_peak_resident_megabytes": 1073.741824})
            for step in range(1000):
                jagged = 1 + step * 7919 % 1000 / 1000
                journal.metrics(step, {"pretrain/loss": jagged, "pretrain/loss_mae": 1.0})
            journal.end("SUCCEEDED")
        (folder / "pictures").mkdir()
        Image.new("RGB", (8, 6)).save(folder / "pictures" / "reconstructions.png")
    layers = {f"token_similarity_layer_{i}": 0.1 * i for i in range(3)}
    results.result("analyze", "asl", token_similarity=0.25, **layers)
    results.lock()
    return results


def test_the_page_loads_nothing_from_anywhere(finished: Any) -> None:
    content = page(finished.suite, PAPER, lambda f: f"https://tracking.example/#/runs/{f[:4]}")
    outline = Outline(content)
    sources = outline.values("src", "srcset", "data", "poster", "action")
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not {tag for tag, *_ in outline.attributes} & {"link", "script", "iframe", "object"}
    assert not re.search(r"@import|url\((?!#)", content)
    followed = [value for tag, name, value in outline.attributes if name.endswith("href")]
    assert {value for value in followed if not value.startswith("#")} == {
        f"https://tracking.example/#/runs/{stage}" for stage in ("pret", "linp", "anal")
    }


def test_the_page_is_closed_html_with_distinct_ids(finished: Any) -> None:
    outline = Outline(page(finished.suite, PAPER))
    assert outline.open == []
    ids = outline.values("id")
    assert len(ids) == len(set(ids))


def test_each_section_shows_what_the_suite_has(finished: Any) -> None:
    content = page(finished.suite, PAPER)
    for anchor in ("results", "scale", "training", "similarity", "samples", "origin"):
        assert f'<section id="{anchor}"' in content
    assert content.count("<svg") == 4
    assert content.count('src="data:image/png') == 2


def test_a_suite_without_results_has_a_page_that_says_so(results: Any) -> None:
    content = page(results.suite, PAPER)
    assert "dvc repro linprobe@asl" in content
    assert "<svg" not in content
    assert 'id="origin"' not in content


def test_a_reduced_number_says_so_in_its_cell(finished: Any) -> None:
    content = page(finished.suite, PAPER)
    cell = re.search(r'<td class="number ours"[^>]*>51\.0(.*?)</td>', content, re.DOTALL)
    assert cell is not None
    assert ">reduced<" in cell[1]
    assert "linprobe" in cell[1]  # its fingerprint


def test_the_origin_of_a_number_names_commit_data_and_memory(finished: Any) -> None:
    content = page(finished.suite, PAPER)
    row = next(r for r in content.split("<tr>") if '<th scope="row">pretrain@mae' in r)
    assert "01234567+" in row
    assert "icons (train) <code>fedcba98</code>" in row
    assert "1.00 GiB" in row


def test_what_files_say_is_escaped(finished: Any) -> None:
    finished.edit("asl: {method: asl,", "asl: {row: '<b onload=x>$A$', method: asl,")
    content = page(finished.suite, PAPER)
    assert "<b onload" not in content
    assert "&lt;b onload=x&gt;$A$" in content
    assert "<title>Tiny &amp; small</title>" in content


def test_the_same_results_give_the_same_bytes(finished: Any) -> None:
    for name in ("one", "two"):
        write_report(finished.folder, finished.params, finished.folder / name)
    for file in ("index.html", "tables.md"):
        first, second = (finished.folder / name / file for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_the_stage_writes_the_page_and_the_tables_and_lists_both(finished: Any) -> None:
    out, work = finished.folder / "out", finished.folder / "work"
    with Journal.open(work / "journal") as journal:
        request = StageRequest(
            "report", "", finished.params, {"suite": finished.folder}, work, {"details": out},
            journal, Resources(),
        )  # fmt: skip
        assert run(request) == {}
    listed = [r.body["path"] for r in read_records(work / "journal") if r.kind == "artifact"]
    assert sorted(listed) == sorted(path.name for path in out.iterdir())
    assert "| MAE | 46.8 | 51.0 r | +4.2 |" in (out / "tables.md").read_text()


def test_a_fingerprint_links_to_its_tracked_run_where_others_can_open_it(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = finished.suite.results["linprobe", "mae"].fingerprint
    assert run_page(finished.folder, fingerprint) is None
    job = finished.folder / ".asl" / "jobs" / fingerprint
    job.mkdir(parents=True)
    link = RunLink(
        store="", experiment_id="3", parent_run_id=None, run_id="abc", suite="tiny",
        stage="linprobe", key="mae",
    )  # fmt: skip
    write_link(job, link)
    pages = find_tracker(finished.folder).page_of

    def written() -> str:
        write_report(finished.folder, finished.params, finished.folder / "out", pages)
        return (finished.folder / "out" / "index.html").read_text()

    # the server of this machine is nobody else's: the run is named, and how to see it
    assert run_page(finished.folder, fingerprint) == LOCAL_SERVER + link.fragment
    assert "127.0.0.1" not in written()
    assert "<td><code>abc</code></td>" in written()
    assert "<code>asl-pipe ui</code> shows each under its id" in written()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/base")
    assert f'href="{escape("https://mlflow.example/base" + link.fragment)}"' in written()
    assert "secret" not in written()


@pytest.mark.parametrize(
    ("address", "shared"),
    [
        ("https://mlflow.example/#/runs/1", True), ("http://node7:5000/#/runs/1", True),
        ("http://127.0.0.1:5000/#/runs/1", False), ("http://localhost:5000/", False),
        ("http://[::1]:5000/", False), ("http://127.8.0.1/", False), ("file:///a/b.csv", False),
    ],
)  # fmt: skip
def test_only_what_others_can_open_is_a_link(address: str, shared: bool) -> None:
    assert is_shared(address) is shared


def test_a_run_is_called_what_the_end_of_its_address_says() -> None:
    assert run_name("http://127.0.0.1:5000/#/experiments/1/runs/abc?workflowType=x") == "abc"
    assert run_name("file:///store/curves/0123.csv") == "0123.csv"


def test_beside_a_number_stand_its_error_its_images_its_data_and_chance(finished: Any) -> None:
    for key in ("mae", "asl"):
        finished.result("linprobe", key, lp_acc1=51.0, test_images=400)
    finished.lock()
    finished.prepared("imagenet", classes=20)
    content = page(finished.suite, PAPER)
    head = content.partition(">LP [%]")[2].partition("</th>")[0]
    assert re.findall(r'<span class="from">([^<]*)</span>', head) == (
        ["imagenet", "400 images", "chance 5.0", "paper: Table 1"]
    )
    assert "s.e. 2.5" in content  # 100 sqrt(.51 .49 / 400)


def test_all_settings_stand_in_the_page_and_where_rows_differ(finished: Any) -> None:
    content = page(finished.suite, PAPER).partition('id="settings"')[2]
    assert "<b>batch_size</b> <code>4</code>" in content
    assert "<code>asl</code>: ASL (AEE)" in content
    assert "<code>mae</code>: MAE" in content


def test_two_experiments_of_one_name_are_told_apart_by_their_keys(finished: Any) -> None:
    finished.edit("asl: {method: asl,", "asl: {row: MAE, method: asl,")
    content = page(finished.suite, PAPER)
    assert "<span>MAE [asl]</span>" in content
    assert "<span>MAE [mae]</span>" in content


def test_a_long_journal_makes_a_short_curve(finished: Any) -> None:
    content = page(finished.suite, PAPER)
    curve = max(re.findall(r'<path d="([^"]*)"', content), key=len)
    assert 100 < curve.count("L") <= 300


def test_a_wide_picture_is_scaled_down_and_a_small_one_is_kept(tmp_path: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 2 * PICTURE_WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    Image.fromarray(noise[:, :40]).save(tmp_path / "small.png")
    wide, small = (embed_picture(tmp_path / f"{name}.png", "x") for name in ("wide", "small"))
    assert (wide.width, wide.height) == (PICTURE_WIDTH, 15)
    assert (small.width, small.height) == (40, 30)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (7.6, "8 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
