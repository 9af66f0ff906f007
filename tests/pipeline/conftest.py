import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.files import read_yaml
from pipeline.config.params import Params, load_params
from pipeline.tables.collect import Suite, collect

PARAMS = """
suite: tiny
title: Tiny & small
scale: reduced
tables: [table1, table5]
datasets:
  icons: {source: icons, train: 8, test: 4}
experiments:
  asl: {method: asl, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}
  mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}
linprobe:
  mae: {dataset: icons}
  asl: {dataset: icons}
finetune:
  mae: {dataset: icons}
detect: {}
segment: {}
analyze:
  asl: {dataset: icons}
"""

SEEDS = """
suite: seeds
title: Two seeds
scale: reduced
tables: [table7, alignment]
datasets:
  icons: {source: icons, train: 8, test: 4}
experiments:
  mae: &mae
    {method: mae, dataset: icons, model: vit-demo, epochs: 2, batch_size: 4, warmup_epochs: 0}
  mae-s1: {<<: *mae, seed: 1}
  aee: {<<: *mae, method: asl}
  aee-s1: {<<: *mae, method: asl, seed: 1}
  dle: {<<: *mae, method: asl, design: dle}
linprobe:
  mae: {dataset: icons}
  mae-s1: {dataset: icons}
  aee: {dataset: icons}
  aee-s1: {dataset: icons}
  dle: {dataset: icons}
finetune: {}
detect: {}
segment: {}
analyze:
  mae: {dataset: icons}
  mae-s1: {dataset: icons}
  aee: {dataset: icons}
  aee-s1: {dataset: icons}
"""


class ResultSuite:
    """A suite's folder with whatever results a test puts there; no DVC, no stage is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(PARAMS)

    @property
    def params(self) -> Params:
        return load_params(self.folder / "params.yaml")

    @property
    def suite(self) -> Suite:
        return collect(self.folder, self.params)

    def write(self, params: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "params.yaml").write_text(params)

    def edit(self, old: str, new: str) -> None:
        """Change params.yaml."""
        text = (self.folder / "params.yaml").read_text()
        assert old in text
        self.write(text.replace(old, new))

    def result(self, stage: str, key: str, **metrics: Any) -> None:
        """Leave a metrics file, as a finished stage run does."""
        path = self.folder / "runs" / stage / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fixed = {"scale": "reduced", "fingerprint": f"{stage}-{key}".ljust(64, "0")}
        path.write_text(json.dumps({**fixed, **metrics}))

    def lock(self) -> None:
        """Record every stage run of the present params.yaml in dvc.lock."""
        raw = read_yaml(self.folder / "params.yaml")
        stages = {
            f"pretrain@{key}": {
                "params": {"params.yaml": {f"experiments.{key}": recipe}},
                "outs": [{"path": f"runs/pretrain/{key}", "md5": f"weights of {key}"}],
            }
            for key, recipe in raw["experiments"].items()
        }
        for stage in ("linprobe", "finetune", "analyze"):
            stages |= {
                f"{stage}@{key}": {
                    "params": {"params.yaml": {f"{stage}.{key}": recipe}},
                    "deps": [{"path": f"runs/pretrain/{key}", "md5": f"weights of {key}"}],
                    "outs": [{"path": f"runs/{stage}/{key}", "md5": f"{stage} of {key}"}],
                }
                for key, recipe in raw[stage].items()
            }
        self.write_lock(stages)

    def write_lock(self, stages: dict[str, Any]) -> None:
        text = yaml.safe_dump({"schema": "2.0", "stages": stages})
        (self.folder / "dvc.lock").write_text(text)


@pytest.fixture
def results(tmp_path: Path) -> ResultSuite:
    """A project whose root is a suite of two experiments without results."""
    (tmp_path / ".dvc").mkdir()
    return ResultSuite(tmp_path)


@pytest.fixture
def seeds(results: ResultSuite) -> ResultSuite:
    """A suite of MAE and AEE with two seeds each, DLE with one, without results."""
    results.write(SEEDS)
    return results
