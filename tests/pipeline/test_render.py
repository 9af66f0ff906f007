"""Tables in each format. `results` is the folder of a suite, from conftest."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline.tables.formats import render_tables
from pipeline.tables.latex import tex
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import markdown, signed, text

PAPER = load_paper()


@pytest.fixture
def half_done(results: Any) -> Any:
    """A suite with the probes of two experiments and without MAE's fine-tuning."""
    results.on_the_papers_data()
    results.result("linprobe", "mae", lp_acc1=51.04)
    results.result("linprobe", "asl", lp_acc1=40.0)
    results.result("analyze", "asl", token_similarity=0.12345)
    results.lock()
    return results


def lines_with(content: str, word: str) -> list[str]:
    return [line for line in content.splitlines() if word in line]


def test_a_markdown_row_has_paper_ours_and_delta_of_each_metric(half_done: Any) -> None:
    content = markdown(lay_out(half_done.suite, PAPER))
    rows = lines_with(content, "| MAE |")
    assert rows[0] == "| MAE | 46.8 | 51.0 r | +4.2 | 83.6 | missing | - |"
    rows = lines_with(content, "| ASL (AEE) |")
    assert rows[0] == "| ASL (AEE) | 48.6 | 40.0 r | -8.6 | 84.2 | - | 0.123 r |"


def test_a_markdown_row_has_as_many_cells_as_the_header(half_done: Any) -> None:
    content = markdown(lay_out(half_done.suite, PAPER))
    grid = content.split("\n\n")[2].splitlines()
    assert len({row.count("|") for row in grid}) == 1


def test_a_reduced_number_is_marked_in_its_own_cell_and_in_the_title(half_done: Any) -> None:
    found = lay_out(half_done.suite, PAPER)
    for content in (markdown(found), text(found, width=150), text(found, width=60)):
        assert "REDUCED SCALE" in content.splitlines()[0]
        assert "51.0 r" in content
        assert "r: reduced scale." in content.replace("`", "")


def test_a_number_at_the_papers_scale_is_not_marked(half_done: Any) -> None:
    half_done.edit("scale: reduced", "scale: paper")
    half_done.edit("epochs: 2", "epochs: 800")
    for key in ("mae", "asl"):
        half_done.result("linprobe", key, lp_acc1=51.0, scale="paper")
    half_done.lock()
    content = markdown(lay_out(half_done.suite, PAPER))
    assert "reduced" not in content.lower()
    row = lines_with(content, "| MAE [22] |")[0]
    assert row == "| MAE [22] | ViT-B | 1x | 800 | 46.8 | 51.0 | +4.2 | 49.3 | - | - |"
    assert "| MAE (quoted) |" in content  # Table 5's is pre-trained on other images


def test_each_cell_has_its_fingerprint_in_short(half_done: Any) -> None:
    content = markdown(lay_out(half_done.suite, PAPER))
    assert "| ASL (AEE) | asl | `linprobe` | - | `analyze-` |" in content


def test_each_missing_cell_names_its_command(half_done: Any) -> None:
    found = lay_out(half_done.suite, PAPER)
    assert "- finetune@mae: `dvc repro finetune@mae`" in markdown(found)
    assert "missing finetune@mae: dvc repro finetune@mae" in text(found, width=150)


def test_an_outdated_number_is_marked_and_explained(half_done: Any) -> None:
    half_done.edit("mae: {dataset: imagenet}", "mae: {dataset: imagenet, epochs: 70}")
    content = text(lay_out(half_done.suite, PAPER), width=150)
    assert "51.0 r*" in content
    assert lines_with(content, "*: older than params.yaml")


def test_a_narrow_terminal_gets_a_block_per_metric(half_done: Any) -> None:
    content = text(lay_out(half_done.suite, PAPER), width=66)
    assert max(map(len, content.splitlines())) <= 66
    assert lines_with(content, "51.0 r")[0].split() == (
        ["LP", "[%]", "MAE", "46.8", "51.0", "r", "+4.2", "linprobe"]
    )
    assert "..." not in content
    assert "\N{HORIZONTAL ELLIPSIS}" not in content


def test_a_wide_terminal_gets_a_row_per_method(half_done: Any) -> None:
    content = text(lay_out(half_done.suite, PAPER), width=120)
    assert lines_with(content, "ASL (AEE)")[0].split() == (
        ["ASL", "(AEE)", "48.6", "40.0", "r", "-8.6", "84.2", "-", "0.123", "r"]
    )


@pytest.mark.parametrize(
    ("difference", "printed"),
    [(4.2, "+4.2"), (-8.6, "-8.6"), (0.0, "0.0"), (-0.0, "0.0"), (None, "-")],
)
def test_a_difference_has_a_sign_unless_it_is_zero(difference: float | None, printed: str) -> None:
    assert signed(difference, 1) == printed


def test_latex_escapes_what_latex_would_read(half_done: Any) -> None:
    assert tex("a_b & 5% #1 {x} ~3 \\ ^2") == (
        r"a\_b \& 5\% \#1 \{x\} $\sim$3 \textbackslash{} \^{}2"
    )
    content = render_tables(half_done.suite, "latex")
    assert r"\caption{Tiny \& small. \textbf{Reduced scale.}" in content


def test_latex_does_not_take_a_label_for_the_argument_of_the_row_before(half_done: Any) -> None:
    half_done.edit("asl: {method: asl,", 'asl: {row: "[cls] align", method: asl,')
    content = render_tables(half_done.suite, "latex")
    assert lines_with(content, "[cls] align")[0].startswith("{}[cls] align & ")


def test_latex_rows_have_as_many_cells_as_the_tabular_has_columns(half_done: Any) -> None:
    content = render_tables(half_done.suite, "latex")
    columns = lines_with(content, r"\begin{tabular}")[0].rpartition("{")[2].rstrip("}")
    rows = [line for line in lines_with(content, r" \\") if "multicolumn" not in line]
    assert columns == "lrrrrrr"
    assert {len(row.replace(r"\&", "").split("&")) for row in rows} == {len(columns)}
    assert r"51.0\textsuperscript{r} & $+4.2$" in content


def test_a_bar_in_a_label_does_not_split_a_markdown_cell(half_done: Any) -> None:
    half_done.edit("asl: {method: asl,", 'asl: {row: "A|B", method: asl,')
    assert lines_with(markdown(lay_out(half_done.suite, PAPER)), "A\\|B")


def test_square_brackets_in_a_label_reach_the_terminal(half_done: Any) -> None:
    half_done.edit("asl: {method: asl,", 'asl: {row: "ASL [red]", method: asl,')
    assert "ASL [red]" in text(lay_out(half_done.suite, PAPER), width=120)


def test_rendering_loads_neither_torch_nor_mlflow_nor_matplotlib() -> None:
    code = (
        "import sys; import pipeline.tables.render, pipeline.tables.latex, pipeline.tables.collect,"
        " pipeline.tables.formats;"
        " print({'torch', 'mlflow', 'matplotlib', 'dvc'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
