"""params.yaml: what it resolves to, and what each mistake in it says."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS
from pipeline.config.canonical import CURATED, canonical_json, curated_params
from pipeline.config.cluster import load_resources
from pipeline.config.params import METHODS, NAME, load_params
from pipeline.config.suggest import nearest, unknown_name
from pipeline.config.yaml_files import read_yaml, shared_mappings
from pipeline.errors import UserError
from pipeline.tables.paper import load_paper

ROOT = Path(__file__).parents[2]
SUITES = [ROOT, *sorted(p.parent for p in (ROOT / "suites").glob("*/params.yaml"))]

BASE = """
suite: tiny
title: Tiny
scale: reduced
tables: [table1]
datasets:
  both: {source: union, members: [{source: scenes, train: 8}, {source: icons, train: 8}]}
  icons: {source: icons, train: 8, test: 4}
experiments:
  mae: &common {method: mae, dataset: both, model: vit-demo, epochs: 2, lr: 1e-3,
                batch_size: 4, warmup_epochs: 1}
  asl: {<<: *common, method: asl, design: dle, row: ASL}
linprobe: {mae: {dataset: icons, epochs: 12}}
finetune: {}
detect: {}
segment: {}
analyze: {}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("folder", SUITES, ids=lambda p: p.name)
def test_every_suite_of_the_project_is_valid(folder: Path) -> None:
    assert load_params(folder / "params.yaml", load_paper().references()).experiments
    assert shared_mappings(read_yaml(folder / "params.yaml")) == []  # dvc exp run -S finds one each


def test_anchors_merge_keys_and_numbers_without_a_point_are_read_as_dvc_does(
    tmp_path: Path,
) -> None:
    params = load_params(write(tmp_path, BASE))
    mae, asl = params.experiments["mae"], params.experiments["asl"]
    assert isinstance(mae, MaeRecipe)
    assert isinstance(asl, AslRecipe)
    assert (asl.lr, asl.epochs, asl.design) == (1e-3, 2, "dle")
    assert params.rows == {"asl": "ASL"}
    assert params.linprobe["mae"].epochs == 12


def test_a_model_is_a_size_with_overrides(tmp_path: Path) -> None:
    text = BASE.replace("model: vit-demo", "model: {size: vit-demo, image_size: 32}")
    model = load_params(write(tmp_path, text)).experiments["mae"].model
    assert (model.image_size, model.embed_dim) == (32, MODELS["vit-demo"].embed_dim)


MISTAKES = [
    (
        "epochs: 2",
        "epocs: 2",
        "mae.epocs (and asl): unknown key; did you mean 'epochs'?",
    ),
    (
        "epochs: 2",
        "epochs: two",
        "experiments.mae.epochs (and asl): got 'two', expected a whole number",
    ),
    (
        "epochs: 2",
        "epochs: '2'",
        "experiments.mae.epochs (and asl): got '2', expected a whole number",
    ),
    (
        "epochs: 2",
        "epochs: true",
        "experiments.mae.epochs (and asl): got True, expected a whole number",
    ),
    ("epochs: 2", "epochs: 0", "experiments.mae (and asl): epochs must be at least 1, got 0"),
    ("lr: 1e-3", "lr: .nan", "experiments.mae.lr (and asl): got nan, expected a finite number"),
    ("lr: 1e-3", "lr: -1", "experiments.mae (and asl): lr must be positive, got -1.0"),
    ("method: mae", "method: maee", "experiments.mae.method: got 'maee', expected one of mae, asl"),
    ("method: mae, ", "", "experiments.mae.method: is missing"),
    ("design: dle", "design: dlee", "experiments.asl.design: got 'dlee', expected one of aee, dle"),
    ("model: vit-demo", "model: vit-dem", "unknown model 'vit-dem'; did you mean 'vit-demo'?"),
    ("model: vit-demo", "model: {image_size: 32}", "experiments.mae.model (and asl): is missing"),
    (
        "model: vit-demo",
        "model: {size: vit-demo, image_size: 60}",
        "image_size 60 is not divisible by patch_size 16; use 48",
    ),
    (
        "model: vit-demo",
        "model: {size: vit-demo, image_siz: 32}",
        "experiments.mae.model.image_siz (and asl): unknown key; did you mean 'image_size'?",
    ),
    ("dataset: both", "dataset: bth", "experiments.mae.dataset (and asl): unknown dataset 'bth'"),
    ("{source: scenes, ", "{source: scnes, ", "datasets.both.members.0.source: unknown source"),
    (
        "{source: scenes, train",
        "{source: scenes, trai",
        "both.members.0.trai: unknown key",
    ),
    (
        "icons: {source: icons",
        "icons: {source: icon",
        "datasets.icons.source: got 'icon'",
    ),
    (
        "icons: {source: icons,",
        "icons: {source: icons, regions: {scale: [8]},",
        "datasets.icons.regions.scale: unknown key; did you mean 'scales'?",
    ),
    (
        "icons: {source: icons,",
        "icons: {source: icons, regions: {scales: []},",
        "datasets.icons.regions: scales must be one or more numbers of pixels from 1, got []",
    ),
    ("linprobe: {mae", "linprobe: {mea", "linprobe.mea: unknown experiment 'mea'; did you mean"),
    ("tables: [table1]", "tables: [table11]", "tables.0: unknown table 'table11'; did you mean"),
    ("detect: {}", "detekt: {}", "detekt: unknown key; did you mean 'detect'?"),
    ("suite: tiny", "suite: 3", "suite: got 3, expected a text"),
    ("scale: reduced", "scale: small", "scale: got 'small', expected one of reduced, paper"),
    ("  asl: {", "  3: {", "a key that is no text (put it in quotes)"),
    ("  asl: {", "  ASL: {", "experiments.ASL: got the name 'ASL', expected lower-case letters"),
    ("epochs: 2", "epochs: 2, epochs: 3", "not valid YAML: found duplicate key"),
    ("epochs: 2", "epochs: [2", "not valid YAML"),
    ("experiments:\n", "experiments: 3\nx:\n", "experiments: got 3, expected a mapping"),
    (
        "suite: tiny",
        "seeds: [0, 1]\nsuite: tiny",
        "seeds: unknown key; several seeds go into",
    ),
    (
        "epochs: 2",
        "epochs: 2, seeds: [0, 1]",
        "experiments.mae.seeds (and asl): unknown key; several seeds go into suite.yaml",
    ),
    (
        "epochs: 12",
        "epochs: 12, image_size: 40",
        "linprobe.mae.image_size: got 40, expected a multiple of 16: patches of mae have 16 pixels",
    ),
    (
        "segment: {}",
        "segment: {asl: {dataset: icons, crop_size: 8, slide_stride: 8}}",
        "segment.asl.crop_size: got 8, expected a multiple of 16",
    ),
    (
        "detect: {}",
        "detect: {asl: {dataset: icons, image_size: 48}}",
        "detect.asl.image_size: got 48, expected a multiple of 32: patches of asl have 16 pixels, "
        "and this stage wants an even number",
    ),
    (
        "epochs: 12",
        "epochs: 12, momentum: 1.5",
        "linprobe.mae: momentum must be in [0, 1), got 1.5",
    ),
    ("epochs: 12", "epochs: 12, layer_decay: 0.7", "linprobe.mae.layer_decay: has no effect here"),
    (
        "finetune: {}",
        "finetune: {asl: {dataset: icons, weight_decay_end: 0.4}}",
        "finetune.asl.weight_decay_end: cannot go with layer_decay, which would scale it",
    ),
    ("row: ASL", "row: 7", "experiments.asl.row: got 7, expected a text"),
    (
        "experiments:\n",
        "experiments:\n  none: {method: untrained, dataset: both, model: vit-demo, epochs: 2}\n",
        "experiments.none.epochs: unknown key (valid: method, dataset, model, initialisation, "
        "seed, row)",
    ),
    (
        "experiments:\n",
        "experiments:\n  none: {method: untrained, dataset: both, initialization: mae}\n",
        "experiments.none.initialization: unknown key; did you mean 'initialisation'?",
    ),
    (
        "experiments:\n",
        "experiments:\n  none: {method: untrained, dataset: both, initialisation: xavier}\n",
        "experiments.none.initialisation: got 'xavier', expected one of mae, dino, mocov3, beit, "
        "cae, splitmask",
    ),
    (
        "icons: {source: icons, train: 8, test: 4}",
        "icons: {source: imagefolder, path: here, classes: [first, 2]}",
        "datasets.icons.classes.1: got 2, expected a text",
    ),
    (
        "{method: mae, dataset: both,",
        "{method: rmae, dataset: both,",
        "experiments.mae.dataset: rmae wants regions, which both is packed without; give "
        "datasets.both regions: {scales: [500, 1000, 1500]}, or smaller scales for small images",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES, ids=[m[1][:40] for m in MISTAKES])
def test_each_mistake_gives_lines_with_file_key_and_remedy(
    tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    assert right in BASE
    path = write(tmp_path, BASE.replace(right, wrong, 1))
    with pytest.raises(UserError) as caught:
        load_params(path, load_paper().references())
    lines = str(caught.value).splitlines()
    assert any(said in line for line in lines)
    assert all(line.startswith(str(path)) for line in lines)


def test_a_section_that_is_not_used_need_not_be_written(tmp_path: Path) -> None:
    path = write(tmp_path, BASE.replace("detect: {}\n", "", 1))
    assert load_params(path, load_paper().references()).section("detect") == {}


def test_a_mistake_under_an_anchor_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, BASE.replace("epochs: 2", "epochs: two", 1))
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_params(tmp_path / "params.yaml")


def test_a_list_is_no_params_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a mapping"):
        load_params(write(tmp_path, "- 1\n"))


@given(st.from_regex(NAME, fullmatch=True))
def test_valid_names_survive_in_a_dotted_key_a_path_and_a_shell_word(name: str) -> None:
    assert not set(name) & set(" .@/$'\"\\\n\t*?;&|<>(){}[]!#~`")


def test_the_nearest_name_comes_with_all_valid_ones() -> None:
    assert nearest("pretrian", ["prepare", "pretrain"]) == "pretrain"
    assert unknown_name("stage", "xyz", ["a", "b"]) == "unknown stage 'xyz' (valid: a, b)"


def test_the_canonical_form_does_not_depend_on_order_or_number_type(tmp_path: Path) -> None:
    one = load_params(write(tmp_path, BASE)).experiments["asl"]
    other = BASE.replace("epochs: 2, lr: 1e-3", "lr: 0.001, epochs: 2").replace(
        "warmup_epochs: 1", "warmup_epochs: 1.0"
    )
    two = load_params(write(tmp_path, other)).experiments["asl"]
    assert canonical_json(one) == canonical_json(two)
    assert json.loads(canonical_json(one))["model"]["embed_dim"] == 64


def test_at_most_25_hyperparameters_are_shown_and_all_methods_name_themselves() -> None:
    assert len(CURATED) <= 25
    needed = {"imported": {"path": "encoders/x", "sha256": "0" * 64}}
    for name, recipe in METHODS.items():
        assert curated_params(recipe(dataset="x", **needed.get(name, {})))["method"] == name


def test_resources_of_a_stage_are_its_own_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.dump({"local": {"default": {"num_workers": 2, "device": "cpu"},
                                         "detect": {"num_workers": 1}}}))  # fmt: skip
    assert load_resources(path, "pretrain").num_workers == 2
    assert load_resources(path, "detect").num_workers == 1
    assert load_resources(path, "detect").device == "cpu"
    assert load_resources(tmp_path / "none.yaml", "detect").num_workers == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "local: {default: {num_worker: 2}}",
            "local.default.num_worker: unknown key; did you mean",
        ),
        ("local: {default: {device: gpu}}", "local.default.device: got 'gpu', expected one of"),
        ("local: {detekt: {}}", "local.detekt: unknown key; did you mean 'detect'?"),
        ("lokal: {}", "lokal: unknown key; did you mean 'local'?"),
    ],
)
def test_mistakes_in_cluster_yaml_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_resources(path, "pretrain")
    assert said in str(caught.value)
