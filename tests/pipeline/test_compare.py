"""Two experiments side by side. `results` and `seeds` are folders of suites, from conftest."""

from typing import Any

import pytest

from pipeline.cli import run_command
from pipeline.errors import UserError
from pipeline.tables.compare import compare


def test_settings_that_differ_and_differences_of_numbers(seeds: Any) -> None:
    seeds.result("pretrain", "aee", **{"pretrain/loss": 0.75, "pretrain/loss_sem": 0.1})
    seeds.result("pretrain", "aee-s1", **{"pretrain/loss": 0.5})
    suite = seeds.suite
    found = compare((suite, "aee"), (suite, "aee-s1"))
    settings = {(each.stage, each.setting): each.values for each in found.differences}
    assert settings["pretrain", "seed"] == ("0", "1")
    assert {stage for stage, _ in settings} == {"pretrain"}
    pairs = {pair.metric: pair for pair in found.pairs}
    assert pairs["pretrain/loss"].difference == -0.25
    assert pairs["pretrain/loss_sem"].values == (0.1, None)
    assert pairs["pretrain/loss_sem"].difference is None


def test_a_field_of_one_method_alone_is_a_difference(results: Any) -> None:
    suite = results.suite
    found = compare((suite, "mae"), (suite, "asl"))
    settings = {each.setting: each.values for each in found.differences}
    assert settings["method"] == ("mae", "asl")
    assert settings["sem_weight"] == ("-", "1.0")


def test_a_stage_that_only_one_side_has_is_said(results: Any) -> None:
    suite = results.suite
    states = compare((suite, "mae"), (suite, "asl")).states
    assert states["finetune"] == ("missing", "-")
    assert states["analyze"] == ("-", "missing")


def test_experiments_of_two_suites(
    results: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.result("linprobe", "mae", lp_acc1=50.25)
    results.result("linprobe", "asl", lp_acc1=48.0)
    results.lock()
    other = results.folder / "suites/other"
    other.mkdir(parents=True)
    params = (results.folder / "params.yaml").read_text()
    (other / "params.yaml").write_text(params)
    monkeypatch.chdir(results.folder)
    assert run_command(["compare", "mae", "asl"]) == 0
    assert "-2.25" in capsys.readouterr().out
    assert run_command(["compare", "mae", "other/mae"]) == 0
    assert "all settings are equal" in capsys.readouterr().out
    (other / "params.yaml").write_text(params.replace("scale: reduced", "scale: paper"))
    assert run_command(["compare", "mae", "other/mae"]) == 0
    assert ["suite", "scale", "reduced", "paper"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_an_unknown_experiment_is_said_with_the_nearest(results: Any) -> None:
    suite = results.suite
    with pytest.raises(UserError, match="did you mean 'mae'"):
        compare((suite, "mea"), (suite, "asl"))
