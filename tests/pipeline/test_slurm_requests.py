"""What sbatch is given: kinds of GPUs, partitions, how many at once, nodes, dependencies."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from slurm_commands import put_first_on_path, write

from pipeline.schedulers.port import BatchJob, EndKind, KnowsNodes
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.scheduler import SlurmScheduler


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH; its sbatch keeps the script and says 27."""
    monkeypatch.chdir(tmp_path)
    return put_first_on_path(tmp_path / "bin", monkeypatch)


def job(folder: Path, name: str = "pretrain@asl", **resources: object) -> BatchJob:
    return BatchJob(
        name=name, folder=folder / name, comment=f"asl:{name}:token", command=("program", name),
        resources=SlurmResources(**resources), after=("3", "4_1"),
    )  # type: ignore[arg-type]  # fmt: skip


def options(tmp_path: Path, *jobs: BatchJob) -> dict[str, str]:
    SlurmScheduler(tmp_path / "slurm").submit(list(jobs))
    text = (tmp_path / "submitted.sh").read_text()
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    return {name: value.strip("'") for name, value in found.items()}


def test_kinds_of_gpus_partitions_and_generic_resources(tmp_path: Path, commands: Path) -> None:
    fields = SlurmResources.fields_of({"gpus": "a100:4", "partition": ["gpu", "long"]})
    found = options(tmp_path, job(tmp_path, **fields, options={"gres": "nvme:1"}))
    assert found["gpus-per-node"] == "a100:4"
    assert found["partition"] == "gpu,long"
    assert found["gres"] == "nvme:1"
    assert "gpus-per-node" not in options(tmp_path, job(tmp_path, gpus=0, gpu_type="a100"))


@pytest.mark.parametrize(("most", "count", "array"), [(3, 6, "0-5%3"), (9, 6, "0-5%6")])
def test_of_an_array_so_many_run_at_once(
    tmp_path: Path, commands: Path, most: int, count: int, array: str
) -> None:
    made = [job(tmp_path, f"pretrain@{key}", max_running=most) for key in range(count)]
    assert options(tmp_path, *made)["array"] == array


def test_nodes_are_avoided_beside_those_that_cluster_yaml_excludes(
    tmp_path: Path, commands: Path
) -> None:
    made = job(tmp_path, options={"exclude": "n7"})
    assert options(tmp_path, replace(made, avoid=("n1", "n7")))["exclude"] == "n7,n1"
    assert "exclude" not in options(tmp_path, job(tmp_path))


def test_jobs_that_avoid_different_nodes_are_no_array(tmp_path: Path, commands: Path) -> None:
    made = [replace(job(tmp_path, f"pretrain@{key}"), avoid=(key,)) for key in ("a", "b")]
    assert SlurmScheduler(tmp_path / "slurm").submit(made) == ["27", "27"]


def test_what_must_have_ended_is_awaited_however_it_ends(tmp_path: Path, commands: Path) -> None:
    waiting = replace(job(tmp_path), after=(), after_any=("5_0", "5_1", "6"))
    assert options(tmp_path, waiting)["dependency"] == "afterany:5:6"
    both = options(tmp_path, replace(waiting, after=("3",)))
    assert both["dependency"] == "afterok:3,afterany:5:6"
    # else it would wait for ever, and what waits for its end too
    assert options(tmp_path, replace(job(tmp_path), drop=True))["kill-on-invalid-dep"] == "yes"
    assert "kill-on-invalid-dep" not in options(tmp_path, job(tmp_path))


@pytest.mark.parametrize(
    ("sacct", "scontrol", "expected"),
    [
        ("echo '7|NODE_FAIL'; echo '7|OUT_OF_MEMORY'", "exit 1",
         [EndKind.NODE_FAILED, EndKind.OUT_OF_MEMORY]),
        ("echo '7|PREEMPTED'; echo '7|CANCELLED by 1000'", "exit 1",
         [EndKind.PREEMPTED, EndKind.CANCELLED]),
        ("exit 1", "echo 'JobId=7 JobState=TIMEOUT Reason=TimeLimit'", [EndKind.TIME_LIMIT]),
        ("", "echo 'JobId=7 JobState=FAILED'", [EndKind.OTHER]),
        ("echo '7|RUNNING'", "echo 'JobId=7 JobState=RUNNING'", []),
        ("exit 1", "exit 1", []),
    ],
)  # fmt: skip
def test_how_a_jobs_starts_ended(
    tmp_path: Path, commands: Path, sacct: str, scontrol: str, expected: list[EndKind]
) -> None:
    write(commands / "sacct", sacct)
    write(commands / "scontrol", scontrol)
    scheduler = SlurmScheduler(tmp_path / "slurm")
    assert isinstance(scheduler, KnowsNodes)
    assert scheduler.ends_of("7") == expected


def test_nodes_that_start_no_job_are_not_eligible(tmp_path: Path, commands: Path) -> None:
    write(
        commands / "sinfo",
        """cat <<'END'
n1 idle gpu* gpu:a100:4(S:0-1),nvme:1 ib,big
n2 mixed gpu* gpu:v100:2 ib
n2 mixed all gpu:v100:2 ib
n3 drained gpu* gpu:a100:4 ib
n4 down* gpu* gpu:a100:4 ib
n5 idle all (null) (null)
END""",
    )
    scheduler = SlurmScheduler(tmp_path / "slurm")
    assert scheduler.eligible_nodes(SlurmResources()) == ("n1", "n2")
    assert scheduler.eligible_nodes(SlurmResources(partition="gpu,all")) == ("n1", "n2", "n5")
    for asked, names in (
        ({"gpus": 1}, ("n1", "n2")), ({"gpus": 2, "gpu_type": "a100"}, ("n1",)),
        ({"constraint": "ib"}, ("n1", "n2")), ({"constraint": "ib&big"}, ("n1",)),
        ({"constraint": "ib|none"}, ("n1", "n2", "n5")),
    ):  # fmt: skip
        resources = SlurmResources(partition="gpu,all", **asked)
        assert scheduler.eligible_nodes(resources) == names
    write(commands / "scontrol", 'echo "$3" | tr , "\\n"')
    assert scheduler.node_names("n1") == ("n1",)
    assert scheduler.node_names("") == ()
    assert scheduler.node_names("n1,n2") == ("n1", "n2")


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("slurmstepd-n1: error: StepId=1.0 exceeded memory limit (9 > 5), being killed", True),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your", True),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", True),
        ("the stage says: exceeded memory limit", False),
        ("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT", False),
    ],
)
def test_a_job_that_was_killed_for_its_memory_is_found_by_its_log(
    tmp_path: Path, commands: Path, line: str, end: bool
) -> None:
    scheduler = SlurmScheduler(tmp_path / "slurm")
    made = job(tmp_path)
    assert scheduler.submit([made]) == ["27"]
    write(commands / "sacct", "exit 1")
    write(commands / "scontrol", "echo 'JobId=27 JobState=FAILED Reason=NonZeroExitCode'")
    (made.folder / "log/27_0.log").write_text(f"step 1\n{line}\nsrun: error: n1: task 0: Killed\n")
    assert scheduler.ends_of("27") == [EndKind.OUT_OF_MEMORY if end else EndKind.OTHER]
    write(commands / "scontrol", "echo 'JobId=27 JobState=TIMEOUT'")
    assert scheduler.ends_of("27") == [EndKind.TIME_LIMIT]
    write(commands / "scontrol", "exit 1")
    assert scheduler.ends_of("27") == ([EndKind.OUT_OF_MEMORY] if end else [])
