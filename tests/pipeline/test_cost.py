"""What a row costs, beside the paper's FLOPs. `seeds` is a suite's folder, from conftest."""

import re
from typing import Any

import pytest

from pipeline.tables.formats import render_tables
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import markdown, notes

PAPER = load_paper()


@pytest.fixture
def counted(seeds: Any) -> Any:
    """All runs with their multiply-adds; AEE has 1.588 times those of MAE in training."""
    for key, train, forward, parameters in (
        ("mae", 30.0, 10.0, 1.8), ("mae-s1", 30.0, 10.0, 1.8), ("aee", 47.64, 15.86, 1.91),
        ("aee-s1", 47.64, 15.86, 1.91), ("dle", 59.64, 19.88, 1.8),
    ):  # fmt: skip
        seeds.result(
            "pretrain", key, flops_train_g=train, flops_forward_g=forward,
            parameters_m=parameters, encoder_parameters_m=1.36, activation_mib_per_image=3.21,
        )  # fmt: skip
    seeds.lock()
    return seeds


def markdown_row(suite: Any, label: str) -> list[str]:
    content = markdown(lay_out(suite, PAPER))
    row = next(line for line in content.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_flops_are_multiples_of_mae_beside_the_papers(counted: Any) -> None:
    assert markdown_row(counted.suite, "MAE")[1:5] == ["1x", "1.00x r", "1.00x r", "1.80 r"]
    assert markdown_row(counted.suite, "ASL (AEE)")[1:5] == [
        "~1.5x", "1.59x r", "1.59x r", "1.91 r",
    ]  # fmt: skip
    assert markdown_row(counted.suite, "ASL (DLE)")[1:4] == ["~2x", "1.99x r", "1.99x r"]


def test_training_and_forward_pass_are_two_columns_and_neither_has_a_delta(counted: Any) -> None:
    counted.result("pretrain", "dle", flops_train_g=60.0, flops_forward_g=15.0)
    assert markdown_row(counted.suite, "ASL (DLE)")[2:4] == ["2.00x r", "1.50x r"]
    (table,) = lay_out(counted.suite, PAPER)
    assert [heading.subheads for heading in table.headings] == [
        ("paper", "ours"), ("ours",), ("ours",), ("paper", "ours"), ("ours",),
    ]  # fmt: skip
    assert all(cell.delta is None for line in table.lines for cell in line.cells[:3])


def test_the_absolute_numbers_stand_under_the_table_once_for_rows_that_cost_the_same(
    counted: Any,
) -> None:
    counted.edit("dle: {<<", "aee-cosine: {<<: *mae, method: asl, sem_type: cosine}\n  dle: {<<")
    counted.result(
        "pretrain", "aee-cosine", flops_train_g=47.64, flops_forward_g=15.86,
        activation_mib_per_image=3.21,
    )  # fmt: skip
    (table,) = lay_out(counted.suite, PAPER)
    (note,) = (note for note in notes(table) if note.startswith("FLOPs:"))
    assert note.endswith(
        "Absolute, GMAC an image, training / forward / activations: 30 / 10 / 3.21 MiB (MAE); "
        "47.6 / 15.9 / 3.21 MiB (ASL (AEE) and ASL (AEE), cosine alignment); "
        "59.6 / 19.9 / 3.21 MiB (ASL (DLE))."
    )


def test_the_absolute_number_is_the_cells_tooltip(counted: Any) -> None:
    content = page(counted.suite, PAPER)
    assert re.search(r'title="47\.6 GMAC an image">1\.59x', content)
    assert re.search(r'title="15\.9 GMAC an image">1\.59x', content)
    assert re.search(r'title="encoder 1\.36 M">1\.91', content)


def test_seeds_of_one_recipe_cost_the_same_and_have_no_spread(counted: Any) -> None:
    content = markdown(lay_out(counted.suite, PAPER))
    assert "1.59x \N{PLUS-MINUS SIGN}" not in content
    assert "1.59x r (n" not in content


def test_without_any_count_there_is_no_column(seeds: Any) -> None:
    seeds.result("pretrain", "mae", **{"pretrain/loss": 0.8})
    (table,) = lay_out(seeds.suite, PAPER)
    assert [heading.header for heading in table.headings] == ["LP", "token similarity"]


def test_a_run_that_was_not_counted_has_a_dash_and_is_not_missing(counted: Any) -> None:
    counted.result("pretrain", "dle", **{"pretrain/loss": 0.8})
    assert markdown_row(counted.suite, "ASL (DLE)")[1:5] == ["~2x", "-", "-", "-"]
    assert "pretrain@dle" not in markdown(lay_out(counted.suite, PAPER))


@pytest.mark.parametrize("change", ["model: vit-cifar-mini", "mask_ratio: 0.5"])
def test_mae_of_another_size_or_mask_is_no_measure(counted: Any, change: str) -> None:
    counted.edit("method: asl, design: dle", f"method: asl, design: dle, {change}")
    counted.lock()
    assert markdown_row(counted.suite, "ASL (DLE)")[2:5] == ["-", "-", "1.80 r"]


def test_a_method_with_its_authors_mask_ratio_is_compared_with_mae_s(counted: Any) -> None:
    counted.edit("dle: {<<", "cmae: {<<: *mae, method: cmae}\n  dle: {<<")
    counted.result("pretrain", "cmae", flops_train_g=57.3, flops_forward_g=31.1)
    counted.lock()
    assert markdown_row(counted.suite, "CMAE")[1:4] == ["-", "1.91x r", "3.11x r"]
    counted.edit("method: cmae", "method: cmae, mask_ratio: 0.5")
    assert markdown_row(counted.suite, "CMAE")[2:4] == ["-", "-"]
    counted.edit("dle: {<<", "half: {<<: *mae, mask_ratio: 0.5}\n  dle: {<<")
    counted.result("pretrain", "half", flops_train_g=57.3, flops_forward_g=31.1)
    counted.lock()
    assert markdown_row(counted.suite, "CMAE")[2:4] == ["1.00x r", "1.00x r"]


def test_each_size_has_its_own_mae(counted: Any) -> None:
    counted.edit("dle: {<<", "small: {<<: *mae, model: vit-cifar-mini}\n  dle: {<<")
    counted.edit("design: dle", "design: dle, model: vit-cifar-mini")
    counted.result("pretrain", "small", flops_train_g=20.0, flops_forward_g=5.0)
    counted.lock()
    assert markdown_row(counted.suite, "ASL (DLE)")[2:4] == ["2.98x r", "3.98x r"]
    assert markdown_row(counted.suite, "ASL (AEE)")[2:4] == ["1.59x r", "1.59x r"]


def test_at_the_papers_scale_ours_stands_beside_the_papers_column(counted: Any) -> None:
    counted.edit("scale: reduced", "scale: paper")
    counted.edit("epochs: 2", "epochs: 800")
    counted.edit("tables: [table7, alignment]", "tables: [table1]")
    counted.edit("icons: {", "coco: {")
    counted.edit("dataset: icons", "dataset: coco")
    counted.lock()
    content = markdown(lay_out(counted.suite, PAPER))
    assert "| Method | Arch. | Epochs | FLOPs train: paper | FLOPs train: ours | " in content
    assert "| ASL | ViT-B | 800 | ~1.5x | 1.59x r | 1.59x r | 1.91 r | 48.6 |" in content
    assert "| CMAE [27] | ViT-B | 800 | ~3x | - | - | - | 46.6 |" in content


def test_latex_rows_have_as_many_cells_as_the_tabular_has_columns(counted: Any) -> None:
    content = render_tables(counted.suite, "latex")
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", content)
    assert columns is not None
    rows = [line.split("%")[0] for line in content.splitlines() if r" \\" in line]
    assert {row.count("&") for row in rows if "multicolumn" not in row} == {len(columns[1]) - 1}
    assert r"$\sim$1.5x & 1.59x\textsuperscript{r} &" in content
