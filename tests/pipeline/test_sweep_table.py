"""A sweep's runs side by side, and what is picked of them. `results` is a suite's folder."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.expand import expand, params_text
from pipeline.config.suite_text import with_sweep
from pipeline.config.yaml_files import read_yaml
from pipeline.stages.report import write_report
from pipeline.submission.plan import Action
from pipeline.tables.sweep import difference, sweep_tables
from pipeline.tables.sweep_formats import csv_text, json_text, markdown

SUITE = """\
# Which rate?
suite: tiny
title: Tiny
scale: reduced
seeds: [0, 1]
datasets:
  icons: {source: icons, train: 8, test: 4}

experiments:
  mae: &mae        # the one that counts
    method: mae
    dataset: icons
    model: vit-demo
    epochs: 2
    batch_size: 4
    warmup_epochs: 0
    sweep: {lr: [1.0e-3, 2.0e-3, 4.0e-3]}   # by hand
  asl: {<<: *mae, method: asl}
  untrained: {method: untrained, dataset: icons, model: vit-demo}

linprobe:
  mae: &lp {dataset: icons, grid_rates: [0.1, 0.2], held_out: 0.25}
  asl: *lp
  untrained: *lp
finetune: {}
analyze: {}
"""
HELD_OUT = {"1e-3": (50.0, 54.0), "2e-3": (60.0, 61.0), "4e-3": (55.0, 55.0)}
ON_TEST = {"1e-3": 90.0, "2e-3": 10.0, "4e-3": 50.0}


def write(results: Any, text: str = SUITE) -> None:
    path = results.folder / "suite.yaml"
    path.write_bytes(text.encode())
    results.write(params_text(expand(read_yaml(path), path)))


@pytest.fixture
def swept(results: Any) -> Any:
    """Return a suite with a sweep of three rates and two seeds for each of two methods."""
    write(results)
    results.prepared("icons", 10)
    for rate, numbers in HELD_OUT.items():
        for method in ("mae", "asl"):
            for seed, number in zip(("", "-seed1"), numbers, strict=True):
                key = f"{method}-lr{rate}{seed}"
                results.result("pretrain", key, **{"pretrain/loss": 1.0})
                results.result("linprobe", key, lp_acc1=ON_TEST[rate], lp_held_out_acc1=number)
    for key in ("untrained", "untrained-seed1"):
        results.result("pretrain", key)
        results.result("linprobe", key, lp_acc1=9.0, lp_held_out_acc1=20.0 + 2 * ("1" in key))
    results.lock()
    return results


def test_runs_are_ranked_by_what_was_held_out_and_not_by_test_images(swept: Any) -> None:
    table = sweep_tables(swept.suite, "mae")[0]
    assert [each.name for each in table.candidates] == ["mae-lr2e-3", "mae-lr4e-3", "mae-lr1e-3"]
    best, second, last = table.candidates
    assert (best.value, second.value, last.value) == (60.5, 55.0, 52.0)
    assert best.error == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert second.error == 0.0
    assert last.error == pytest.approx(math.sqrt(8) / math.sqrt(2))
    assert [each.floor for each in table.candidates] == [21.0] * 3
    assert difference(best, last) == (8.5, pytest.approx(math.hypot(0.5, 2.0)))
    assert "no test image has part in the order" in table.notes[0]
    assert "(about 2 images)" in table.notes[0]  # a quarter of 8


def test_of_a_single_run_the_error_is_that_of_the_images(results: Any) -> None:
    write(results, SUITE.replace("seeds: [0, 1]\n", "").replace("grid_rates: [0.1, 0.2], ", ""))
    watched = {"watch/probe_acc1_mean": 36.0, "watch/probe_acc1_mean_untrained": 30.0,
               "watch/query_images": 144.0}  # fmt: skip
    results.result("pretrain", "mae-lr1e-3", **watched)
    table = sweep_tables(results.suite, "mae")[0]
    assert table.metric.name == "watch/probe_acc1_mean"
    assert table.candidates[0].error == pytest.approx(100 * math.sqrt(0.36 * 0.64 / 144))
    assert table.candidates[0].floor == 30.0
    assert [run.key for run in table.missing] == ["mae-lr2e-3", "mae-lr4e-3"]


def test_all_formats_have_the_same_numbers(swept: Any) -> None:
    tables = sweep_tables(swept.suite)
    assert [table.experiment for table in tables] == ["mae", "asl"]
    rows = list(csv.DictReader(io.StringIO(csv_text(tables))))
    assert [(row["run"], row["rank"], row["lr"]) for row in rows[:3]] == [
        ("mae-lr2e-3", "1", "0.002"), ("mae-lr4e-3", "2", "0.004"), ("mae-lr1e-3", "3", "0.001"),
    ]  # fmt: skip
    content = json.loads(json_text(tables))
    assert [run["value"] for run in content[0]["runs"]] == [60.5, 55.0, 52.0]
    assert content[0]["runs"][0]["experiments"] == ["mae-lr2e-3", "mae-lr2e-3-seed1"]
    assert "| 1 | mae-lr2e-3 | 0.002 | 2 | 60.50 | 0.50 | 21.00 |" in markdown(tables)


def test_the_report_has_the_table_and_a_chart_of_each_varied_value(
    swept: Any, tmp_path: Path
) -> None:
    write_report(swept.folder, swept.params, tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    assert 'id="sweeps"' in page
    assert page.count('aria-label="lp_held_out_acc1 of mae by lr"') == 1
    assert page.count('<th scope="row">mae-lr4e-3</th>') == 1
    assert "## Sweep of asl" in (tmp_path / "out/tables.md").read_text()


def test_a_report_without_a_sweep_has_no_section_of_it(results: Any, tmp_path: Path) -> None:
    write_report(results.folder, results.params, tmp_path / "out")
    assert "sweep" not in (tmp_path / "out/index.html").read_text().lower()
    assert "Sweep" not in (tmp_path / "out/tables.md").read_text()


def test_the_command_prints_the_best_first_and_what_is_missing(
    swept: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.folder)
    said = say("sweep", "mae").splitlines()
    rows = [line.split() for line in said if line.lstrip().startswith(("1 ", "2 ", "3 "))]
    assert rows[0][:6] == ["1", "mae-lr2e-3", "0.002", "2", "60.50", "0.50"]
    (swept.folder / "runs/linprobe/mae-lr4e-3-seed1.json").unlink()
    said = say("sweep", "mae")
    assert (
        "missing: linprobe@mae-lr4e-3-seed1, made by `dvc repro linprobe@mae-lr4e-3-seed1`" in said
    )
    assert "unknown sweep 'mea'; did you mean 'mae'?" in say("sweep", "demo", "mea", code=2)
    (swept.folder / "runs/linprobe/mae-lr1e-3.json").write_text('{"lp_held_out_acc1": 99.0}')
    assert "differs from dvc.lock" in say("sweep", "mae", code=1)


# --- pick


def test_what_is_picked_is_written_with_its_reason_and_keeps_its_runs(
    swept: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.folder)
    before = read_yaml(swept.folder / "params.yaml")
    say("pick", "asl")
    said = say("pick", "demo", "mae")
    assert "written: suite.yaml" in said
    assert "params.yaml (6 experiments)" in said
    text = (swept.folder / "suite.yaml").read_text()
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("# ")]
    expected = [line for line in SUITE.splitlines() if not line.startswith("# ")]
    expected[expected.index("    sweep: {lr: [1.0e-3, 2.0e-3, 4.0e-3]}   # by hand")] = (
        "    sweep: {lr: [0.002]}   # by hand"
    )
    expected[expected.index("  asl: {<<: *mae, method: asl}")] = (
        "  asl: {<<: *mae, method: asl, sweep: {lr: [0.002]}}"
    )
    assert kept == expected
    reason = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("    # "))
    assert "mae-lr2e-3 by lp_held_out_acc1 of linprobe (training images held out), 60.50" in reason
    assert "the best of 3 combinations, 6 runs; 5.50 above mae-lr4e-3" in reason
    assert "standard error of the difference 0.50. An untrained encoder has 21.00." in reason
    assert "mae-lr2e-3 60.50 (pretrain pretrain)" in reason
    assert "Before: {lr: [0.001, 0.002, 0.004]}" in reason
    after = read_yaml(swept.folder / "params.yaml")
    for section in ("experiments", "linprobe"):
        assert {"mae-lr2e-3", "mae-lr2e-3-seed1", "asl-lr2e-3", "asl-lr2e-3-seed1", "untrained",
                "untrained-seed1"} == after[section].keys()  # fmt: skip
        assert all(before[section][name] == item for name, item in after[section].items())
    states = {run.state for run in swept.suite.results.values()}
    assert states == {"current"}  # dvc.lock, which nobody has touched, still stands behind all
    assert "nothing is left to choose" in say("pick", "mae", code=2)


def test_a_dry_run_shows_the_change_and_writes_nothing(
    swept: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.folder)
    said = say("pick", "asl", "--dry-run")
    assert "+  asl: {<<: *mae, method: asl, sweep: {lr: [0.002]}}" in said
    assert "-  asl: {<<: *mae, method: asl}" in said
    assert (swept.folder / "suite.yaml").read_text() == SUITE


def test_a_choice_that_cannot_be_made_is_refused_in_one_line(
    swept: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.folder)
    said = say("pick", "mae", code=2)
    assert "asl would change too: the sweep is taken from mae; pick asl first" in said
    assert len(said.splitlines()) == 1
    gone = swept.folder / "runs/linprobe/asl-lr2e-3-seed1.json"
    content = gone.read_bytes()
    gone.unlink()
    said = say("pick", "asl", code=2)
    assert "1 of 6 runs are missing: linprobe@asl-lr2e-3-seed1; run them, or choose" in said
    assert "asl-lr2e-3" in say("pick", "asl", "--partial", "--dry-run")
    gone.write_bytes(content.replace(b"61.0", b"99.0"))
    assert "differs from dvc.lock" in say("pick", "asl", code=2)
    assert "unknown sweep 'untrained'" in say("pick", "demo", "untrained", code=2)
    assert (swept.folder / "suite.yaml").read_text() == SUITE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e:\n  a:\n    x: 1\n    sweep: # try\n      lr:\n      - 1\n      - 2\n\n"
         "    # next\n    y: 2\n",
         "e:\n  a:\n    x: 1\n    # why\n    sweep: {lr: [2]}  # try\n\n    # next\n    y: 2\n"),
        ("e:\n  a:\n    sweep:\n    - lr: 1\n    - lr: 2\n    y: 2\n",
         "e:\n  a:\n    # why\n    sweep: {lr: [2]}\n    y: 2\n"),
        ("s: &s {lr: [1, 2]}\ne:\n  a: {x: 1, sweep: *s, y: 2}\n",
         "s: &s {lr: [1, 2]}\ne:\n  # why\n  a: {x: 1, sweep: {lr: [2]}, y: 2}\n"),
        ("e:\n  a:\n    x: 1\n", "e:\n  a:\n    # why\n    sweep: {lr: [2]}\n    x: 1\n"),
        ("e:\n  a: {x: 1,\n      y: [2, 3]  # last\n     }\n",
         "e:\n  # why\n  a: {x: 1,\n      y: [2, 3], sweep: {lr: [2]}  # last\n     }\n"),
        ("e:\r\n  ä: {x: \"ü\"}\r\n  a: {sweep: [{lr: 1},\r\n    {lr: 2}]}  # c\r\n",
         "e:\r\n  ä: {x: \"ü\"}\r\n  # why\r\n  a: {sweep: {lr: [2]}}  # c\r\n"),
        ("\ufeffe:\n  a: {sweep: {lr: [1, 2]}}", "\ufeffe:\n  # why\n  a: {sweep: {lr: [2]}}"),
    ],
)  # fmt: skip
def test_nothing_but_the_sweep_changes_however_it_is_written(before: str, after: str) -> None:
    changed = with_sweep(
        before.replace("e:", "experiments:", 1) if "\ne:" not in before
        else before.replace("\ne:", "\nexperiments:"), "a", "{lr: [2]}", ["why"],
    )  # fmt: skip
    assert changed.replace("experiments:", "e:") == after


def test_what_is_no_mapping_of_its_own_is_not_changed() -> None:
    with pytest.raises(ValueError, match="no mapping of its own"):
        with_sweep("experiments:\n  b: &b {x: 1}\n  a: *b\n", "a", "{}", [])


# --- jobs

TWELVE = """
suite: tiny
title: Tiny
scale: reduced
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments:
  asl:
    method: asl
    dataset: icons
    model: vit-demo
    warmup_epochs: 1
    sweep: {lr: [1.0e-3, 2.0e-3, 4.0e-3], epochs: [2, 3, 4, 5]}
linprobe:
  asl: {dataset: icons, epochs: 12}
"""


def test_twelve_runs_are_one_array(site: Any, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.root)
    (site.root / "suite.yaml").write_text(TWELVE)
    assert "params.yaml (12 experiments)" in say("expand")
    made = site.submit("pretrain")
    ids = [each.job_id for name, each in made.items() if name.startswith("pretrain@")]
    assert len(ids) == 12
    assert {job_id.partition("_")[0] for job_id in ids} == {ids[0].partition("_")[0]}
    assert sorted(int(job_id.partition("_")[2]) for job_id in ids) == [*range(12)]


def test_what_was_picked_is_not_made_again(
    site: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.root)
    few = TWELVE.replace(", epochs: [2, 3, 4, 5]", "").replace(", 4.0e-3", "")
    (site.root / "suite.yaml").write_text(few)
    say("expand")
    names = ["pretrain@asl-lr1e-3", "pretrain@asl-lr2e-3"]
    stub = json.dumps({"steps": 2, "watched": {"asl-lr1e-3": 10.0, "asl-lr2e-3": 12.0}})
    site.dvc("repro", "-q", *names, PYTHONPATH=site.python_path, STUB=stub)
    (site.root / "data").rename(site.root / "data.away")  # the stub's are none that tables read
    assert "2.00 above asl-lr1e-3" in " ".join(say("pick", "demo", "asl").split())
    (site.root / "data.away").rename(site.root / "data")
    assert list(read_yaml(site.root / "params.yaml")["experiments"]) == ["asl-lr2e-3"]
    assert site.plan("pretrain").entry(names[1]).action is Action.NOTHING
    assert "didn't change, skipping" in site.dvc("repro", names[1])
