"""An experiment becomes one for each combination of the values that it names."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.expand import SUITE_FILE, expand, params_text
from pipeline.config.params import NAME, load_params
from pipeline.config.sweeps import value_text
from pipeline.errors import UserError

MAE = {
    "method": "mae", "dataset": "icons", "model": "vit-demo", "epochs": 40, "lr": 1.0,
    "warmup_epochs": 0,
}  # fmt: skip
SUITE: dict[str, Any] = {
    "suite": "tiny", "title": "Tiny", "scale": "reduced",
    "datasets": {"icons": {"source": "icons", "train": 8, "test": 4}},
    "experiments": {
        "mae": {**MAE, "sweep": {"lr": [1e-3, 2e-3, 0.15], "epochs": [4, 8, 16, 32]}},
        "plain": MAE,
    },
    "linprobe": {"mae": {"dataset": "icons", "grid_rates": [0.1]}, "plain": {"dataset": "icons"}},
    "knn": {"mae": {"dataset": "icons"}},
}  # fmt: skip


def expanded(sweep: object = None, **changes: Any) -> dict[str, Any]:
    suite = copy.deepcopy({**SUITE, **changes})
    if sweep is not None:
        suite["experiments"]["mae"]["sweep"] = sweep
    return expand(suite, Path("suite.yaml"))


def refusal(sweep: object = None, **changes: Any) -> str:
    with pytest.raises(UserError) as raised:
        expanded(sweep, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_combination_is_an_experiment_with_the_evaluations_of_its_own() -> None:
    made = expanded()
    names = [
        f"mae-{lr}-epochs{epochs}"
        for lr in ("lr1e-3", "lr2e-3", "lr0p15")
        for epochs in (4, 8, 16, 32)
    ]
    assert list(made["experiments"]) == [*names, "plain"]
    assert made["experiments"]["mae-lr2e-3-epochs8"] == {**MAE, "lr": 2e-3, "epochs": 8}
    assert made["experiments"]["plain"] == MAE
    assert list(made["linprobe"]) == [*names, "plain"]
    assert list(made["knn"]) == names
    assert made["linprobe"][names[5]] == SUITE["linprobe"]["mae"]
    assert all(NAME.fullmatch(name) for name in names)
    assert made["sweeps"]["mae"]["runs"]["mae-lr0p15-epochs16"] == {"lr": 0.15, "epochs": 16}
    assert "sweep" not in made


def test_paired_values_are_a_run_each() -> None:
    made = expanded([{"lr": 1e-3, "epochs": 4}, {"epochs": 8, "lr": 2e-3}])
    assert list(made["experiments"]) == ["mae-lr1e-3-epochs4", "mae-lr2e-3-epochs8", "plain"]
    assert made["experiments"]["mae-lr2e-3-epochs8"]["epochs"] == 8


def test_a_run_is_the_same_whatever_other_values_there_are_and_in_which_order() -> None:
    few = expanded({"lr": [1e-3, 2e-3]})["experiments"]
    more = expanded({"lr": [5e-4, 2e-3, 3e-3, 1e-3]})["experiments"]
    assert {name: more[name] for name in few} == few
    alone = expanded({"lr": [2e-3]})["experiments"]
    assert alone["mae-lr2e-3"] == few["mae-lr2e-3"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "1e-3"), (0.15, "0p15"), (0.01, "0p01"), (0.0015, "1p5e-3"), (1.25e-05, "1p25e-5"),
        (8, "8"), (8.0, "8"), (0, "0"), (-0.5, "m0p5"), (0.1 + 0.2, "0p30000000000000004"),
        (1000000, "1e6"), (1234567, "1p234567e6"), (2.5e10, "2p5e10"), (999999, "999999"),
        ("dle", "_dle"), ("Enc/Dec v2", "_enc-dec-v2"), (True, "_true"), (None, "_none"),
        ([0.9, 0.95], "0p9_0p95"), (["cls", "mean"], "cls_mean"), ("", "_empty"),
    ],
)  # fmt: skip
def test_a_value_is_written_so_that_a_name_may_have_it(value: object, text: str) -> None:
    assert value_text(value) == text
    assert NAME.fullmatch(f"x{text}")


def test_fields_inside_of_others_are_swept_by_their_dotted_names() -> None:
    made = expanded({"model.depth": [2, 4], "model": ["vit-demo"]})["experiments"]
    assert list(made) == ["mae-depth2-model_vit-demo", "mae-depth4-model_vit-demo", "plain"]
    assert made["mae-depth4-model_vit-demo"]["model"] == {"size": "vit-demo", "depth": 4}


def test_seeds_multiply_runs_and_belong_to_them() -> None:
    made = expanded({"lr": [1e-3, 2e-3]}, seeds=[0, 3])
    assert list(made["experiments"]) == [
        "mae-lr1e-3", "mae-lr1e-3-seed3", "mae-lr2e-3", "mae-lr2e-3-seed3", "plain", "plain-seed3",
    ]  # fmt: skip
    assert made["experiments"]["mae-lr2e-3-seed3"] == {**MAE, "lr": 2e-3, "seed": 3}
    assert made["linprobe"].keys() == made["experiments"].keys()
    assert made["sweeps"]["mae"]["runs"] == {
        "mae-lr1e-3": {"lr": 1e-3}, "mae-lr1e-3-seed3": {"lr": 1e-3},
        "mae-lr2e-3": {"lr": 2e-3}, "mae-lr2e-3-seed3": {"lr": 2e-3},
    }  # fmt: skip


def test_a_sweep_of_the_suite_holds_for_all_that_have_none_and_for_the_floor_as_far_as_it_can() -> (
    None
):
    experiments = {
        "mae": {**MAE, "sweep": {"lr": [1e-3]}},
        "plain": MAE,
        "floor": {"method": "untrained", "dataset": "icons", "model": "vit-demo"},
        "theirs": {"method": "imported", "dataset": "icons", "file": "x"},
    }
    made = expanded(None, experiments=experiments, linprobe={}, knn={})
    assert list(made["experiments"]) == ["mae-lr1e-3", "plain", "floor", "theirs"]
    suite = {**SUITE, "experiments": experiments, "linprobe": {}, "knn": {},
             "sweep": {"lr": [1, 2], "model.depth": [2, 3]}}  # fmt: skip
    made = expand(suite, Path("suite.yaml"))
    assert list(made["experiments"]) == [
        "mae-lr1e-3", "plain-lr1-depth2", "plain-lr1-depth3", "plain-lr2-depth2",
        "plain-lr2-depth3", "floor-depth2", "floor-depth3", "theirs",
    ]  # fmt: skip
    assert list(made["sweeps"]) == ["mae", "plain"]


def test_an_experiment_begins_with_the_weights_of_a_sweep_that_has_one_run() -> None:
    other = {**MAE, "initialise": {"experiment": "mae"}}
    experiments = {**SUITE["experiments"], "other": other}
    made = expanded({"lr": [2e-3]}, experiments=experiments, seeds=[0, 1])["experiments"]
    assert made["other"]["initialise"] == {"experiment": "mae-lr2e-3"}
    assert made["other-seed1"]["initialise"] == {"experiment": "mae-lr2e-3-seed1"}
    said = refusal({"lr": [2e-3, 1e-3]}, experiments=experiments)
    assert "experiments.other.initialise.experiment: mae is a sweep of 2 runs; name one" in said


def test_runs_are_ranked_by_the_first_held_out_metric_that_there_is() -> None:
    assert expanded()["sweeps"]["mae"]["metric"] == "lp_held_out_acc1"
    plain = {"mae": {"dataset": "icons"}}
    grid = {"mae": {"dataset": "icons", "grid_k": [10, 20]}}
    assert expanded(linprobe=plain, knn=grid)["sweeps"]["mae"]["metric"] == "knn_held_out_acc1"
    assert expanded(linprobe=plain)["sweeps"]["mae"]["metric"] == "watch/probe_acc1_mean"
    chosen = expanded(select={"metric": "watch/knn_acc1_cls"})
    assert chosen["sweeps"]["mae"]["metric"] == "watch/knn_acc1_cls"
    assert "select" not in chosen


def test_test_images_choose_nothing_but_where_they_are_training_images_held_out() -> None:
    said = refusal(select={"metric": "lp_acc1"})
    assert "select.metric: lp_acc1 of mae is measured on test images" in said
    assert "take one of lp_held_out_acc1" in said
    icons = {"source": "icons", "train": 8, "test": 4, "selection": 2}
    made = expanded(select={"metric": "lp_acc1"}, datasets={"icons": icons})
    assert made["sweeps"]["mae"]["metric"] == "lp_acc1"


@pytest.mark.parametrize(
    ("sweep", "line"),
    [
        ({"learning_rate": [1]}, "experiments.mae.sweep.learning_rate: unknown key of mae"),
        ({"epoch": [1]}, "experiments.mae.sweep.epoch: unknown key of mae; did you mean 'epochs'?"),
        ({"model.dept": [1]}, "sweep.model.dept: unknown key of mae; did you mean 'model.depth'?"),
        ({"lr": 1e-3}, "sweep.lr: got 0.001, expected a list of values"),
        ({"lr": []}, r"sweep.lr: got [], expected a list of values"),
        ({"lr": [1e-3, 0.001]}, "sweep.lr: 0.001 is there twice; remove one"),
        ({"design": ["A b", "a-b"]}, "sweep.design: 'a-b' and 'A b' make one name; remove one"),
        ({"model": [{"depth": 2}]}, "sweep.model: got {'depth': 2}, expected plain values; sweep "
         "model.depth instead"),
        ([{"lr": 1}, {"epochs": 2}], "sweep.1: has epochs, the first has lr; give every entry"),
        ([{"lr": 1}, {"lr": 1}], "experiments.mae.sweep: two of its runs have the name mae-lr1"),
        ([1, 2], "experiments.mae.sweep: got [1, 2], expected fields with lists of values"),
        ({}, "experiments.mae.sweep: got {}, expected fields with lists of values"),
        ("lr", "experiments.mae.sweep: got 'lr', expected"),
        ({"seed": [1, 2]}, "sweep.seed: several seeds are `seeds: [0, 1]`, beside the sweep"),
        ({"lr": [*range(1, 65)], "epochs": [*range(1, 65)]}, "would make 4,096 runs, at most 1,0"),
        ({"dataset": ["x" * 120]}, "would make a name of 132 characters"),
    ],
)  # fmt: skip
def test_a_sweep_that_is_wrong_is_one_line_with_its_place(sweep: object, line: str) -> None:
    said = refusal(sweep)
    assert said.startswith("suite.yaml: ")
    assert line in said


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"linprobe": {"mae": {"dataset": "icons", "sweep": {"lr": [1]}}}},
         "linprobe.mae.sweep: an evaluation is not swept, it has one result for each encoder; "
         "grid_rates tries several"),
        ({"knn": {"mae": {"dataset": "icons"}, "mae-lr2e-3-epochs8": {"dataset": "icons"}}},
         "knn: mae-lr2e-3-epochs8 is measured by two entries, its own and that of its sweep"),
        ({"select": {"metric": "loss"}}, "select.metric: unknown held-out metric 'loss'"),
        ({"select": "lp"}, "select: got 'lp', expected {metric: NAME}"),
        ({"select": {"metric": "knn_held_out_acc1"}},
         "select.metric: knn_held_out_acc1 wants grid_k in knn.mae; add it"),
        ({"seeds": [*range(100)]}, "sweep, seeds counted: would make 1,200 runs, at most 1,000"),
        ({"experiments": {"a": {"method": "imported", "sweep": {"lr": [1]}}}},
         "experiments.a.sweep: an imported encoder is not trained"),
        ({"experiments": {"a": {**MAE, "sweep": {"lr": [1]}}, "a-lr1": MAE}},
         "experiments.a.sweep: there is already the name a-lr1"),
        ({"experiments": {"a": {**MAE, "sweep": {"lr": [1]}, "seeds": 3}}},
         "experiments.a.seeds: got 3, expected different whole numbers"),
        ({"sweep": {"sem_weight": [1]}}, "sweep.sem_weight: unknown key of mae"),
    ],
)  # fmt: skip
def test_what_goes_with_a_sweep_is_checked_too(changes: dict[str, Any], line: str) -> None:
    said = refusal(**changes)
    assert said.startswith("suite.yaml: ")
    assert line in said


@pytest.mark.parametrize(
    ("sweep", "lines"),
    [
        ({"lr": [1e-3, "fast"]},
         ["suite.yaml: experiments.mae.sweep.lr: got 'fast', expected a number"]),
        ({"model.depth": [2, 2.5]},
         ["suite.yaml: experiments.mae.sweep.model.depth: got 2.5, expected a whole number"]),
        ({"mask_ratio": [0.5, 1.5]}, ["suite.yaml: experiments.mae: mask_ratio"]),
        ({"dataset": ["icons", "icon"]},
         ["suite.yaml: experiments.mae.sweep.dataset: unknown dataset 'icon'; did you mean"]),
    ],
)  # fmt: skip
def test_values_are_checked_like_written_ones_and_their_place_is_said(
    tmp_path: Path, sweep: object, lines: list[str]
) -> None:
    suite = copy.deepcopy(SUITE)
    suite["experiments"]["mae"]["sweep"] = sweep
    (tmp_path / SUITE_FILE).write_text(yaml.safe_dump(suite, sort_keys=False))
    (tmp_path / "params.yaml").write_text(params_text(expand(suite, tmp_path / SUITE_FILE)))
    with pytest.raises(UserError) as raised:
        load_params(tmp_path / "params.yaml")
    said = str(raised.value).replace(f"{tmp_path}/", "").splitlines()
    assert len(said) == len(lines)
    assert all(one.startswith(line) for one, line in zip(said, lines, strict=True)), said


def test_a_sweep_in_params_yaml_is_sent_to_suite_yaml(results: Any) -> None:
    results.edit("{method: mae,", "{method: mae, sweep: {lr: [1]},")
    with pytest.raises(UserError, match=r"experiments\.mae\.sweep: unknown key; a sweep goes into"):
        results.params  # noqa: B018


def test_params_say_which_runs_belong_to_a_sweep(tmp_path: Path) -> None:
    (tmp_path / SUITE_FILE).write_text(yaml.safe_dump(SUITE, sort_keys=False))
    (tmp_path / "params.yaml").write_text(params_text(expand(SUITE, tmp_path / SUITE_FILE)))
    params = load_params(tmp_path / "params.yaml")
    assert len(params.sweeps["mae"].runs) == 12
    assert params.experiments["mae-lr0p15-epochs4"].lr == 0.15
