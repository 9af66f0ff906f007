"""When a report says that ASL's second branch is none. `seeds` is a suite's folder."""

from typing import Any

import numpy as np
import pytest

from pipeline.tables.formats import render_tables
from pipeline.tables.health import COLLAPSED_BELOW
from pipeline.tables.html import page
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import notes

PAPER = load_paper()


def end(seeds: Any, **distances: float) -> Any:
    """Leave finished pre-trainings with these distances; `_` stands for - in a key."""
    for name, distance in distances.items():
        seeds.result("pretrain", name.replace("_", "-"), **{"pretrain/branch_distance": distance})
    return seeds


def warnings(seeds: Any) -> tuple[str, ...]:
    (table,) = lay_out(seeds.suite, PAPER)
    return table.warnings


def watched(seeds: Any) -> list[str]:
    (table,) = lay_out(seeds.suite, PAPER)
    return [note for note in notes(table) if note.startswith("Watched")]


def test_a_collapsed_extra_layer_is_named_with_its_value_and_its_meaning(seeds: Any) -> None:
    (warning,) = warnings(end(seeds, aee=0.4, aee_s1=0.0042))
    assert warning == (
        "Collapsed branch: ASL (AEE), experiment aee-s1: |fea_aug - fea_ori| / |fea_ori| is 0.0042 "
        "at the end of pre-training, below 0.01; the extra layer has become the identity: this run "
        "is MAE at 1.6 times the cost."
    )


def test_dle_has_no_extra_layer_that_could_be_the_identity(seeds: Any) -> None:
    (warning,) = warnings(end(seeds, dle=0.001))
    assert "ASL (DLE), experiment dle" in warning
    assert "removes every trace of the dropout" in warning
    assert "MAE at 2.0 times the cost" in warning
    assert "identity" not in warning


def test_the_cost_of_a_collapse_is_the_one_that_was_counted(seeds: Any) -> None:
    seeds.result("pretrain", "mae", flops_train_g=10.0)
    seeds.result("pretrain", "aee", **{"flops_train_g": 18.4, "pretrain/branch_distance": 0.0})
    assert "MAE at 1.8 times the cost" in warnings(seeds)[0]


@pytest.mark.parametrize(("distance", "count"), [(0.0, 1), (0.0099, 1), (0.01, 0), (0.06, 0)])
def test_a_branch_has_collapsed_below_a_hundredth(seeds: Any, distance: float, count: int) -> None:
    assert len(warnings(end(seeds, aee=distance))) == count


def test_branches_that_differ_by_the_rounding_of_bfloat16_alone_have_collapsed() -> None:
    features = np.random.default_rng(0).standard_normal((64, 96), np.float32)
    bits = features.view(np.uint32)
    truncated = (bits & np.uint32(0xFFFF0000)).view(np.float32)  # the worst rounding there is
    distance = np.linalg.norm(truncated - features) / np.linalg.norm(features)
    assert 0 < distance < COLLAPSED_BELOW


def test_one_line_says_what_was_watched_where_nothing_has_collapsed(seeds: Any) -> None:
    end(seeds, aee=0.791, aee_s1=0.4, dle=0.0583)
    assert warnings(seeds) == ()
    assert watched(seeds) == [
        "Watched for collapse, |fea_aug - fea_ori| / |fea_ori| at the end of pre-training "
        "(collapsed below 0.01): ASL (AEE) 0.79, 0.4; ASL (DLE) 0.058."
    ]


def test_a_collapsed_run_is_not_among_those_that_are_well(seeds: Any) -> None:
    end(seeds, aee=0.79, aee_s1=0.004)
    assert watched(seeds)[0].endswith(": ASL (AEE) 0.79.")
    end(seeds, aee=0.004)
    assert watched(seeds) == []


def test_mae_has_no_branch_to_watch(seeds: Any) -> None:
    end(seeds, mae=0.0)
    assert warnings(seeds) == ()
    assert watched(seeds) == []


def test_every_format_gives_the_warning_under_the_table(seeds: Any) -> None:
    suite = end(seeds, aee=0.004).suite
    table, _, below = render_tables(suite, "md").partition("\n> **Collapsed branch: ASL (AEE)")
    assert "| ASL (AEE) |" in table
    assert "the identity" in below
    assert "Collapsed branch: ASL (AEE), experiment aee" in render_tables(suite, "text", 200)
    assert r"\textbf{Collapsed branch: ASL (AEE), experiment aee: $|$fea\_aug" in (
        render_tables(suite, "latex")
    )
    content = page(seeds.suite, PAPER)
    notice = content.split('<p class="notice" role="alert">')[1].split("</p>")[0]
    assert notice.startswith("Collapsed branch: ASL (AEE), experiment aee")
    assert content.index("<tbody>") < content.index(notice)


def test_at_the_papers_scale_each_table_warns_of_the_rows_that_it_has(seeds: Any) -> None:
    seeds.edit("scale: reduced", "scale: paper")
    seeds.edit("epochs: 2", "epochs: 800")
    seeds.edit("icons: {", "coco: {")
    seeds.edit("dataset: icons", "dataset: coco")
    end(seeds, aee=0.3, dle=0.004)
    table7, alignment = lay_out(seeds.suite, PAPER)
    assert [("ASL (DLE)" in warning) for warning in table7.warnings] == [True]
    assert alignment.warnings == ()  # Section 4.6 has AEE alone
