"""asl-pipe rehearse: kinds of runs, what fits, projections, and that nothing is touched."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from asl_core.data.prepare import prepare
from pipeline import cli
from pipeline.config.params import load_params
from pipeline.project import Project, find_project
from pipeline.rehearsal.kinds import Kind, kinds_of, needed_for, settings_of
from pipeline.rehearsal.launch import Here
from pipeline.rehearsal.projection import (
    Span,
    Training,
    proportional_span,
    span_of,
    steps_of,
    training_span,
)
from pipeline.rehearsal.rehearse import Rehearser
from pipeline.rehearsal.report import RehearsalReport, StageEstimate, read_report, write_report
from pipeline.rehearsal.trial import Outcome, Trial

PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: []
datasets:
  icons: {source: icons, train: 60, test: 12, image_size: 32}
  scenes: {source: scenes, train: 40, test: 8, image_size: 32}
  gone: {source: imagefolder, path: nowhere}
experiments:
  mae: &mae
    {method: mae, dataset: icons, model: vit-demo-4, epochs: 3, batch_size: 16, warmup_epochs: 0,
     precision: fp32}
  mae-seed1: {<<: *mae, seed: 1}
  untrained: {method: untrained, dataset: icons, model: vit-demo-4}
  other: {<<: *mae, dataset: gone}
linprobe:
  mae: &probe {dataset: icons, epochs: 2, batch_size: 32, warmup_epochs: 0, augment: false}
  mae-seed1: *probe
  untrained: *probe
detect:
  mae:
    {dataset: scenes, epochs: 1, batch_size: 8, image_size: 32, window_size: 4, warmup_epochs: 0,
     pyramid_channels: 16, anchor_sizes: [4, 8, 12, 16, 24], rpn_batch: 16, roi_batch: 8,
     proposals: 10, box_head_dim: 16, precision: fp32}
"""


def test_a_step_is_its_median_between_quartiles() -> None:
    assert span_of([1.0, 2.0, 3.0, 4.0, 100.0]) == Span(3.0, 2.0, 4.0)
    assert span_of([2.0]) == Span(2.0, 1.0, 4.0)
    assert span_of([]) == Span(0.0, 0.0, 0.0)


def test_a_run_is_its_steps_its_checkpoints_and_what_is_around_them() -> None:
    assert steps_of(800, 118_287, 4096) == 800 * 28
    assert steps_of(3, 10, 16) == 3
    known = Training(
        step_s=[2.0, 2.0, 2.0], images=8, batch_size=64, steps=100, before_s=5.0, after_s=3.0,
        test_share=10.0, checkpoint_s=6.0, checkpoint_minutes=10.0,
    )  # fmt: skip
    # 100 steps of 16 s, 1,600 s of them with a checkpoint every 600 s, and 5 + 30 s around
    assert training_span(known) == Span(1600 + 16 + 35, 1600 + 16 + 20, 1600 + 16 + 65)
    assert proportional_span(3.0, 30, 300) == Span(30.0, 20.0, 45.0)


def test_a_report_adds_up_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    hour = Span(3600.0, 1800.0, 7200.0)
    estimates = (
        StageEstimate(names=("a", "b"), each=hour, gpus=1, stored_bytes=5, checkpoint_bytes=7),
        StageEstimate(names=("c",), each=hour, stored_bytes=1),
        StageEstimate(names=("d",), problem="it does not fit"),
    )
    report = RehearsalReport(suite="demo", made="2026-01-01", estimates=estimates)
    assert report.total == hour.times(3)
    assert report.gpu_hours == Span(2.0, 1.0, 4.0)
    assert report.stored_bytes == 2 * 5 + 1 + 2 * 7
    assert report.problems == ["d: it does not fit"]
    assert report.finished(datetime(2026, 1, 1))[0] == datetime(2026, 1, 1, 3)
    project = Project(tmp_path, tmp_path)
    assert read_report(project) is None
    write_report(project, report)
    assert read_report(project) == report


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASL_DATA", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return find_project(tmp_path)


def test_runs_that_take_the_same_are_tried_once(project: Project) -> None:
    kinds = [kind.names for kind in kinds_of(load_params(project.params_file))]
    assert kinds == [
        ("prepare@icons",), ("prepare@scenes",), ("prepare@gone",),
        ("pretrain@mae", "pretrain@mae-seed1"), ("pretrain@untrained",), ("pretrain@other",),
        ("linprobe@mae", "linprobe@mae-seed1", "linprobe@untrained"), ("detect@mae",),
    ]  # fmt: skip


@dataclasses.dataclass
class Memory(Rehearser):
    """Trials of a machine that holds a few images."""

    most: int = 4
    tried: list[int] = dataclasses.field(default_factory=list)

    def _run(self, kind: Kind, trial: Trial) -> tuple[Path, Outcome]:
        self.tried.append(trial.images)
        full = trial.images > self.most
        problem = f"out of memory at step 1 with {trial.images} images at once" if full else None
        if not full:
            folder = self.work
            folder.mkdir(exist_ok=True)
            (folder / "measured.json").write_text(
                '{"step_s": [1.0, 1.0, 1.0], "waited_s": [0.5, 0.5, 0.5], "images": 4, "began": 2,'
                '"ended": 5, "device": "cpu", "device_bytes": null, "peak_device_bytes": null,'
                '"peak_host_bytes": 1, "checkpoint_bytes": 1, "checkpoint_s": 0}'
            )
        return self.work, Outcome(began=1.0, ended=6.0, problem=problem, out_of_memory=full)


@pytest.mark.parametrize(("most", "tried"), [(4, [16, 8, 4]), (0, [16, 8, 4, 2, 1])])
def test_what_does_not_fit_is_halved(
    project: Project, tmp_path: Path, most: int, tried: Sequence[int]
) -> None:
    params = load_params(project.params_file)
    here = Here(project, has_gpu=True)
    rehearser = Memory(project, params, tmp_path / "work", here, 12, None, most=most)
    rehearser.datasets["icons"], rehearser.counts["icons"] = tmp_path, {"train": 60, "test": 12}
    kind = next(k for k in kinds_of(params) if k.key == "mae" and k.stage.name == "pretrain")
    found = rehearser.estimate(kind)
    assert rehearser.tried == list(tried)
    assert found.fits is False
    if most:
        assert found.micro_batch == 4
        assert found.problem == "4 images of a step fit, 16 do not; set micro_batch_size: 4"
        assert found.waiting == 0.5
        # 3 passes of 3 steps of 16 images
        assert found.each is not None
        assert found.each.low >= 9 * 4.0
    else:
        assert found.problem == "out of memory at step 1 with 1 images at once"


def test_what_a_cpu_computes_slowly_is_a_problem(project: Project, tmp_path: Path) -> None:
    params = load_params(project.params_file)
    rehearser = Memory(project, params, tmp_path / "work", Here(project, has_gpu=False), 12, None)
    rehearser.datasets["icons"], rehearser.counts["icons"] = tmp_path, {"train": 60, "test": 12}
    kind = next(k for k in kinds_of(params) if k.key == "mae" and k.stage.name == "pretrain")
    rehearser.most = 16
    assert rehearser.estimate(kind).problem is None
    half = dataclasses.replace(kind, recipe=dataclasses.replace(kind.recipe, precision="fp16"))
    assert "set precision: bf16, or fp32" in str(rehearser.estimate(half).problem)


@pytest.mark.parametrize(
    "content",
    [
        "null", "5", '"x"', "[]", "{", '{"suite": 1}',
        '{"suite": "x", "made": "x", "settings": {}, "estimates": ["a"]}',
        '{"suite": "x", "made": "x", "settings": {}, "estimates": [{"each": null, "names": "a"}]}',
        '{"suite": "x", "made": "x", "settings": {}, "estimates": '
        '[{"each": {"expected": "a", "low": 1, "high": 1}, "names": ["a"]}]}',
    ],
)  # fmt: skip
def test_a_damaged_report_is_none(tmp_path: Path, content: str) -> None:
    project = Project(tmp_path, tmp_path)
    path = tmp_path / ".asl/rehearsals/demo.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert read_report(project) is None


def test_a_date_beyond_all_calendars_is_told_all_the_same() -> None:
    span = Span(1e30, 1e29, 1e31)
    estimates = (StageEstimate(names=("a",), each=span),)
    report = RehearsalReport(suite="demo", made="", estimates=estimates)
    assert report.finished(datetime(2026, 1, 1))[0].year > 2300


def test_a_report_is_told_of_the_runs_that_are_left_and_knows_which_have_changed(
    project: Project,
) -> None:
    then = settings_of(load_params(project.params_file))
    hour = Span(3600.0, 3000.0, 4000.0)
    estimates = (
        StageEstimate(names=("pretrain@mae", "pretrain@mae-seed1"), each=hour),
        StageEstimate(names=("knn@mae",), each=hour),
    )
    report = RehearsalReport(suite="x", made="", estimates=estimates, settings=then)
    assert report.left(["pretrain@mae-seed1"]).total == hour
    assert report.left([]).estimates == ()
    assert report.unknown(then) == []
    text = project.params_file.read_text()
    assert text.count("epochs: 3") >= 1
    project.params_file.write_text(text.replace("epochs: 3", "epochs: 4", 1))
    changed = report.unknown(settings_of(load_params(project.params_file)))
    assert changed
    assert all(name.startswith("pretrain@") for name in changed)


def test_a_stage_needs_what_it_reads_from_and_no_more(project: Project) -> None:
    params = load_params(project.params_file)
    kinds = list(kinds_of(params))
    assert [kind.names[0] for kind in needed_for(params, kinds, "linprobe")] == [
        "prepare@icons", "pretrain@mae", "pretrain@untrained", "linprobe@mae",
    ]  # fmt: skip
    assert [kind.names[0] for kind in needed_for(params, kinds, "detect")] == [
        "prepare@icons", "prepare@scenes", "pretrain@mae", "detect@mae",
    ]  # fmt: skip
    assert cli.run_command(["rehearse", "--stage", "knn"]) == 2


def test_two_rehearsals_do_not_meet(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    lock = project.scratch / "rehearsals/demo.lock"
    lock.parent.mkdir(parents=True)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert cli.run_command(["rehearse", "--steps", "3"]) == 75
        other.kill()
    assert "demo is being rehearsed already" in capsys.readouterr().err


def test_data_of_another_recipe_are_packed_afresh(project: Project, tmp_path: Path) -> None:
    params = load_params(project.params_file)
    kind = next(k for k in kinds_of(params) if k.names == ("prepare@icons",))
    recipe: Any = kind.recipe
    prepare(recipe, tmp_path, tmp_path / "data/icons", name="icons")
    rehearser = Rehearser(project, params, tmp_path / "w", Here(project, has_gpu=False), 3, None)
    assert rehearser.estimate(kind).names == ()
    assert rehearser.counts["icons"] == {"train": 60, "test": 12}
    larger = dataclasses.replace(kind, recipe=dataclasses.replace(recipe, train=50_000))
    with pytest.raises(ZeroDivisionError):
        Packed(project, params, tmp_path / "w", Here(project, has_gpu=False), 3, None).estimate(
            larger
        )


class Packed(Rehearser):
    """Says by an error that a trial was begun."""

    def _run(self, kind: Kind, trial: Trial) -> tuple[Path, Outcome]:
        raise ZeroDivisionError(trial.mode)


def test_an_error_nobody_foresaw_is_told_in_a_line_and_kept_whole(
    project: Project, tmp_path: Path
) -> None:
    params = load_params(project.params_file)
    rehearser = Rehearser(project, params, tmp_path / "w", Here(project, has_gpu=False), 3, None)
    kind = next(k for k in kinds_of(params) if k.names == ("linprobe@mae", "linprobe@mae-seed1",
                                                           "linprobe@untrained"))  # fmt: skip
    trial = Trial(params=str(project.params_file), stage="linprobe", key="mae", mode="encode",
                  images=4, resources={"device": "cpu"})  # fmt: skip
    _, outcome = rehearser._run(kind, trial)  # without any inputs
    assert outcome.problem is not None
    assert outcome.problem.startswith("KeyError: 'encoder' (all of it: ")
    kept = Path(outcome.problem.removesuffix(")").rpartition(" ")[2])
    assert "Traceback" in kept.read_text()


def test_a_batch_larger_than_the_data_is_found(project: Project, tmp_path: Path) -> None:
    params = load_params(project.params_file)
    rehearser = Memory(project, params, tmp_path, Here(project, has_gpu=False), 12, None)
    rehearser.datasets["icons"], rehearser.counts["icons"] = tmp_path, {"train": 15, "test": 12}
    kind = next(k for k in kinds_of(params) if k.key == "mae" and k.stage.name == "pretrain")
    found = rehearser.estimate(kind)
    assert found.problem == "batch_size 16 exceeds the 15 training images of icons; lower it"
    assert rehearser.tried == []


def test_a_suite_is_rehearsed_and_nothing_is_touched(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in project.root.rglob("*") if ".asl" not in path.parts}
    code = cli.run_command(["rehearse", "--steps", "3"])
    said = capsys.readouterr().out
    assert code == 1, said  # one of the data sets is not there
    assert {path for path in project.root.rglob("*") if ".asl" not in path.parts} == before
    left = {path.name for path in (project.scratch / "rehearsals").iterdir()}
    assert left == {"demo.json", "demo.lock"}
    report = read_report(project)
    assert report is not None
    found = {each.names[0]: each for each in report.estimates}
    assert list(found) == [kind.names[0] for kind in kinds_of(load_params(project.params_file))]
    assert "nowhere, which does not exist" in (found["prepare@gone"].problem or "")
    assert found["pretrain@other"].problem == "dataset gone could not be had: see its own line"
    for name in set(found) - {"prepare@gone", "pretrain@other"}:
        each = found[name].each
        assert each is not None, found[name]
        assert found[name].problem is None
        assert 0 < each.low <= each.expected <= each.high
    assert found["pretrain@mae"].fits
    assert found["detect@mae"].fits
    assert found["pretrain@mae"].checkpoint_bytes > 0
    assert "without 2 of 8 kinds of runs: see the problems" in said
    assert "first problem: prepare@gone:" in said
    assert "one after the other:" in said
