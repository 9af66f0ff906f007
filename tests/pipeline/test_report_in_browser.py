"""The report as a browser lays it out, on a screen of 1280 pixels and on a phone of 420."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, open_file
from PIL import Image
from selenium.webdriver import Chrome

from asl_core.engine.journal import Journal
from pipeline.config.params import load_params
from pipeline.stages.report import write_report

METHODS = {"dle": "asl, design: dle",
           **{f"mae-again{seed}": f"mae, seed: {seed}" for seed in range(1, 7)}}  # fmt: skip
NAMES = ("untrained", "mae", "asl", "dle", "mocov3", "dino", *list(METHODS)[1:])
ROWS = 6
SECTIONS = ("linprobe", "knn", "fewshot", "attentive", "finetune", "detect", "segment", "analyze")
RESULTS = {
    "pretrain": {"pretrain/loss": 0.5, "flops_train_g": 0.04, "parameters_m": 0.6},
    "linprobe": {"lp_acc1": 62.75, "lp_acc1_cls": 55.25, "lp_acc1_mean": 56.5,
                 "lp_train_acc1": 83.8},
    "knn": {"knn_acc1": 21.0, "knn_acc1_cls": 21.0, "knn_acc1_mean": 13.0},
    "fewshot": {"fewshot_acc1_1shot": 12.9, "fewshot_acc1_5shot": 17.3,
                "fewshot_acc1_1pct": 14.1, "fewshot_acc1_10pct": 30.2},
    "attentive": {"attentive_acc1": 40.0, "attentive_train_acc1": 60.0},
    "finetune": {"ft_acc1": 30.75}, "detect": {"ap_box": 1.19, "ap_mask": 0.55},
    "segment": {"miou": 11.3},
    "analyze": {"token_similarity": 0.394, "token_similarity_se": 0.003, "effective_rank": 14.3},
}  # fmt: skip


def params() -> str:
    lines = ["suite: wide", "title: A suite with everything", "scale: reduced",
             "tables: [table7, table5]", "datasets:", "  icons: {source: icons}",
             "  scenes: {source: scenes}", "experiments:"]  # fmt: skip
    lines += [f"  {n}: {{method: {METHODS.get(n, n)}, dataset: icons, model: vit-demo}}"
              for n in NAMES]  # fmt: skip
    for section in SECTIONS:
        data = "scenes" if section in ("detect", "segment", "analyze") else "icons"
        lines += [f"{section}:", *(f"  {name}: {{dataset: {data}}}" for name in NAMES)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, new_suite: Any) -> Path:
    """The report of a suite with every column, six rows, seven seeds and a picture of each."""
    suite = new_suite(tmp_path_factory.mktemp("wide"))
    (suite.folder / ".dvc").mkdir()
    suite.write(params())
    for data in ("icons", "scenes"):
        suite.prepared(data, classes=10)
    for stage, metrics in RESULTS.items():
        for name in NAMES:
            suite.result(stage, name, test_images=400, fingerprint=name.ljust(64, "0"), **metrics)
    for name in NAMES[1:]:
        folder = suite.folder / "runs/pretrain" / name
        with Journal.open(folder / "journal") as journal:
            for step in range(20):
                journal.metrics(step, {"pretrain/loss": 1 / (1 + step), "pretrain/loss_mae": 1.0})
        (folder / "pictures").mkdir()
        Image.new("RGB", (748, 1496)).save(folder / "pictures" / "reconstructions.png")
    out = suite.folder / "out"
    write_report(suite.folder, load_params(suite.folder / "params.yaml"), out)
    return out / "index.html"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with browser() as started:
        yield started


def ask(page: Chrome, script: str) -> Any:
    return page.execute_script(f"return {script}")


def overflowing(page: Chrome) -> list[str]:
    """Return the tables of which a part is beyond the edge, by name."""
    return ask(
        page,
        """[...document.querySelectorAll('.scroll')]
        .filter(e => e.scrollWidth > e.clientWidth).map(e => e.getAttribute('aria-label'))""",
    )


def test_no_cell_of_a_table_is_cut_off_at_1280(report: Path, chrome: Chrome) -> None:
    open_file(chrome, report, 1280)
    ask(chrome, "document.querySelectorAll('details').forEach(e => e.open = true)")
    assert ask(chrome, "document.querySelectorAll('.scroll').length") > 5
    assert overflowing(chrome) == []
    beyond = ask(
        chrome,
        """[...document.querySelectorAll('td, th')].filter(e => {
        const box = e.getBoundingClientRect(), edge = e.closest('.scroll').getBoundingClientRect();
        return box.right > edge.right + 1 || box.left < edge.left - 1;
    }).map(e => e.textContent)""",
    )
    assert beyond == []
    assert ask(chrome, "document.documentElement.scrollWidth") <= 1280
    assert "mIoU" in ask(chrome, "document.querySelector('#results').innerText")


def test_a_phone_scrolls_tables_and_not_the_page(report: Path, chrome: Chrome) -> None:
    open_file(chrome, report, 420)
    assert ask(chrome, "document.documentElement.scrollWidth") <= 420
    assert "A suite with everything, Results, 1 of 2" in overflowing(chrome)
    # scrolled to its end, a table still says whose row it is, and its last column is there
    moved = ask(
        chrome,
        """(() => {
        const area = document.querySelector('.scroll'), edge = area.getBoundingClientRect();
        area.scrollLeft = area.scrollWidth;
        const row = area.querySelector('tbody tr');
        return [row.querySelector('th').getBoundingClientRect().left - edge.left,
                edge.right - row.lastElementChild.getBoundingClientRect().right];
    })()""",
    )
    assert all(0 <= pixels <= 2 for pixels in moved)
    hint = "getComputedStyle(document.querySelector('.scroll'), '::before').display"
    assert ask(chrome, hint) == "block"


@pytest.mark.parametrize("width", [1280, 420])
def test_the_letters_of_charts_can_be_read(report: Path, chrome: Chrome, width: int) -> None:
    open_file(chrome, report, width)
    heights = ask(
        chrome,
        """[...document.querySelectorAll('.chart svg text')].map(e => {
            const {a, b} = e.getScreenCTM();
            return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(a, b);
        })""",
    )
    assert heights
    assert min(heights) > 9.5  # pixels


@pytest.mark.parametrize("width", [1280, 420])
def test_pictures_are_as_large_as_their_labels_need(
    report: Path, chrome: Chrome, width: int
) -> None:
    open_file(chrome, report, width)
    shares = ask(
        chrome,
        """[...document.querySelectorAll('.gallery img')].map(e =>
        e.getBoundingClientRect().width / e.naturalWidth)""",
    )
    assert len(shares) == ROWS - 1
    assert min(shares) >= 0.69


def test_colours_are_named_once_where_the_rows_are_many(report: Path, chrome: Chrome) -> None:
    open_file(chrome, report, 1280)
    names = ask(chrome, "[...document.querySelectorAll('#training .key li')].map(e => e.innerText)")
    assert [name.split(" ", 1)[1].strip() for name in names if "DLE" in name] == ["ASL (DLE)"]
    assert len(names) == ROWS


def test_on_a_dark_screen_text_is_light_and_on_paper_it_is_dark(
    report: Path, chrome: Chrome
) -> None:
    open_file(chrome, report, 1280)
    brightness = """(() => getComputedStyle(document.body).color.match(/[0-9]+/g).slice(0, 3)
        .reduce((sum, value) => sum + Number(value), 0) / 3)()"""
    for features, media, light in (("dark", "screen", True), ("light", "screen", False),
                                   ("dark", "print", False)):  # fmt: skip
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "media": media,
            "features": [{"name": "prefers-color-scheme", "value": features}],
        })  # fmt: skip
        assert (ask(chrome, brightness) > 128) is light
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
