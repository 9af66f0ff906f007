"""Runs of a sweep that are hopeless are stopped, and leave nothing behind that counts."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.expand import expand, params_text
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.halving import Halver, goes_on, rungs_of
from pipeline.jobs.verdict import Verdict
from pipeline.submission.plan import Action
from pipeline.submission.submit import Outcome
from pipeline.tables.collect import read_suite
from pipeline.tables.sweep import sweep_tables

MAE = {"method": "mae", "dataset": "icons", "model": "vit-demo", "warmup_epochs": 0}
SUITE: dict[str, Any] = {
    "suite": "tiny", "title": "Tiny", "scale": "reduced",
    "datasets": {"icons": {"source": "icons", "train": 8, "test": 4}},
    "experiments": {
        "mae": {**MAE, "sweep": {"lr": [1e-3, 2e-3, 0.15], "epochs": [4, 32]}},
        "plain": MAE,
    },
}  # fmt: skip

HALVED = """
suite: tiny
title: Tiny
scale: reduced
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments:
  asl:
    {method: asl, dataset: icons, model: vit-demo, warmup_epochs: 1, sweep: {lr: [1.0e-3, 2.0e-3]}}
linprobe:
  asl: {dataset: icons, epochs: 12}
halving: {at: [0.25], keep: 0.5}
"""


@pytest.mark.parametrize(
    ("value", "others", "keep", "expected"),
    [
        (1.0, [], 0.5, True),                 # the first always
        (1.0, [2.0], 0.5, False),             # one place of two
        (2.0, [1.0], 0.5, True),
        (1.0, [1.0], 0.5, True),              # equal ones together
        (2.0, [3.0, 1.0], 0.5, True),         # two places of three
        (1.0, [3.0, 2.0], 0.5, False),
        (3.0, [4.0, 5.0, 1.0, 2.0], 0.6, True),   # three of five, though .6 * 5 > 3 in floats
        (2.0, [4.0, 5.0, 1.0, 3.0], 0.6, False),
        (1.0, [0.5], 0.01, True),             # one at least
    ],
)  # fmt: skip
def test_a_run_goes_on_in_the_best_share_of_those_so_far(
    value: float, others: list[float], keep: float, expected: bool
) -> None:
    assert goes_on(value, others, keep) is expected


@pytest.mark.parametrize(
    ("halving", "line"),
    [
        ([0.5], "halving: got [0.5], expected {at: [0.25, 0.5], keep: 0.5}"),
        ({"at": [0.5, 0.25], "keep": 0.5}, "halving.at: got [0.5, 0.25], expected shares"),
        ({"at": [0.5, 1.0], "keep": 0.5}, "halving.at: got [0.5, 1.0], expected shares"),
        ({"at": [], "keep": 0.5}, "halving.at: got [], expected shares"),
        ({"at": [0.5], "keep": 1}, "halving.keep: got 1, expected the share that goes on"),
    ],
)  # fmt: skip
def test_halving_that_is_wrong_is_one_line(halving: object, line: str) -> None:
    with pytest.raises(UserError, match=r"^suite\.yaml: ") as raised:
        expand({**SUITE, "halving": halving}, Path("suite.yaml"))
    assert line in str(raised.value)


def suite_of(tmp_path: Path, **changes: Any) -> Any:
    suite = copy.deepcopy({**SUITE, "halving": {"at": [0.25, 0.5], "keep": 0.5}, **changes})
    (tmp_path / "params.yaml").write_text(params_text(expand(suite, tmp_path / "suite.yaml")))
    return load_params(tmp_path / "params.yaml")


def test_runs_of_one_sweep_meet_at_its_rungs_and_others_elsewhere(tmp_path: Path) -> None:
    def folder(params: Any, key: str) -> Path:
        recipe = params.experiments[key]
        found = rungs_of(tmp_path, params.suite, params.sweeps, key, recipe)
        assert found is not None
        return found.folder

    params = suite_of(tmp_path)
    assert params.sweeps["mae"].halving.metric == "watch/probe_acc1_mean"
    here = folder(params, "mae-lr1e-3-epochs4")
    assert folder(params, "mae-lr0p15-epochs32") == here
    assert rungs_of(tmp_path, "tiny", params.sweeps, "plain", params.experiments["plain"]) is None
    more = copy.deepcopy(SUITE["experiments"])
    more["mae"]["sweep"]["lr"].append(0.5)
    assert (
        folder(suite_of(tmp_path, experiments=more, seeds=[0, 1]), "mae-lr0p5-epochs4-seed1")
        == here
    )
    more["mae"]["weight_decay"] = 0.2
    assert folder(suite_of(tmp_path, experiments=more), "mae-lr1e-3-epochs4") != here
    assert "halving" not in params_text(expand(SUITE, Path("suite.yaml")))


def test_what_was_decided_at_a_rung_is_decided_once(tmp_path: Path) -> None:
    params = suite_of(tmp_path)
    worse, better = "mae-lr1e-3-epochs4", "mae-lr2e-3-epochs4"

    def halver(key: str, *points: tuple[int, float]) -> Halver:
        work = JobFolder(tmp_path / "work" / key)
        work.journal.mkdir(parents=True, exist_ok=True)
        lines = [{"v": 1, "t": 0, "kind": "resume", "step": 0, "total_steps": 8}]
        for step in range(1, 7):
            lines.append({"v": 1, "t": step, "kind": "metrics", "step": step,
                          "values": {"pretrain/loss": 1.0}})  # fmt: skip
        for step, value in points:
            lines.append({"v": 1, "t": 9, "kind": "metrics", "step": step,
                          "values": {"watch/probe_acc1_mean": value}})  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (work.journal / "attempt-000.jsonl").write_text(text)
        rungs = rungs_of(tmp_path, params.suite, params.sweeps, key, params.experiments[key])
        assert rungs is not None
        return Halver(rungs, work, 10.0)

    assert halver(better, (0, 99.0), (2, 50.0), (4, 60.0)).look(0.0) is None
    mark = halver(worse, (0, 99.0), (3, 40.0), (4, 99.0)).look(0.0)
    assert mark is not None
    assert (mark.rung, mark.step, mark.value, mark.reached, mark.better) == (0.25, 3, 40.0, 2, 1)
    again = halver(worse, (3, 40.0), (4, 99.0))
    assert again.look(0.0) is None  # started again in spite of it; the best at the next rung
    assert again.look(20.0) is None


def test_a_hopeless_run_is_stopped_and_goes_on_to_the_same_result_without_halving(
    site: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.root)
    (site.root / "suite.yaml").write_text(HALVED)
    say("expand")
    worse = "asl-lr2e-3"
    site.cluster.slots = 1
    site.stub(steps=12, step_s=0.25, watched={"asl-lr1e-3": 60.0, worse: 40.0})
    site.submit("pretrain", downstream=True)
    site.run(seconds=120)
    verdicts = {name: report.verdict for name, report in site.reports().items()}
    assert verdicts["pretrain@asl-lr1e-3"] is Verdict.SUCCEEDED
    assert verdicts["linprobe@asl-lr1e-3"] is Verdict.SUCCEEDED
    assert verdicts[f"pretrain@{worse}"] is Verdict.STOPPED
    assert verdicts[f"linprobe@{worse}"] is Verdict.BLOCKED
    state = site.state(f"pretrain@{worse}")
    assert (state.exit_code, state.manifest) == (3, {})
    line = "stopped by halving at 25 % (step 3 of 12): watch/probe_acc1_mean 40, 1 of 2 had more"
    assert line in say("status", "--all")
    plan = site.plan()
    assert plan.entry(f"pretrain@{worse}").action is Action.STOPPED
    assert plan.entry(f"linprobe@{worse}").action is Action.STOPPED
    again = site.submit("pretrain", downstream=True)
    assert again[f"pretrain@{worse}"].outcome is Outcome.STOPPED
    assert again[f"linprobe@{worse}"].outcome is Outcome.STOPPED
    site.dvc("repro", "-q", "pretrain@asl-lr1e-3", PYTHONPATH=site.python_path)
    (site.root / "data").rename(site.root / "data.away")  # the stub's are none that tables read
    (table,) = sweep_tables(read_suite(site.project))
    (site.root / "data.away").rename(site.root / "data")
    assert [each.name for each in table.candidates] == ["asl-lr1e-3", worse]
    assert table.candidates[1].stopped == {worse: line}
    assert table.missing == ()
    assert any(line in note for note in table.notes)

    (site.root / "suite.yaml").write_text(HALVED.replace("halving:", "# halving:"))
    say("expand")
    assert site.submit("pretrain")[f"pretrain@{worse}"].outcome is Outcome.SUBMITTED
    site.run(seconds=120)
    assert site.state(f"pretrain@{worse}").step == 12
    records = (site.work(f"pretrain@{worse}") / "journal").glob("attempt-*.jsonl")
    lines = [line for path in sorted(records) for line in path.read_text().splitlines()]
    resumed = [json.loads(line) for line in lines]
    starts = [line["step"] for line in resumed if line["kind"] == "resume"]
    assert starts[0] == 0
    assert 3 <= starts[1] < 12  # from its checkpoint
    made = {
        key: (site.work(f"pretrain@{key}") / "out/encoder/encoder.safetensors").read_text()
        for key in ("asl-lr1e-3", worse)
    }
    assert made[worse] == made["asl-lr1e-3"]  # the stub adds up what no rate changes
