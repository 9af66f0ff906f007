"""Experiments that begin with weights: checks, dvc.yaml, DVC's order and jobs that wait."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.dag import dag_text
from pipeline.config.expand import expand
from pipeline.config.params import load_params
from pipeline.config.starts import by_run, chain
from pipeline.errors import UserError
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.suite_project import write_suite_project
from pipeline.submission.shared import signatures
from pipeline.submission.submit import Outcome
from pipeline.tables.lock import read_lock

DIGEST = "a" * 64
ENTRY = {"method": "mae", "dataset": "icons", "model": "vit-demo"}


def suite(folder: Path, **starts: dict[str, Any] | None) -> Path:
    """Write params.yaml with an experiment for each name."""
    experiments = {
        name: {**ENTRY, **({} if start is None else {"initialise": start})}
        for name, start in starts.items()
    }
    content: dict[str, Any] = {
        "suite": "tiny", "title": "Tiny", "scale": "reduced", "tables": [],
        "datasets": {"icons": {"source": "icons", "train": 8, "test": 4}},
        "experiments": experiments,
    }  # fmt: skip
    path = folder / "params.yaml"
    path.write_text(yaml.dump(content, sort_keys=False))
    return path


def refusals(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_params(path)
    return str(caught.value)


BAD: dict[str, tuple[dict[str, dict[str, Any] | None], str]] = {
    "itself": ({"a": {"experiment": "a"}}, "a.initialise.experiment: cannot begin with what"),
    "unknown": (
        {"a": None, "b": {"experiment": "aa"}},
        "b.initialise.experiment: unknown experiment 'aa'; did you mean 'a'?",
    ),
    "circle": (
        {"a": {"experiment": "c"}, "b": {"experiment": "a"}, "c": {"experiment": "b"}},
        "a.initialise.experiment: goes round in a circle: a from c from b from a; break it",
    ),
    "both": ({"a": {"path": "x", "experiment": "a"}}, "name either a path or an experiment"),
    "no digest": ({"a": {"path": "x"}}, "sha256 must be 64 hexadecimal digits, got None"),
    "key": (
        {"a": {"experimnt": "b"}},
        "a.initialise.experimnt: unknown key; did you mean 'experiment'?",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    starts, said = BAD[case]
    found = refusals(suite(tmp_path, **starts))
    assert said in found
    assert any(said in line for line in found.splitlines())


@pytest.mark.parametrize(
    ("changes", "start", "said"),
    [
        ({"model": "vit-demo-4"}, {"experiment": "a"}, "a has patch_size 16, this experiment 4"),
        ({"method": "asl"}, {"experiment": "a", "whole": True}, "got mae of a, expected asl"),
        ({"method": "beit", "tokenizer": "kmeans"}, {"experiment": "a"}, "factors of LayerScale"),
    ],
)
def test_encoders_that_do_not_fit_are_refused_before_any_run(
    changes: dict[str, Any], start: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = suite(tmp_path, a=None, b=start)
    content = yaml.safe_load(path.read_text())
    content["experiments"]["b"] |= changes
    path.write_text(yaml.dump(content, sort_keys=False))
    assert said in refusals(path)


def test_a_chain_is_valid(tmp_path: Path) -> None:
    path = suite(tmp_path, c={"experiment": "b"}, b={"experiment": "a", "whole": True}, a=None)
    assert load_params(path).experiments["b"].initialise.whole
    assert chain({"c": "b", "b": "a"}, "c") == ["c", "b", "a"]


def test_seeds_begin_with_weights_of_their_own_seed() -> None:
    content = {
        "seeds": [0, 1],
        "experiments": {
            "b": {**ENTRY, "initialise": {"experiment": "a"}},
            "a": ENTRY,
            "one": {**ENTRY, "seed": 3},
            "c": {**ENTRY, "initialise": {"experiment": "one"}},
        },
    }
    found = expand(content, Path("suite.yaml"))["experiments"]
    sources = {key: item["initialise"]["experiment"] for key, item in found.items()
               if "initialise" in item}  # fmt: skip
    assert sources == {"b": "a", "b-seed1": "a-seed1", "c": "one", "c-seed1": "one"}


def test_dvc_yaml_is_what_it_was_where_nothing_begins_with_another(tmp_path: Path) -> None:
    path = suite(tmp_path, a=None, b={"path": "x", "sha256": DIGEST})
    params = yaml.safe_load(path.read_text())
    assert dag_text(["asl_core"], reads_disk=False, params=params) == dag_text(
        ["asl_core"], reads_disk=False
    )


def test_of_two_entries_of_a_run_the_one_of_its_present_kind_counts() -> None:
    recorded = {"pretrain@a": 1, "pretrain-from@a": 2, "pretrain@b": 3, "pretrain-from@b": 4}
    raw = {"experiments": {"a": {"initialise": {"experiment": "b"}}, "b": {}}}
    assert by_run(recorded, raw) == {"pretrain@a": 2, "pretrain@b": 3}


def test_runs_that_begin_with_different_ones_are_not_shared(tmp_path: Path) -> None:
    first, second = tmp_path / "x", tmp_path / "y"
    for folder in (first, second):
        folder.mkdir()
    one = suite(first, b={"experiment": "a"}, a=None)
    other = suite(second, b={"experiment": "a"}, a=None)
    assert signatures(one) == signatures(other)
    content = yaml.safe_load(other.read_text())
    content["experiments"]["a"]["epochs"] = 7
    other.write_text(yaml.dump(content, sort_keys=False))
    assert signatures(one)["pretrain@b"] != signatures(other)["pretrain@b"]


@pytest.fixture
def chained(site: Any) -> Any:
    """Let `asl` begin with `first`, of which it is written above."""
    path = site.root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    asl = content["experiments"]["asl"]
    content["experiments"] = {
        "asl": {**asl, "initialise": {"experiment": "first"}}, "first": asl,
    }  # fmt: skip
    path.write_text(yaml.dump(content, sort_keys=False))
    write_suite_project(site.root, site.root)
    return site


CHAIN = ["prepare@icons", "pretrain@first", "pretrain@asl", "linprobe@asl"]


def test_a_job_waits_for_the_one_whose_weights_it_begins_with(chained: Any) -> None:
    chained.stub(steps=3)
    plan = chained.plan()
    assert [entry.name for entry in plan.entries] == CHAIN
    assert plan.entry("pretrain@asl").needs == ("prepare@icons", "pretrain@first")
    done = chained.submit()
    assert {name: each.outcome for name, each in done.items()} == dict.fromkeys(
        CHAIN, Outcome.SUBMITTED
    )
    assert [job["after"] for job in chained.cluster.all()] == [[], ["1"], ["1", "2"], ["1", "3"]]
    chained.run()
    said = chained.dvc("repro", "linprobe@asl")
    assert said.count("is cached - skipping run") == 4
    assert "up to date" in chained.dvc("status", "pretrain-from@asl")
    identity = chained.cache.identify(chained.root, "pretrain@asl")
    assert "runs/encoder/first" in identity.inputs
    metrics = json.loads((chained.root / "runs/pretrain/asl.json").read_text())
    assert metrics["fingerprint"] == identity.fingerprint
    lock = read_lock(chained.root)
    assert lock.state("pretrain@asl") == "current"
    assert "runs/encoder/first" in lock.inputs("pretrain@asl")


def test_finished_jobs_of_a_chain_are_adopted(
    chained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chained.root)
    chained.stub(steps=3)
    chained.submit()
    chained.run()
    assert sorted(DvcCache().adopt(chained.root, CHAIN)) == sorted(CHAIN)
    recorded = yaml.safe_load((chained.root / "dvc.lock").read_text())["stages"]
    assert {"pretrain@first", "pretrain-from@asl"} <= recorded.keys()


def test_dvc_yaml_of_other_params_is_refused(chained: Any) -> None:
    path = chained.root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    del content["experiments"]["asl"]["initialise"]
    path.write_text(yaml.dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"does not have asl where .* run asl-pipe expand"):
        DvcCache().identify(chained.root, "pretrain@asl")


def test_weights_of_a_file_go_with_a_job(site: Any) -> None:
    path = site.root / "params.yaml"
    content = yaml.safe_load(path.read_text())
    start = {"path": "given/x.pth", "sha256": DIGEST}
    content["experiments"]["asl"]["initialise"] = start
    path.write_text(yaml.dump(content, sort_keys=False))
    site.stub(steps=3)
    with pytest.raises(UserError, match=r"pretrain@asl needs .*given/x\.pth, which does not exist"):
        site.submit("pretrain")
    (site.root / "given").mkdir()
    (site.root / "given/x.pth").write_text("weights")
    site.submit("pretrain")
    site.run()
    assert site.state("pretrain@asl").exit_code == 0
