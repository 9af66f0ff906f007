"""Seeds are written once and become experiments."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import cli
from pipeline.config.expand import SUITE_FILE, expand, expansion_of, params_text
from pipeline.config.params import load_params
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]

SUITE: dict[str, Any] = {
    "suite": "tiny", "title": "Tiny", "scale": "reduced", "tables": [],
    "seeds": [0, 3],
    "datasets": {"icons": {"source": "icons", "train": 8, "test": 4}},
    "experiments": {
        "mae": {"method": "mae", "dataset": "icons", "model": "vit-demo", "epochs": 40},
        "asl": {"method": "asl", "dataset": "icons", "model": "vit-demo", "epochs": 40,
                "seeds": [5]},
        "fixed": {"method": "mae", "dataset": "icons", "model": "vit-demo", "epochs": 40,
                  "seed": 9},
    },
    "linprobe": {"mae": {"dataset": "icons", "seed": 2}, "fixed": {"dataset": "icons"}},
    "finetune": {}, "detect": {}, "segment": {}, "analyze": {"asl": {"dataset": "icons"}},
}  # fmt: skip


def test_each_seed_is_an_experiment_with_the_entries_of_its_own() -> None:
    expanded = expand(SUITE, Path("suite.yaml"))
    seeds = {key: item.get("seed", 0) for key, item in expanded["experiments"].items()}
    assert seeds == {"mae": 0, "mae-seed3": 3, "asl": 5, "fixed": 9}
    assert "seeds" not in expanded
    assert all("seeds" not in item for item in expanded["experiments"].values())
    assert list(expanded["linprobe"]) == ["mae", "mae-seed3", "fixed"]
    assert expanded["linprobe"]["mae-seed3"] == {"dataset": "icons", "seed": 2}
    assert list(expanded["analyze"]) == ["asl"]


def test_a_seed_that_is_added_leaves_the_others_as_they_were() -> None:
    before = expand(SUITE, Path("suite.yaml"))["experiments"]
    after = expand({**SUITE, "seeds": [0, 3, 4]}, Path("suite.yaml"))["experiments"]
    assert {key: after[key] for key in before} == before
    assert after["mae-seed4"]["seed"] == 4


def test_an_untrained_encoder_has_the_seeds_that_the_others_have() -> None:
    none = {"method": "untrained", "dataset": "icons", "model": "vit-demo"}
    suite = {**SUITE, "experiments": {**SUITE["experiments"], "none": none}}
    suite["linprobe"] = {**SUITE["linprobe"], "none": {"dataset": "icons"}}
    expanded = expand(suite, Path("suite.yaml"))
    assert expanded["experiments"]["none"] == none
    assert expanded["experiments"]["none-seed3"] == {**none, "seed": 3}
    assert {"none", "none-seed3"} <= expanded["linprobe"].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 0]}, r"seeds: got \[0, 0\], expected different whole numbers"),
        ({"seeds": "0 1"}, "seeds: got '0 1'"),
        ({"seeds": [True]}, "seeds: got"),
        ({"seeds": []}, "seeds: got"),
        ({"experiments": {"a": {"seed": 1, "seeds": [1]}}}, "experiments.a: has both"),
        (
            {"experiments": {"a": {"method": "imported", "seeds": [1]}}},
            "a.seeds: an imported encoder is not train",
        ),
        ({"experiments": {"a": {}, "a-seed3": {}}}, "would create a-seed3, which exists already"),
    ],
)
def test_what_cannot_be_expanded_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand({**SUITE, **change}, Path("suite.yaml"))


def test_params_that_are_not_what_the_suite_says_are_refused_until_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / SUITE_FILE).write_text(yaml.safe_dump(SUITE))
    (tmp_path / "params.yaml").write_text("suite: tiny\n")
    with pytest.raises(UserError, match=r"params\.yaml does not match the suite\.yaml beside it"):
        load_params(tmp_path / "params.yaml")
    assert cli.run_command(["expand"]) == 0
    assert "params.yaml (4 experiments)" in capsys.readouterr().out
    assert set(load_params(tmp_path / "params.yaml").linprobe) == {"mae", "mae-seed3", "fixed"}
    assert cli.run_command(["expand"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_an_experiment_of_dvc_may_have_other_values_than_the_suite(tmp_path: Path) -> None:
    (tmp_path / SUITE_FILE).write_text(yaml.safe_dump(SUITE))
    expanded = expand(SUITE, tmp_path / SUITE_FILE)
    expanded["experiments"]["mae"]["lr"] = 0.5
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(expanded))
    with pytest.raises(UserError, match=r"change what is meant in suite\.yaml, then"):
        load_params(tmp_path / "params.yaml", environment={})
    params = load_params(tmp_path / "params.yaml", environment={"DVC_EXP_NAME": "lower"})
    assert params.experiments["mae"].lr == 0.5  # pyright: ignore[reportAttributeAccessIssue]


def test_a_suite_begins_as_a_suite_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc").mkdir()
    folder = tmp_path / "suites/new"
    folder.mkdir(parents=True)
    (folder / SUITE_FILE).write_text(yaml.safe_dump(SUITE))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="asl-pipe expand new writes"):
        load_params(folder / "params.yaml")
    assert cli.run_command(["expand", "new"]) == 0
    assert len(load_params(folder / "params.yaml").experiments) == 4


@pytest.mark.parametrize("folder", sorted(ROOT.glob("suites/*")), ids=lambda path: path.name)
def test_params_of_every_suite_are_what_its_seeds_say(folder: Path) -> None:
    expanded = expansion_of(folder)
    if expanded is not None:
        assert read_yaml(folder / "params.yaml") == expanded
        assert (folder / "params.yaml").read_text() == params_text(expanded)
