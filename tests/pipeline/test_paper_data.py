"""A delta is printed where our data are the paper's, and nowhere else. `results` is a suite's."""

from typing import Any

import pytest

from pipeline.tables.formats import render_tables
from pipeline.tables.layout import lay_out
from pipeline.tables.notes import notes
from pipeline.tables.paper import load_paper

PAPER = load_paper()
NO_DELTA = "No delta where the data are not the paper's: "


@pytest.fixture
def probed(results: Any) -> Any:
    """Two probes on as many images as ImageNet's validation split has, by its name or not."""
    results.on_the_papers_data()
    results.result("linprobe", "mae", lp_acc1=51.0)
    results.result("linprobe", "asl", lp_acc1=49.0)
    results.lock()
    return results


def deltas(suite: Any, column: int = 0) -> list[float | None]:
    (table,) = lay_out(suite, PAPER)
    return [line.cells[column].delta for line in table.lines]


def said(suite: Any) -> list[str]:
    (table,) = lay_out(suite, PAPER)
    return [note.removeprefix(NO_DELTA) for note in notes(table) if note.startswith(NO_DELTA)]


def test_on_the_papers_data_there_is_one(probed: Any) -> None:
    assert deltas(probed.suite) == [4.2, 0.4]
    (table,) = lay_out(probed.suite, PAPER)
    assert table.headings[0].subheads == ("paper", "ours", "delta")
    # the other column's number of the paper is of encoders that were trained on ImageNet
    assert said(probed.suite) == [
        "FT (pre-trained on coco; the paper: ImageNet-1K train, 1,281,167 images)."
    ]


@pytest.mark.parametrize(
    ("form", "header"),
    [("text", " delta "), ("md", "| delta |"), ("latex", r"$\Delta$"), ("html", ">delta<")],
)
def test_on_other_data_no_format_has_one_and_each_says_why(
    results: Any, form: str, header: str
) -> None:
    results.result("linprobe", "mae", lp_acc1=51.0, test_images=400)
    results.lock()
    printed = " ".join(render_tables(results.suite, form, 400).split())
    assert "+4.2" not in printed
    assert header not in printed.replace(NO_DELTA, "")
    assert "LP (icons; the paper: ImageNet-1K val)" in printed
    assert "46.8" in printed  # the paper's number stands beside ours all the same


@pytest.mark.parametrize(
    ("images", "delta"), [(50_000, 4.2), (49_960, 4.2), (5_000, None), (None, None)]
)
def test_a_part_of_the_test_split_is_other_data(
    probed: Any, images: int | None, delta: float | None
) -> None:
    probed.measured_on = {} if images is None else {"test_images": images}
    probed.result("linprobe", "mae", lp_acc1=51.0)
    assert deltas(probed.suite)[0] == delta
    assert deltas(probed.suite)[1] == 0.4
    count = "unknown" if images is None else f"{images:,}"
    why = f"LP ({count} test images; the paper: 50,000 of ImageNet-1K val)"
    assert (why in "".join(said(probed.suite))) is (delta is None)


def test_a_row_that_was_pretrained_on_other_data_has_none(probed: Any) -> None:
    probed.edit("mae: {method: mae, dataset: coco", "mae: {method: mae, dataset: imagenet")
    assert deltas(probed.suite) == [None, 0.4]
    assert said(probed.suite)[0].startswith(
        "LP (pre-trained on imagenet; the paper: COCO train2017, 118,287 images)"
    )


def test_one_seed_on_other_data_takes_the_means_delta_away(seeds: Any) -> None:
    seeds.on_the_papers_data()
    for key, images in (("mae", 50_000), ("mae-s1", 400)):
        seeds.result("linprobe", key, lp_acc1=51.0, test_images=images)
    assert deltas(seeds.suite)[0] is None
    seeds.result("linprobe", "mae-s1", lp_acc1=51.0)
    assert deltas(seeds.suite)[0] == 4.2


@pytest.mark.parametrize(
    ("form", "header"),
    [("text", " delta "), ("md", "| delta |"), ("latex", r"$\Delta$"), ("html", ">delta<")],
)
def test_on_the_papers_data_every_format_has_it(probed: Any, form: str, header: str) -> None:
    printed = " ".join(render_tables(probed.suite, form, 400).split())
    assert "+4.2" in printed
    assert header in printed


def test_at_the_papers_scale_too(probed: Any) -> None:
    probed.edit("scale: reduced", "scale: paper")
    probed.edit("tables: [table1, table5]", "tables: [table1]")
    probed.edit("epochs: 2", "epochs: 800")
    assert [each for each in deltas(probed.suite) if each is not None] == [4.2, 0.4]
    probed.edit("linprobe:\n  mae: {dataset: imagenet}", "linprobe:\n  mae: {dataset: coco}")
    assert [each for each in deltas(probed.suite) if each is not None] == [0.4]
    assert said(probed.suite) == ["LP (coco; the paper: ImageNet-1K val)."]


def test_every_column_of_the_paper_says_how_its_data_are_known() -> None:
    columns = [column for table in PAPER.tables.values() for column in table.columns]
    assert {column.data for column in columns} == PAPER.data.keys()
    assert all(table.pretraining for table in PAPER.tables.values())
