"""What the report's charts show, and of whom. `seeds` is a suite's folder, from conftest."""

import json
import math
import re
from typing import Any

import pytest
from PIL import Image

from asl_core.engine.journal import Journal
from pipeline.errors import UserError
from pipeline.stages.report import write_report
from pipeline.tables.contrastive import column, read_contrastive
from pipeline.tables.figures.drawing import COLOURS, colour, marker, read_journals
from pipeline.tables.figures.similarity import find_points, similarity_by_layer
from pipeline.tables.figures.training import branch_curves, loss_curves
from pipeline.tables.html import page
from pipeline.tables.paper import load_paper
from pipeline.tables.replicates import find_replicates

PAPER = load_paper()
VIEW = {
    "by_batch": [
        {"batch": 16, "patches": 192, "pearson": 0.8, "spearman": 0.7},
        {"batch": 8, "patches": 96, "pearson": 0.9, "spearman": None},
    ],
    "by_temperature": [{"temperature": 0.5, "pearson": 0.6, "spearman": 0.5}],
    "over_training": [{"step": 46, "retrieval_acc1": 12.5, "loss_mae": 0.9}],
}


def leave_view(seeds: Any, key: str, content: str) -> None:
    folder = seeds.folder / "runs" / "analyze" / key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contrastive.json").write_text(content)


@pytest.fixture
def analysed(seeds: Any) -> Any:
    """MAE and AEE with analyses of two seeds; AEE's second has no probe; DLE has neither."""
    for key, similarity, accuracy in (
        ("mae", 0.2, 50.0), ("mae-s1", 0.3, 52.0), ("aee", 0.4, 55.0), ("aee-s1", 0.5, None),
    ):  # fmt: skip
        layers = {f"token_similarity_layer_{i}": 0.1 * i for i in range(13)}
        seeds.result("analyze", key, token_similarity=similarity, effective_rank=9.0, **layers)
        if accuracy is not None:
            seeds.result("linprobe", key, lp_acc1=accuracy)
    return seeds


@pytest.fixture
def trained(analysed: Any) -> Any:
    """The same with journals, pictures and a contrastive view."""
    for key in ("mae", "mae-s1", "aee", "aee-s1"):
        folder = analysed.folder / "runs" / "pretrain" / key
        analysed.result("pretrain", key, **{"pretrain/loss": 0.5})
        with Journal.open(folder / "journal") as journal:
            for step in range(20):
                logged = {"pretrain/loss": 1.0, "pretrain/loss_mae": 0.9}
                if key.startswith("aee"):
                    logged |= {
                        "pretrain/loss_sem": 0.1,
                        "pretrain/branch_distance": 0.4 / (1 + step),
                    }
                journal.metrics(step, logged)
        (folder / "pictures").mkdir()
        Image.new("RGB", (8, 6)).save(folder / "pictures" / "reconstructions.png")
        leave_view(analysed, key, json.dumps(VIEW))
    analysed.lock()
    return analysed


def texts(svg: str | None) -> list[str]:
    assert svg is not None
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_figure_1_has_a_point_per_row_from_the_seeds_that_have_both_numbers(analysed: Any) -> None:
    suite = analysed.suite
    mae, aee = find_points(suite, find_replicates(suite, PAPER))[0]
    assert (mae.label, mae.similarity, mae.accuracy) == ("MAE", (0.2, 0.3), (50.0, 52.0))
    assert (aee.label, aee.similarity, aee.accuracy) == ("ASL (AEE)", (0.4,), (55.0,))


def test_what_has_no_point_is_listed_with_what_it_lacks(analysed: Any) -> None:
    content = page(analysed.suite, PAPER)
    assert (
        "Not in Figure 1: ASL (AEE), seed 1 (no linear probe), "
        "ASL (DLE) (no token analysis and no linear probe)."
    ) in re.sub(r"\s+", " ", content)


def test_the_caption_says_that_the_paper_gives_no_numbers(analysed: Any) -> None:
    assert "neither its caption nor the text gives a number" in page(analysed.suite, PAPER)


def test_a_layer_stands_at_its_own_number(analysed: Any) -> None:
    suite = analysed.suite
    drawn = texts(similarity_by_layer(suite, find_replicates(suite, PAPER)))
    assert {"0", "12", "block (0: embedded patches)"} <= set(drawn)
    assert [name for name in drawn if "AEE" in name or name == "MAE"] == ["MAE", "ASL (AEE)"]


def test_the_companions_are_a_table_without_columns_of_dashes(analysed: Any) -> None:
    write_report(analysed.folder, analysed.params, analysed.folder / "out")
    content = (analysed.folder / "out" / "tables.md").read_text()
    companions = content.partition("## Token similarity and its companions")[2]
    assert "| effective rank: ours (reduced) |" in companions
    assert "inside masks" not in companions  # no dataset here has masks
    assert "| MAE | 0.2500 \N{PLUS-MINUS SIGN} 0.0707 (n = 2) r! |" in companions
    assert "\n| ASL (DLE) |" not in companions  # the suite does not analyse it
    assert "contrastive loss" not in content


def test_a_metric_that_an_encoder_cannot_have_is_a_dash(analysed: Any) -> None:
    analysed.result("analyze", "mae", token_similarity=0.2, contrast_correlation=0.9)
    analysed.result("analyze", "mae-s1", token_similarity=0.3, contrast_correlation=0.8)
    content = page(analysed.suite, PAPER)
    table = content.partition('aria-label="Squared error')[2].partition("</table>")[0]
    assert "0.8500 \N{PLUS-MINUS SIGN} 0.0707" in table
    assert "\N{EN DASH}" in table.partition("ASL (AEE)")[2]
    assert "missing" not in table


def test_a_contrastive_view_is_read_in_order_and_a_gap_stays_one(seeds: Any) -> None:
    leave_view(seeds, "mae", json.dumps(VIEW))
    leave_view(seeds, "dle", json.dumps(VIEW))  # params.yaml does not ask for its analysis
    suite = seeds.suite
    views = read_contrastive(suite, find_replicates(suite, PAPER))
    assert list(views) == ["mae"]
    assert column(views["mae"].by_batch, "batch") == [8, 16]
    spearman = column(views["mae"].by_batch, "spearman")
    assert math.isnan(spearman[0])
    assert spearman[1] == 0.7


@pytest.mark.parametrize("content", ['{"by_batch": ', "[]", '{"by_batch": []}', "{}"])
def test_a_damaged_view_is_named_in_one_line(seeds: Any, content: str) -> None:
    leave_view(seeds, "mae", content)
    with pytest.raises(UserError, match=r"mae/contrastive\.json is no contrastive view") as raised:
        page(seeds.suite, PAPER)
    assert "\n" not in str(raised.value)


def test_a_suite_without_the_view_has_no_section_on_it(analysed: Any) -> None:
    assert 'id="contrastive"' not in page(analysed.suite, PAPER)
    leave_view(analysed, "mae", json.dumps(VIEW))
    section = page(analysed.suite, PAPER).partition('<section id="contrastive"')[2]
    assert "Eq. 8 of the paper" in section
    assert "nearest is own patch [%]" in section


def test_retrieval_over_training_is_drawn_where_snapshots_were_kept(analysed: Any) -> None:
    leave_view(analysed, "mae", json.dumps(VIEW | {"over_training": []}))
    section = page(analysed.suite, PAPER).partition('<section id="contrastive"')[2]
    assert "Spearman correlation" in section
    assert "nearest is own patch" not in section.partition("</svg>")[0]


def test_the_branches_of_asl_are_drawn_and_mae_has_none(trained: Any) -> None:
    suite = trained.suite
    groups = find_replicates(suite, PAPER)
    journals = read_journals(suite, [key for group in groups for key in group.keys])
    drawn = texts(branch_curves(journals, groups))
    assert {"alignment loss", "distance of the branches", "ASL (AEE)"} <= set(drawn)
    assert "MAE" not in drawn
    assert {"MAE", "ASL (AEE)"} <= set(texts(loss_curves(journals, groups)))
    of_mae = {key: journals[key] for key in ("mae", "mae-s1")}
    assert branch_curves(of_mae, groups) is None


def test_branches_that_are_exactly_one_can_be_drawn(seeds: Any) -> None:
    with Journal.open(seeds.folder / "runs" / "pretrain" / "aee" / "journal") as journal:
        for step in range(3):
            journal.metrics(step, {"pretrain/loss_sem": 0.0, "pretrain/branch_distance": 0.0})
    suite = seeds.suite
    groups = find_replicates(suite, PAPER)
    drawn = texts(branch_curves(read_journals(suite, ["aee"]), groups))
    assert "distance of the branches" in drawn


def test_of_replicates_one_shows_its_pictures(trained: Any) -> None:
    content = page(trained.suite, PAPER)
    assert content.count('src="data:image/png') == 2
    assert "<span>MAE, seed 0</span>" in content
    assert "<span>MAE, seed 1</span>" not in content


def test_a_full_page_has_distinct_ids_and_the_same_bytes_again(trained: Any) -> None:
    for name in ("one", "two"):
        write_report(trained.folder, trained.params, trained.folder / name)
    first, second = ((trained.folder / name / "index.html").read_text() for name in ("one", "two"))
    assert first == second
    assert first.count("<svg") == 2 + 2 + 2 + 5  # panels of loss, branches, similarity, Eq. 8
    ids = re.findall(r'\bid="([^"]*)"', first)
    assert len(ids) == len(set(ids))
    for anchor in ("training", "similarity", "contrastive", "samples", "origin"):
        assert f'<section id="{anchor}"' in first


def test_no_two_rows_of_a_chart_look_the_same() -> None:
    looks = {(colour(place), marker(place)) for place in range(3 * len(COLOURS))}
    assert len(looks) == 3 * len(COLOURS)
