"""Which experiments share a row, and what its cells say. `seeds` is a suite's folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.params import load_params
from pipeline.tables.cells import Cell, Line
from pipeline.tables.collect import collect
from pipeline.tables.formats import render_tables
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import markdown, notes, ours
from pipeline.tables.replicates import experiment_labels, find_replicates

PAPER = load_paper()
ROOT = Path(__file__).parents[2]


def rows(seeds: Any) -> list[tuple[str, ...]]:
    return [group.keys for group in find_replicates(seeds.suite, PAPER)]


def line(seeds: Any, label: str) -> Line:
    (table,) = lay_out(seeds.suite, PAPER)
    return next(line for line in table.lines if line.label == label)


def probe(seeds: Any, label: str) -> Cell:
    return next(c for c in line(seeds, label).cells if c.metric is PAPER.metrics["lp_acc1"])


@pytest.fixture
def probed(seeds: Any) -> Any:
    """MAE with the probes of both seeds, AEE with that of the first, DLE with none."""
    seeds.on_the_papers_data()
    seeds.result("linprobe", "mae", lp_acc1=27.0)
    seeds.result("linprobe", "mae-s1", lp_acc1=28.0)
    seeds.result("linprobe", "aee", lp_acc1=30.04)
    seeds.lock()
    return seeds


def test_experiments_that_differ_in_the_seed_alone_are_one_row(seeds: Any) -> None:
    assert rows(seeds) == [("mae", "mae-s1"), ("aee", "aee-s1"), ("dle",)]
    (table,) = lay_out(seeds.suite, PAPER)
    assert [line.label for line in table.lines] == ["MAE", "ASL (AEE)", "ASL (DLE)"]
    assert table.caption.startswith("3 rows, 5 experiments")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mae-s1: {<<: *mae, seed: 1}", "mae-s1: {<<: *mae, seed: 1, mask_ratio: 0.5}"),
        ("mae-s1: {<<: *mae, seed: 1}", "mae-s1: {<<: *mae, seed: 1, row: MAE again}"),
        ("linprobe:\n  mae: {dataset: icons}", "linprobe:\n  mae: {dataset: icons, epochs: 70}"),
        # the same seed twice is one measurement, and no spread could come of it
        ("mae-s1: {<<: *mae, seed: 1}", "mae-s1: {<<: *mae}"),
    ],
)
def test_experiments_that_differ_in_more_than_the_seed_or_in_nothing_are_not(
    seeds: Any, old: str, new: str
) -> None:
    seeds.edit(old, new)
    assert rows(seeds) == [("mae",), ("mae-s1",), ("aee", "aee-s1"), ("dle",)]


def test_the_seed_of_a_transfer_task_may_differ_too(seeds: Any) -> None:
    seeds.edit("  mae-s1: {dataset: icons}\n  aee:", "  mae-s1: {dataset: icons, seed: 5}\n  aee:")
    assert rows(seeds)[0] == ("mae", "mae-s1")


def test_three_seeds_of_which_one_has_other_settings_are_two_rows(seeds: Any) -> None:
    seeds.edit("  aee: {<<", "  mae-s2: {<<: *mae, seed: 2}\n  aee: {<<")
    assert rows(seeds)[0] == ("mae", "mae-s1", "mae-s2")
    seeds.edit("linprobe:\n", "linprobe:\n  mae-s2: {dataset: icons, epochs: 70}\n")
    assert rows(seeds)[:2] == [("mae", "mae-s1"), ("mae-s2",)]


def test_two_rows_of_one_name_are_told_apart_by_their_keys(seeds: Any) -> None:
    seeds.edit("mae-s1: {<<: *mae, seed: 1}", "mae-s1: {<<: *mae, seed: 1, mask_ratio: 0.5}")
    (table,) = lay_out(seeds.suite, PAPER)
    assert [line.label for line in table.lines][:2] == ["MAE [mae]", "MAE [mae-s1]"]


def test_the_cell_has_mean_sample_deviation_and_count(probed: Any) -> None:
    cell = probe(probed, "MAE")
    assert cell.ours == 27.5
    assert cell.spread == pytest.approx(0.5**0.5)  # the population's would be 0.5
    assert ours(cell) == "27.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2) r"


def test_the_difference_is_that_of_the_mean_as_printed(probed: Any) -> None:
    assert probe(probed, "MAE").delta == -19.3  # 27.50 - 46.8
    probed.result("linprobe", "mae-s1", lp_acc1=28.012)
    assert probe(probed, "MAE").delta == -19.29


def test_a_single_run_is_printed_as_ever(probed: Any) -> None:
    probed.result("linprobe", "dle", lp_acc1=31.0)
    assert ours(probe(probed, "ASL (DLE)")) == "31.0 r"


def test_a_cell_says_how_many_of_its_seeds_are_there(probed: Any) -> None:
    cell = probe(probed, "ASL (AEE)")
    assert ours(cell) == "30.0 (n = 1 of 2) r"
    assert cell.delta == -18.6
    content = markdown(lay_out(probed.suite, PAPER))
    assert "- linprobe@aee-s1: `dvc repro linprobe@aee-s1`" in content
    assert "linprobe@aee:" not in content
    assert "- n = k of m: results of the other seeds are missing." in content


def test_of_three_seeds_two_have_a_spread(probed: Any) -> None:
    probed.edit("  aee: {<<", "  mae-s2: {<<: *mae, seed: 2}\n  aee: {<<")
    probed.edit("linprobe:\n", "linprobe:\n  mae-s2: {dataset: imagenet}\n")
    probed.lock()
    assert ours(probe(probed, "MAE")) == "27.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2 of 3) r"


def test_a_cell_without_any_seed_is_missing_and_names_each_command(probed: Any) -> None:
    (probed.folder / "runs/linprobe/aee.json").unlink()
    assert ours(probe(probed, "ASL (AEE)")) == "missing"
    content = markdown(lay_out(probed.suite, PAPER))
    assert "- linprobe@aee: " in content
    assert "- linprobe@aee-s1: " in content


def test_a_task_that_is_asked_of_one_seed_alone_is_not_missing_the_other(probed: Any) -> None:
    probed.edit("finetune: {}", "finetune: {mae: {dataset: imagenet}}")
    probed.result("finetune", "mae", ft_acc1=60.0)
    probed.lock()
    assert rows(probed)[0] == ("mae", "mae-s1")
    cell = next(c for c in line(probed, "MAE").cells if c.metric is PAPER.metrics["ft_acc1"])
    assert ours(cell) == "60.0 (n = 1) r"
    assert cell.missing == ()


def test_one_outdated_seed_marks_the_mean(probed: Any) -> None:
    probed.edit("mae-s1: {dataset: imagenet}\n  aee", "mae-s1: {dataset: imagenet, seed: 3}\n  aee")
    assert ours(probe(probed, "MAE")).endswith("(n = 2) r*")


def test_every_run_behind_a_mean_is_named(probed: Any) -> None:
    probed.result("linprobe", "mae", lp_acc1=27.0, fingerprint="aaaaaaaa1")
    probed.result("linprobe", "mae-s1", lp_acc1=28.0, fingerprint="bbbbbbbb2")
    suite = probed.suite
    assert "| MAE | mae, mae-s1 | `aaaaaaaa`, `bbbbbbbb` |" in markdown(lay_out(suite, PAPER))
    latex = render_tables(probed.suite, "latex")
    assert "% linprobe aaaaaaaa, linprobe bbbbbbbb" in latex
    content = page(suite, PAPER)
    cell = content.split("27.50 \N{PLUS-MINUS SIGN} 0.71")[1].split("</td>")[0]
    assert "aaaaaaaa" in cell
    assert "bbbbbbbb" in cell
    for key in ("mae", "mae-s1"):
        assert f'<th scope="row">linprobe@{key}' in content


def test_each_format_has_mean_deviation_and_count(probed: Any) -> None:
    suite = probed.suite
    row = "| MAE | 46.8 | 27.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2) r | -19.30 |"
    assert row in render_tables(suite, "md")
    assert "27.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2) r" in render_tables(suite, "text", 200)
    assert r"27.50 $\pm$ 0.71 (n = 2)\textsuperscript{r} & $-19.30$" in (
        render_tables(suite, "latex")
    )
    cell = render_tables(suite, "html").split("27.50 \N{PLUS-MINUS SIGN} 0.71")[1]
    assert cell.startswith('<span class="seeds">n = 2</span>')
    assert "30.0 (n = 1 of 2)" in render_tables(suite, "latex")


def test_a_row_whose_probe_is_not_of_cls_is_named(probed: Any) -> None:
    def said() -> list[str]:
        (table,) = lay_out(probed.suite, PAPER)
        return [note for note in notes(table) if note.startswith("LP of")]

    assert said() == []
    probed.edit("dle: {dataset: imagenet}", "dle: {dataset: imagenet, pooling: mean}")
    assert said() == [
        "LP of ASL (DLE): of the mean of the patch tokens; of the other rows: of [cls]."
    ]
    begin, rest = (probed.folder / "params.yaml").read_text().split("linprobe:")
    middle, end = rest.split("finetune:")
    middle = middle.replace("{dataset: imagenet}", "{dataset: imagenet, pooling: mean}")
    probed.write(f"{begin}linprobe:{middle}finetune:{end}")
    assert said() == ["LP of MAE and ASL (AEE) and ASL (DLE): of the mean of the patch tokens."]


def test_what_the_signs_mean_stands_under_the_table_that_has_them(probed: Any) -> None:
    (table,) = lay_out(probed.suite, PAPER)
    assert any("sample standard deviation" in note for note in notes(table))
    for key in ("mae-s1", "aee-s1"):
        probed.edit(f"{key}: {{<<: *mae, ", f"{key}: {{<<: *mae, mask_ratio: 0.5, ")
    (table,) = lay_out(probed.suite, PAPER)
    assert not any("n = k" in note for note in notes(table))


def test_at_the_papers_scale_replicates_fill_one_row(probed: Any) -> None:
    probed.edit("scale: reduced", "scale: paper")
    probed.edit("tables: [table7, alignment]", "tables: [table1]")
    probed.edit("model: vit-demo, epochs: 2", "model: vit-demo, epochs: 800")
    for key, accuracy in (("mae", 46.0), ("mae-s1", 47.0), ("aee", 49.0), ("aee-s1", 50.0)):
        probed.result("linprobe", key, lp_acc1=accuracy, scale="paper")
    probed.lock()
    content = markdown(lay_out(probed.suite, PAPER))
    assert (
        "| MAE [22] | ViT-B | 1x | 800 | 46.8 | 46.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2) | -0.30 |"
        in content
    )
    assert (
        "| ASL | ViT-B | ~1.5x | 800 | 48.6 | 49.50 \N{PLUS-MINUS SIGN} 0.71 (n = 2) | +0.90 |"
        in content
    )
    # Table 1 has no row for DLE; what a suite runs is shown all the same
    assert "| ASL (DLE) | - | - | - | - | missing | - |" in content


def test_the_seed_tells_the_runs_of_a_row_apart(seeds: Any) -> None:
    labels = experiment_labels(find_replicates(seeds.suite, PAPER))
    assert labels == {
        "mae": "MAE, seed 0", "mae-s1": "MAE, seed 1", "aee": "ASL (AEE), seed 0",
        "aee-s1": "ASL (AEE), seed 1", "dle": "ASL (DLE)",
    }  # fmt: skip


def test_numbers_of_one_pretraining_stand_under_each_other_whatever_their_table(
    tmp_path: Path,
) -> None:
    # without its results, which bring columns of their own
    (tmp_path / ".dvc").mkdir()
    params = shutil.copy(ROOT / "suites/table7-mini/params.yaml", tmp_path)
    suite = collect(tmp_path, load_params(Path(params)))
    (table,) = lay_out(suite, PAPER)
    assert [(line.label, len(line.keys), line.cells[0].paper) for line in table.lines] == [
        ("Random initialisation", 3, None),
        ("MAE", 3, 46.8),
        ("ASL (DLE), without alignment", 3, 46.5),
        ("ASL (DLE)", 3, 48.5),
        ("ASL (AEE), without alignment", 3, 46.6),
        ("ASL (AEE)", 3, 48.6),
        ("ASL (AEE), cosine alignment", 3, 47.6),
        ("ASL (AEE), [cls] alignment", 3, 45.6),
        ("ASL (AEE), [cls] alignment of predictions", 3, None),
    ]
    assert table.headings[0].paper_table == "Table 7, Section 4.6"


def test_numbers_of_two_pretrainings_do_not(seeds: Any) -> None:
    seeds.edit("tables: [table7, alignment]", "tables: [table5, table7]")
    (table,) = lay_out(seeds.suite, PAPER)
    assert [line.cells[0].paper for line in table.lines] == [67.8, 69.2, None]
    assert table.headings[0].paper_table == "Table 5"


def test_supervised_training_has_its_own_accuracy_where_others_are_fine_tuned(seeds: Any) -> None:
    seeds.edit("tables: [table7, alignment]", "tables: [table6-cifar10]")
    seeds.edit("dle: {<<", "supervised: {<<: *mae, method: supervised}\n  dle: {<<")
    seeds.edit("finetune: {}", "finetune: {mae: {dataset: icons}}")
    seeds.result("pretrain", "supervised", supervised_acc1=61.25)
    seeds.result("finetune", "mae", ft_acc1=70.0)
    (table,) = lay_out(seeds.suite, PAPER)
    place = [heading.header for heading in table.headings].index("FT")
    cells = {line.label: line.cells[place] for line in table.lines}
    assert (cells["Supervised"].paper, cells["Supervised"].values) == (91.3, (61.25,))
    assert (cells["MAE"].paper, cells["MAE"].values) == (95.9, (70.0,))


def test_where_nothing_is_fine_tuned_it_has_a_column_of_its_own(seeds: Any) -> None:
    seeds.edit("tables: [table7, alignment]", "tables: []")
    seeds.edit("dle: {<<", "supervised: {<<: *mae, method: supervised}\n  dle: {<<")
    seeds.result("linprobe", "mae", lp_acc1=27.0)
    (table,) = lay_out(seeds.suite, PAPER)
    metric = PAPER.metrics["supervised_acc1"]
    assert metric not in [heading.metric for heading in table.headings]
    seeds.result("pretrain", "supervised", supervised_acc1=61.25)
    (table,) = lay_out(seeds.suite, PAPER)
    values = {
        line.label: cell.values for line in table.lines for cell in line.cells
        if cell.metric is metric
    }  # fmt: skip
    assert values["Supervised"] == (61.25,)
    assert set(values["MAE"]) <= {None}


def test_rows_of_different_length_are_told_apart(seeds: Any) -> None:
    def said() -> list[str]:
        (table,) = lay_out(seeds.suite, PAPER)
        return [note for note in notes(table) if note.startswith("Passes")]

    seeds.result("linprobe", "mae", lp_acc1=27.0)
    assert said() == []
    seeds.edit("dle: {<<: *mae, ", "dle: {<<: *mae, epochs: 3, ")
    assert said() == [
        "Passes over the data in pre-training, not the same: 2 for MAE and ASL (AEE); "
        "3 for ASL (DLE)."
    ]


def test_at_the_papers_scale_another_length_fills_no_row(seeds: Any) -> None:
    seeds.edit("scale: reduced", "scale: paper")
    seeds.edit("tables: [table7, alignment]", "tables: [table1]")
    seeds.edit("model: vit-demo, epochs: 2", "model: vit-demo, epochs: 400")
    seeds.result("linprobe", "mae", lp_acc1=46.0, scale="paper")
    content = markdown(lay_out(seeds.suite, PAPER))
    mae = next(line for line in content.splitlines() if line.startswith("| MAE [22] |"))
    assert "46.8" in mae
    assert "46.0" not in mae
    assert "| MAE | - | - | - | - | 46.0" in content


def test_at_the_papers_scale_too(seeds: Any) -> None:
    seeds.edit("scale: reduced", "scale: paper")
    seeds.edit("tables: [table7, alignment]", "tables: [table6]")
    seeds.edit(
        "dle: {<<", "supervised: {<<: *mae, method: supervised, dataset: cifar10}\n  dle: {<<"
    )
    seeds.edit("datasets:", "datasets:\n  cifar10: {source: icons}")
    seeds.result("pretrain", "supervised", supervised_acc1=91.0)
    content = markdown(lay_out(seeds.suite, PAPER))
    row = next(line for line in content.splitlines() if line.startswith("| Supervised [26]"))
    assert "| 91.3 | 91.0" in row
