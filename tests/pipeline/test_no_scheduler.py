"""A machine without a scheduler: what is stale is for `dvc repro`, and that is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.schedulers.port import NoSchedulerError, SchedulerError
from pipeline.schedulers.slurm.scheduler import SlurmScheduler

SAID = "there is no Slurm here: neither sbatch nor squeue is on PATH; `dvc repro` runs "


@pytest.fixture
def laptop(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project on a machine that has git and nothing else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(str(shutil.which("git")))
    monkeypatch.setenv("PATH", str(programs))
    (site.root / "cluster.yaml").unlink()  # as if it named slurm
    monkeypatch.chdir(site.root)
    return site


def test_plan_shows_what_dvc_repro_runs(laptop: Any, say: Callable[..., str]) -> None:
    said = say("plan")
    words = {line.split()[0]: line for line in said.splitlines() if line}
    lines = {word: line for word, line in words.items() if "@" in word}
    assert all(" run here " in line for line in lines.values())
    assert "never run" in lines["pretrain@asl"]
    assert said.endswith(f"{SAID}what is to do, {len(lines)} stages, on this machine\n")
    assert said.endswith(say("submit", "--all", "--dry-run"))  # behind what surrounds the suite


def test_submit_says_in_one_line_who_runs_it(laptop: Any, say: Callable[..., str]) -> None:
    said = say("submit", "--all", code=2)
    assert said == f"asl-pipe: {SAID}the stages on this machine\n"
    assert not (laptop.root / ".asl/code").exists()


def test_nothing_complains_about_jobs_that_cannot_be(laptop: Any, say: Callable[..., str]) -> None:
    assert say("status") == "no jobs; asl-pipe submit creates them\n"
    assert say("gc") == "nothing to delete\n"


def test_a_scheduler_that_does_not_answer_is_another_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSchedulerError):
        SlurmScheduler(tmp_path / "slurm").queue()
    (tmp_path / "squeue").write_text("#!/bin/sh\necho down >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(SchedulerError, match="squeue: down") as caught:
        SlurmScheduler(tmp_path / "slurm").queue()
    assert not isinstance(caught.value, NoSchedulerError)


def test_programs_that_know_of_no_cluster_are_no_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = "squeue: fatal: Could not establish a configuration source"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(NoSchedulerError, match=r"finds neither slurm\.conf nor controller"):
        SlurmScheduler(tmp_path / "slurm").queue()
