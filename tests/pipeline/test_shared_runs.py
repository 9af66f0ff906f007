"""What suites have in common, and what a suite wants that is not here."""

from pathlib import Path

import pytest

from pipeline.config.params import load_params
from pipeline.execution.wanted import wanted_files
from pipeline.project import Project
from pipeline.submission.shared import shared_runs

ROOT = Path(__file__).parents[2]

SUITE = """
suite: {name}
title: A suite
scale: {scale}
tables: []
datasets:
  icons: {{source: icons, train: {train}, test: 8}}
experiments:
  mae: {{method: mae, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}}
  other:
    {{method: mae, dataset: icons, model: vit-demo, epochs: {epochs}, batch_size: 4,
     warmup_epochs: 0}}
linprobe:
  mae: {{dataset: icons, epochs: 1, batch_size: 8, warmup_epochs: 0}}
  other: {{dataset: icons, epochs: 1, batch_size: 8, warmup_epochs: 0}}
"""


def write(
    root: Path, name: str, *, scale: str = "reduced", train: int = 24, epochs: int = 2
) -> None:
    folder = root if name == "demo" else root / "suites" / name
    folder.mkdir(parents=True, exist_ok=True)
    text = SUITE.format(name=name, scale=scale, train=train, epochs=epochs)
    (folder / "params.yaml").write_text(text)


def test_runs_are_shared_that_have_equal_parameters_all_the_way_down(tmp_path: Path) -> None:
    write(tmp_path, "demo")
    write(tmp_path, "alike", epochs=3)
    write(tmp_path, "paper", scale="paper")
    write(tmp_path, "larger", train=30)
    write(tmp_path, "broken")
    (tmp_path / "suites/broken/params.yaml").write_text("suite: [")
    shared = shared_runs(Project(tmp_path, tmp_path))
    assert shared == {
        "alike": ("prepare@icons", "pretrain@mae", "linprobe@mae"),
        "paper": ("prepare@icons",),  # the scale is in a metrics file
    }


def test_table_3_takes_the_encoders_of_table_2() -> None:
    shared = shared_runs(Project(ROOT, ROOT / "suites/table3"))
    encoders = {"pretrain@asl", "pretrain@asl-4000", "pretrain@untrained", "prepare@in100-coco"}
    assert encoders <= set(shared["table2"])
    assert "pretrain@asl-4000" in shared["table4"]
    assert "pretrain@mae" in shared["table5"]
    small = shared_runs(Project(ROOT, ROOT / "suites/table6-mini"))
    assert {"pretrain@mae", "linprobe@aee-seed2"} <= set(small["table7-mini"])


def test_what_a_suite_wants_is_said_once_with_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASL_DATA", str(tmp_path))
    suite = ROOT / "suites/calibration"
    found = {
        each.where: each
        for each in wanted_files(Project(ROOT, suite), load_params(suite / "params.yaml"))
    }
    weights = found["encoders/mae-vit-b"]
    assert weights.readers == ("pretrain@mae", "pretrain@mae-50", "pretrain@mae-25")
    assert weights.how.startswith("asl-pipe import-encoder --published mae-vit-b (fetches https://")
    assert weights.how.endswith("mae_pretrain_vit_base.pth, md5:8cad7c...; CC BY-NC 4.0)")
    assert found[str(tmp_path / "imagenet")].readers == ("prepare@imagenet",)
    (tmp_path / "imagenet").mkdir()
    now = {
        each.where
        for each in wanted_files(Project(ROOT, suite), load_params(suite / "params.yaml"))
    }
    assert now == set(found) - {str(tmp_path / "imagenet")}
