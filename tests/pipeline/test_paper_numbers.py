"""paper.yaml against the paper's tables, and which experiment fills which row."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.tables import paper
from pipeline.tables.collect import collect
from pipeline.tables.paper import load_paper

ROOT = Path(__file__).parents[2]
PAPER = load_paper()
MAE = MaeRecipe(dataset="coco")
ASL = AslRecipe(dataset="coco")

# Rows as the paper prints them, typed from it.
PRINTED = {
    "table1": """
        MAE [22] | ViT-B | 1x | 800 | 46.8 | 49.3
        CMAE [27] | ViT-B | ~3x | 800 | 46.6 | 49.0
        ccMIM [67] | ViT-B | ~3.3x | 800 | 46.7 | 49.0
        SIM [54] | ViT-B | ~2.8x | 800 | 46.0 | 48.7
        iBOT [69] | ViT-B | ~6x | 800 | 45.2 | 48.6
        ASL | ViT-B | ~1.5x | 800 | 48.6 | 50.3""",
    "table2": """
        MAE [22] | ViT-B | 86 | 800 | 74.5 | 90.9
        iBOT [69] | ViT-B | 86 | 800 | 71.8 | 88.5
        ccMIM [67] | ViT-B | 86 | 800 | 72.3 | 88.7
        ASL | ViT-B | 86 | 800 | 79.6 | 92.4
        ASL | ViT-B | 86 | 4000 | 85.9 | 94.2""",
    "table3": """
        Supervised [9] | ~94k | ImageNet-1K | 47.9 | - | - | 42.9 | - | -
        MoCo v3 [8] | ~187k | ImageNet-1K | 47.9 | - | - | 42.7 | - | -
        BEiT [1] | ~249k | ImageNet-1K + DALLE | 49.8 | - | - | 44.4 | - | -
        MAE [22] | ~499k | ImageNet-1K | 50.4 | 70.8 | 55.7 | 44.9 | 68.3 | 48.9
        CAE [9] | ~499k | ImageNet-1K | 50.0 | 70.9 | 54.8 | 44.0 | 67.9 | 47.6
        R-MAE [45] | ~115k | COCO | 50.6 | - | - | 45.0 | - | -
        R-MAE [45] | ~250k | COCO | 50.8 | - | - | 45.2 | - | -
        ccMIM [67] | ~249k | ImageNet-1K | 50.3 | 71.2 | 55.0 | 44.5 | 68.4 | 47.9
        ASL | ~47k | ImageNet-100 + COCO | 50.7 | 71.1 | 55.6 | 45.0 | 68.3 | 49.0
        ASL | ~236k | ImageNet-100 + COCO | 51.5 | 71.9 | 57.2 | 45.7 | 69.2 | 50.0""",
    "table4": """
        Supervised [22] | ImageNet-1K | ~93k | 47.4
        SplitMask [16] | ADE20K | ~128k | 45.7
        MoCo v3 [8] | ImageNet-1K | ~187k | 47.3
        BEiT [22] | ImageNet-1K+DALLE | ~249k | 47.1
        R-MAE [45] | COCO | ~115k | 46.8
        R-MAE [45] | COCO | ~250k | 47.0
        ccMIM [67] | ImageNet-1K | ~249k | 47.7
        MAE [22] | ImageNet-1K | ~499k | 48.1
        ASL | ImageNet-100 + COCO | ~236k | 48.4""",
    "table5": """
        MAE | 67.8 | 83.6 | 50.4 | 44.9 | 48.1
        ASL | 69.2 | 84.2 | 51.3 | 45.7 | 49.2""",
    "table6": """
        Supervised [26] | - | 91.3 | - | 64.1
        DINO [3] | 89.0 | 94.4 | 65.8 | 76.3
        MAE [22] | 87.3 | 95.9 | 54.0 | 81.1
        ASL | 91.4 | 96.5 | 60.3 | 82.1""",
    "table7": """
        (a) | no | no | no | 1x | 46.8 | 49.3
        (b) | yes | no | no | ~2x | 46.5 | 49.1
        (c) | yes | no | yes | ~2x | 48.5 | 50.4
        (d) | no | yes | no | ~1.5x | 46.6 | 49.2
        (e) | no | yes | yes | ~1.5x | 48.6 | 50.3""",
    "alignment": """
        MAE | 46.8
        cosine similarity loss | 47.6
        L1 loss | 48.6
        [cls] align | 45.6""",
}


def value(table: str, row: str, column: int) -> float:
    found = next(r for r in PAPER.tables[table].rows if r.name == row)
    number = found.values[column]
    assert number is not None
    return number


@pytest.mark.parametrize("key", PRINTED)
def test_every_number_is_the_one_that_the_paper_prints(key: str) -> None:
    rows = [
        " | ".join(
            [
                row.name if row.cite is None else f"{row.name} [{row.cite}]",
                *row.given,
                *("-" if number is None else f"{number:.1f}" for number in row.values),
            ]
        )
        for row in PAPER.tables[key].rows
    ]
    assert rows == [line.strip() for line in PRINTED[key].strip().splitlines()]


def test_no_table_is_left_out_of_the_comparison() -> None:
    assert {*PRINTED, "calibration"} == set(PAPER.tables)  # the last is no table of the paper


def test_table_7_and_the_alignment_losses_repeat_numbers_of_table_1() -> None:
    for row_1, row_7 in (("MAE", "(a)"), ("ASL", "(e)")):
        assert [value("table1", row_1, i) for i in (0, 1)] == [
            value("table7", row_7, i) for i in (0, 1)
        ]
    assert value("alignment", "L1 loss", 0) == value("table1", "ASL", 0)
    assert value("alignment", "MAE", 0) == value("table1", "MAE", 0)


def test_on_cifar_asl_is_at_least_4_1_points_above_mae_in_the_linear_probe() -> None:
    gains = [value("table6", "ASL", i) - value("table6", "MAE", i) for i in (0, 2)]
    assert min(gains) == pytest.approx(4.1)


def test_figure_1_has_a_base_method_for_each_hybrid() -> None:
    bases = {point.method: point.base for point in PAPER.figure1.methods}
    assert {name: base for name, base in bases.items() if base} == {
        "ccmim": "mae", "sim": "mae", "ibot": "dino",
    }  # fmt: skip
    assert all(point.base for point in PAPER.figure1.methods if point.family == "hybrid")


@pytest.mark.parametrize(
    ("table", "recipe", "row"),
    [
        ("table1", MAE, "MAE"),
        ("table1", ASL, "ASL"),
        ("table7", MAE, "(a)"),
        ("table7", replace(ASL, design="dle", sem_weight=0), "(b)"),
        ("table7", replace(ASL, design="dle"), "(c)"),
        ("table7", replace(ASL, sem_weight=0.0), "(d)"),
        ("table7", ASL, "(e)"),
        ("alignment", replace(ASL, sem_type="cosine"), "cosine similarity loss"),
        ("alignment", MAE, "MAE"),
        ("alignment", ASL, "L1 loss"),
        ("alignment", replace(ASL, cls_align="encoder"), "[cls] align"),
        ("alignment", replace(ASL, cls_align="decoder_pred"), None),
        ("alignment", replace(ASL, cls_align="encoder", sem_type="cosine"), None),
        ("table7", replace(ASL, cls_align="encoder"), None),
        ("table7", replace(ASL, sem_type="cosine"), None),
        ("table7", replace(ASL, share_decoder=False), None),
        ("table7", replace(ASL, sem_weight=0.5), None),
        ("table1", replace(ASL, design="dle"), None),
        ("table1", replace(ASL, mae_on="ori"), None),
        ("table7", replace(ASL, design="dle", dle_rate=0.2), None),
    ],
)
def test_a_variant_takes_its_own_row_and_no_other(
    table: str, recipe: MaeRecipe | AslRecipe, row: str | None
) -> None:
    index = PAPER.tables[table].row_of(recipe, None, full_scale=False)
    assert (None if index is None else PAPER.tables[table].rows[index].name) == row


@pytest.mark.parametrize(
    ("table", "dataset", "epochs", "index"),
    [
        ("table2", "in100-coco", 800, 3), ("table2", "in100-coco", 4000, 4),
        ("table2", "in100-coco", 100, None), ("table2", "coco", 800, None),
        ("table1", "coco", 800, 5), ("table1", "in100-coco", 800, None),
        ("table3", "in100-coco", 800, 8), ("table3", "in100-coco", 4000, 9),
        ("table3", "coco", 800, None), ("table3", "imagenet", 800, None),
        ("table4", "in100-coco", 4000, 8), ("table4", "in100-coco", 800, None),
        ("table5", "imagenet", 1600, 1), ("table5", "imagenet", 800, None),
        ("table5", "coco", 1600, None),
    ],
)  # fmt: skip
def test_at_the_papers_scale_data_and_epochs_choose_the_row(
    table: str, dataset: str, epochs: int, index: int | None
) -> None:
    recipe = replace(ASL, dataset=dataset, epochs=epochs)
    assert PAPER.tables[table].row_of(recipe, None, full_scale=True) == index


@pytest.mark.parametrize("suite", ["table1", "table2", "table3", "table4", "table5", "table7"])
def test_every_row_of_a_table_has_one_experiment_in_its_suite(suite: str) -> None:
    folder = ROOT / "suites" / suite
    params = load_params(folder / "params.yaml")
    collected, table = collect(folder, params), PAPER.tables[suite]
    found = [
        table.row_of(collected.on_images(recipe), params.rows.get(key), full_scale=True)
        for key, recipe in params.experiments.items()
        if getattr(recipe, "seed", 0) == 0
    ]
    assert sorted(index for index in found if index is not None) == list(range(len(table.rows)))


def test_a_row_that_params_yaml_names_wins_over_the_match() -> None:
    recipe = replace(ASL, design="dle", dle_rate=0.2)
    assert PAPER.tables["table1"].row_of(recipe, "ASL", full_scale=False) == 5


def test_a_part_of_a_table_has_the_columns_of_that_part_alone() -> None:
    part = PAPER.table("table6-cifar100")
    assert [row.values for row in part.rows] == [
        (None, 64.1), (65.8, 76.3), (54.0, 81.1), (60.3, 82.1),
    ]  # fmt: skip


def test_an_unknown_table_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=re.escape("'tabel1'; did you mean 'table1'?")):
        PAPER.table("tabel1")


@pytest.mark.parametrize(
    ("recipe", "label"),
    [
        (MAE, "MAE"),
        (ASL, "ASL (AEE)"),
        (replace(ASL, design="dle"), "ASL (DLE)"),
        (replace(ASL, sem_weight=0.0), "ASL (AEE), without alignment"),
        (replace(ASL, design="dle", sem_weight=0.0), "ASL (DLE), without alignment"),
        (replace(ASL, sem_weight=0.5), "ASL (AEE), sem_weight 0.5"),
        (replace(ASL, mae_on="ori", sem_type="cosine"), "ASL (AEE), mae_on ori, cosine alignment"),
        (replace(ASL, cls_align="encoder"), "ASL (AEE), [cls] alignment"),
        (
            replace(ASL, share_decoder=False, aee_depth=2),
            "ASL (AEE), share_decoder no, aee_depth 2",
        ),
        (replace(ASL, aee_norm=True), "ASL (AEE), aee_norm yes"),
        (
            replace(ASL, design="dle", dle_both=False, dle_rate=0.25),
            "ASL (DLE), dle_rate 0.25, dle_both no",
        ),
    ],
)
def test_a_label_names_the_design_and_what_is_not_default(
    recipe: MaeRecipe | AslRecipe, label: str
) -> None:
    assert PAPER.method_label(recipe) == label


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metrics:", "{metrics:", "not valid YAML"),
        ("source: run", "source: ran", "source: got 'ran', expected one of run, quoted"),
        ("method: mae", "design: mae", "names ['no method'], which is not defined"),
        ("decimals: 1", "decimals: one", "decimals: got 'one', expected a whole number"),
        ("figure1:", "figure_1:", "figure1: is missing; add it"),
    ],
)
def test_a_mistake_in_the_papers_file_is_named(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = (Path(paper.__file__).with_name("paper.yaml")).read_text()
    assert old in text
    (tmp_path / "paper.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        paper.read_paper(tmp_path / "paper.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "paper.yaml"))
