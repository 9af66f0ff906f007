import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_scheduler import HERE as SERVICES
from fake_scheduler import FakeCluster

from asl_core.data.manifest import Manifest
from pipeline.cli import run_command
from pipeline.config.params import Params, load_params
from pipeline.config.yaml_files import read_yaml
from pipeline.jobs.state import JobState
from pipeline.jobs.verdict import Patience, Verdict
from pipeline.project import Project, find_project
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.git import Git
from pipeline.submission.job_reports import JobReport, job_reports
from pipeline.submission.plan import Plan, SubmissionServices, make_plan
from pipeline.submission.selection import Wanted
from pipeline.submission.submit import Submitted, submit
from pipeline.tables.collect import Suite, collect

ROOT = Path(__file__).parents[2]

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
        self.measured_on: dict[str, int] = {}
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

    def on_the_papers_data(self) -> None:
        """Call the data by the names of the paper's: results are then as if measured on ImageNet.

        Pre-training on COCO, as for Tables 1 and 7; before any result.
        """
        before, transfer = (self.folder / "params.yaml").read_text().split("linprobe:", 1)
        suite, experiments = before.split("  icons: {", 1)
        experiments = experiments.replace("dataset: icons", "dataset: coco")
        suite += "  coco: {source: icons, train: 8, test: 4}\n  imagenet: {"
        transfer = transfer.replace("dataset: icons", "dataset: imagenet")
        self.write(f"{suite}{experiments}linprobe:{transfer}")
        self.measured_on = {"test_images": 50_000}

    def result(self, stage: str, key: str, **metrics: Any) -> None:
        """Leave a metrics file, as a finished stage run does, recorded if the others are."""
        path = self.folder / "runs" / stage / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fixed = {"scale": "reduced", "fingerprint": f"{stage}-{key}".ljust(64, "0")}
        path.write_text(json.dumps({**fixed, **self.measured_on, **metrics}))
        if (self.folder / "dvc.lock").exists():
            stages = read_yaml(self.folder / "dvc.lock")["stages"]
            outs = stages.get(f"{stage}@{key}", {}).get("outs", [])
            outs[:] = [out for out in outs if out["path"] != f"runs/{stage}/{key}.json"]
            outs += self.recorded(stage, key)
            self.write_lock(stages)

    def prepared(self, name: str, classes: int) -> None:
        """Leave the manifest of a dataset with so many classes."""
        folder = self.folder / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"train": 8, "test": 4}
        Manifest(
            name=name, source={}, licence="", classes=tuple(map(str, range(classes))),
            thing_classes=None, semantic_classes=None, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
            counts=counts, annotated=counts, digests={"train": "a" * 64, "test": "b" * 64},
            rejected={"train": [], "test": []},
        ).write(folder)  # fmt: skip

    def lock(self) -> None:
        """Record every stage run of the present params.yaml, and its metrics file, in dvc.lock."""
        raw = read_yaml(self.folder / "params.yaml")
        stages = {
            f"pretrain@{key}": {
                "params": {"params.yaml": {f"experiments.{key}": recipe}},
                "outs": [
                    {"path": f"runs/encoder/{key}", "md5": f"weights of {key}"},
                    *self.recorded("pretrain", key),
                ],
            }
            for key, recipe in raw["experiments"].items()
        }
        for stage in ("linprobe", "finetune", "analyze"):
            stages |= {
                f"{stage}@{key}": {
                    "params": {"params.yaml": {f"{stage}.{key}": recipe}},
                    "deps": [{"path": f"runs/encoder/{key}", "md5": f"weights of {key}"}],
                    "outs": [
                        {"path": f"runs/{stage}/{key}", "md5": f"{stage} of {key}"},
                        *self.recorded(stage, key),
                    ],
                }
                for key, recipe in raw[stage].items()
            }
        self.write_lock(stages)

    def recorded(self, stage: str, key: str) -> list[dict[str, str]]:
        """Return what dvc.lock has for a metrics file; nothing where there is none."""
        path = f"runs/{stage}/{key}.json"
        file = self.folder / path
        if not file.exists():
            return []
        return [{"path": path, "md5": hashlib.md5(file.read_bytes()).hexdigest()}]

    def write_lock(self, stages: dict[str, Any]) -> None:
        text = yaml.safe_dump({"schema": "2.0", "stages": stages})
        (self.folder / "dvc.lock").write_text(text)


@pytest.fixture(scope="session")
def new_suite() -> type[ResultSuite]:
    """Makes a suite's folder, for fixtures that several tests share."""
    return ResultSuite


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


IMPATIENT = Patience(submitted_s=1.5, silence_s=1.0, settling_s=1.0)


class Site:
    """A project whose stages are stubs, and a cluster that runs its jobs."""

    def __init__(self, root: Path, call: Any) -> None:
        self.root, self._call = root, call
        self.cluster = FakeCluster(root.parent / "cluster")
        self.cache = DvcCache()
        self.patience = IMPATIENT
        self.edit("cluster.yaml", "scheduler: slurm", "scheduler: fake_scheduler:fake")
        self.edit("cluster.yaml", "\nslurm:", "\nfake:")

    @property
    def project(self) -> Project:
        return find_project(self.root)

    @property
    def services(self) -> SubmissionServices:
        return SubmissionServices(self.cache, self.cluster, Git(), self.patience)

    def stub(self, **orders: Any) -> None:
        """Say what stages do from now on, see stub_stages.py."""
        self.cluster.environment["STUB"] = json.dumps(orders)

    def ask(self, **settings: dict[str, Any]) -> None:
        """Say what the jobs of stages, or those of `default`, ask for."""
        text = yaml.safe_dump({"scheduler": "fake_scheduler:fake", "fake": settings})
        (self.root / "cluster.yaml").write_text(text)

    @property
    def python_path(self) -> str:
        """Where a command finds the project's own code, and the scheduler."""
        return os.pathsep.join([str(self.root), SERVICES])

    def edit(self, path: str, old: str, new: str) -> None:
        """Change a file of the project."""
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    def plan(self, stage: str | None = None, *names: str, **wanted: Any) -> Plan:
        return make_plan(self.project, Wanted(stage, names, **wanted), self.services)

    def submit(self, stage: str | None = None, *names: str, **wanted: Any) -> dict[str, Submitted]:
        """Submit and return what became of each run, by its name."""
        done = submit(self.plan(stage, *names, **wanted), self.services)
        return {each.name: each for each in done}

    def reports(self) -> dict[str, JobReport]:
        """Return the newest job of each run, by its name."""
        found = job_reports(self.root, self.cluster, self.cache, patience=self.patience)
        return {report.job.name: report for report in found}

    def verdict(self, name: str) -> Verdict:
        return self.reports()[name].verdict

    def state(self, name: str) -> JobState:
        state = self.reports()[name].state
        assert state is not None
        return state

    def run(self, **options: Any) -> None:
        """Let the cluster work until nothing is left to do."""
        self.cluster.run(**options)

    def run_until_step(self, name: str, step: int) -> str:
        """Let the cluster work until a run has done so many steps; return its job's id."""

        def far_enough() -> bool:
            files = (self.root / ".asl/jobs").glob("*/journal/attempt-*.jsonl")
            lines = [line for file in files for line in file.read_text().splitlines()]
            return any(f'"step": {step},' in line for line in lines)

        self.cluster.run(until=far_enough)
        job_id = self.reports()[name].job_id
        assert job_id is not None
        return job_id

    def dvc(self, *arguments: str, code: int = 0, **environment: str) -> str:
        done = self._call("dvc", *arguments, cwd=self.root, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def encoder(self) -> str:
        """Return what `dvc repro` puts into the workspace; nothing may run for it."""
        said = self.dvc("repro", "pretrain@asl")
        assert "Stage 'pretrain@asl' is cached - skipping run" in said
        assert "Running stage" not in said.replace("Running stage 'code'", "")
        return (self.root / "runs/encoder/asl/encoder.safetensors").read_text()

    def work(self, name: str) -> Path:
        """Return the folder in which a run works."""
        state = self.state(name)
        return self.root / ".asl/jobs" / str(state.fingerprint)


@pytest.fixture
def site(stub_project: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Return a project with stub stages and a cluster; what it still runs ends with the test."""
    monkeypatch.setenv("PYTHONPATH", SERVICES, prepend=os.pathsep)
    made = Site(stub_project, call)
    yield made
    made.cluster.close()


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line and return what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        capfd.readouterr()
        found = run_command(list(arguments))
        out, err = capfd.readouterr()
        assert found == code, out + err
        return out + err

    return run
