"""What Slurm's commands are given and how their answers are read, without a Slurm."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_commands import put_first_on_path, write

from pipeline.schedulers.port import BatchJob, JobPhase, SchedulerError, SubmitError
from pipeline.schedulers.slurm import task
from pipeline.schedulers.slurm.refusals import is_refusal
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
        resources=SlurmResources(**resources), setup=("module load x",), after=("3", "4_1"),
    )  # type: ignore[arg-type]  # fmt: skip


def submitted(tmp_path: Path) -> tuple[dict[str, str], str]:
    """Return the options in the script that sbatch was given, and its last line."""
    text = (tmp_path / "submitted.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    return options, text.strip().splitlines()[-1]


def test_the_script_asks_for_everything_once(tmp_path: Path, commands: Path) -> None:
    asked = job(
        tmp_path, partition="gpu", account="lab", qos="long", nodes=2, tasks_per_node=8, gpus=8,
        cpus=6, memory="400G", time="1-00:00:00", constraint="a100", options={"reservation": "r"},
    )  # fmt: skip
    assert SlurmScheduler(tmp_path / "slurm").submit([asked]) == ["27"]
    options, command = submitted(tmp_path)
    [folder] = (tmp_path / "slurm").iterdir()
    expected = {
        "partition": "gpu", "account": "lab", "qos": "long", "nodes": "2", "ntasks-per-node": "8",
        "gpus-per-node": "8", "cpus-per-task": "6", "mem": "400G", "time": "1-00:00:00",
        "constraint": "a100", "reservation": "r", "comment": "asl:pretrain@asl:token",
        "job-name": "pretrain@asl", "dependency": "afterok:3:4_1", "signal": "USR2@120",
        "requeue": "", "open-mode": "append", "chdir": str(folder),
        "output": f"{folder}/0/log/%j_0.log",
    }  # fmt: skip
    assert {name: value.strip("'") for name, value in options.items()} == expected
    assert command.startswith("srun ")
    for argument in ("--kill-on-bad-exit=1", "--cpus-per-task=6", "--open-mode=append"):
        assert argument in command
    assert (folder / "0" / "log").resolve() == asked.folder / "log"


@pytest.mark.parametrize(("line", "code"), [("false", 1), ("false || true", 0)])
def test_a_setup_line_that_fails_ends_the_job(
    tmp_path: Path, commands: Path, line: str, code: int
) -> None:
    asked = BatchJob("prepare@icons", tmp_path / "job", "", ("true",), SlurmResources(), (line,))
    SlurmScheduler(tmp_path / "slurm").submit([asked])
    write(commands / "srun", f"touch {tmp_path}/started")
    done = subprocess.run(["bash", str(tmp_path / "submitted.sh")], check=False)
    assert done.returncode == code
    assert (tmp_path / "started").exists() == (code == 0)


def test_jobs_that_ask_the_same_are_one_array(tmp_path: Path, commands: Path) -> None:
    made = [job(tmp_path, f"pretrain@{key}") for key in ("a", "b")]
    assert SlurmScheduler(tmp_path / "slurm").submit(made) == ["27_0", "27_1"]
    options, command = submitted(tmp_path)
    assert options["array"] == "0-1%2"
    assert options["output"].endswith("/%a/log/%A_%a_0.log")
    assert "%a/log/%A_%a_%t.log" in command


def test_where_arrays_are_switched_off_each_job_is_submitted_alone(
    tmp_path: Path, commands: Path
) -> None:
    write(commands / "scontrol", "echo 'MaxArraySize = 0'")
    write(commands / "sbatch", 'cp "$2" submitted.sh; echo 27 | tee -a ids; exit 0')
    made = [job(tmp_path, f"pretrain@{key}") for key in ("a", "b")]
    assert SlurmScheduler(tmp_path / "slurm").submit(made) == ["27", "27"]
    assert "array" not in submitted(tmp_path)[0]


def test_files_stay_that_lead_to_a_job_that_may_live(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.schedulers.slurm.scheduler.KEPT_S", -1.0)
    write(commands / "squeue", "")
    scheduler = SlurmScheduler(tmp_path / "slurm")
    made = [job(tmp_path, f"pretrain@{key}") for key in ("a", "b")]
    scheduler.submit(made)
    # the queue shows jobs without comments, or none: what is needed, records say
    assert scheduler.remove_old_submissions([made[1].folder]) == 0
    assert scheduler.remove_old_submissions([tmp_path / "another"]) == 1
    assert list((tmp_path / "slurm").iterdir()) == []


def test_requeueing_can_be_left_out(tmp_path: Path, commands: Path) -> None:
    SlurmScheduler(tmp_path / "slurm").submit([job(tmp_path, requeue="resubmit")])
    options, _ = submitted(tmp_path)
    assert "no-requeue" in options
    assert "requeue" not in options


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("Batch job submission failed: Invalid partition name specified", True),
        ("Batch job submission failed: Invalid account or account/partition combination", True),
        ("Batch job submission failed: Requested node configuration is not available", True),
        ("Batch job submission failed: Job violates accounting/QOS policy (submit limit)", True),
        ("Batch job submission failed: User's group not permitted to use this partition", True),
        ("Batch job submission failed: Access/permission denied", True),
        ("Batch job submission failed: Job dependency problem", True),
        ("Memory specification can not be satisfied", True),
        ("unrecognized option '--foo'", True),
        # of Slurm's own list of errors, those that can come of a submission
        *((f"Batch job submission failed: {said}", True) for said in (
            "Requested GRES option unsupported by configured SelectType plugin",
            "No partition specified or system default partition",
            "Requested nodes not in this partition",
            "More processors requested than permitted",
            "Node count specification invalid",
            "MaxJobCount limit reached",
            "Job size specification needs to be provided",
            "Pathname of a file, directory or other parameter too long",
            "Requested partition configuration not available now",
            "Requested topology configuration is not available",
            "I/O error writing script/environment to file",
            "Requested operation not supported on this system",
            "Requested operation is presently disabled",
            "Licenses currently unavailable",
            "Memory required by task is not available",
            "Requested time limit is invalid (missing or exceeds some limit)",
            "Access denied to requested reservation",
            "Requested reservation is in use",
            "Job cannot be submitted without the current working directory specified.",
            "QOS Preemption loop detected",
            "Circular job dependency",
            "Invalid generic resource (gres) specification",
            "Requested account has breached requested QOS usage threshold",
            "Burst Buffer resource limit exceeded",
            "Duplicate generic resource (gres) specification",
            "Partition in DOWN state",
            "System submissions disabled",
            "X11 forwarding not available",
            "Environment is missing in job",
            "Multiple partition job request not supported when a partition is set",
            "Cannot request more threads per core than the job allocation",
            "Insufficient GRES available in allocation",
            "Unable to resolve user ID to user name",
            "Invalid or unknown association",
            "RestrictedCoresPerGPU: Not enough unique cores per GPU",
            "No eligible clusters for federated job",
        )),
        *((f"Batch job submission failed: {said}", False) for said in (
            "Unspecified error",  # a site's own plugin says it too
            "Communication connection failure",
            "Message receive failure",
            "Incompatible versions of client and server code",
            "Protocol authentication error",
            "Invalid authentication credential",
            "Authentication credential expired",
            "Connection timed out reading",
            "Unable to contact slurm controller (receive failure)",
            "Rate limit exceeded, please retry later",
            "Slurm backup controller in standby mode",
            "Slurm internal error, contact system administrator",
            "Header lengths are longer than data received",
        )),
        ("option '--mem' requires an argument", True),
        ("This does not look like a batch script", True),
        ("Batch job submission failed: Socket timed out on send/recv operation", False),
        ("Batch job submission failed: Unable to contact slurm controller", False),
        ("Batch job submission failed: Zero Bytes were transmitted or received", False),
        ("Batch job submission failed: Unexpected message received", False),
        ("Batch job submission failed: Resource temporarily unavailable", False),
        ("slurm_receive_msg: Connection reset by peer", False),
        ("", False),
    ],
)  # fmt: skip
def test_only_a_certain_refusal_counts_as_one(said: str, refused: bool) -> None:
    assert is_refusal(said) == refused


def test_without_slurm_the_error_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scheduler = SlurmScheduler(tmp_path / "slurm")
    with pytest.raises(SubmitError, match="login node") as caught:
        scheduler.submit([job(tmp_path)])
    assert not caught.value.ambiguous
    with pytest.raises(SchedulerError, match="there is no Slurm here"):
        scheduler.queue()


def test_nothing_is_submitted_from_a_full_disk(tmp_path: Path, commands: Path) -> None:
    (tmp_path / "slurm").write_text("no folder can be made here")
    with pytest.raises(SubmitError, match="cannot write") as caught:
        SlurmScheduler(tmp_path / "slurm").submit([job(tmp_path)])
    assert not caught.value.ambiguous
    assert not (tmp_path / "submitted.sh").exists()


def test_the_queues_lines_are_read_whatever_is_missing_in_them(
    tmp_path: Path, commands: Path
) -> None:
    write(
        commands / "squeue",
        """cat <<'END'
7     |PENDING |Priority |0 |    |(null) |
8_[3] |FUTURE  |None     |  |n1  |a|b    |
END""",
    )
    first, second = SlurmScheduler(tmp_path / "slurm").queue()
    assert (first.job_id, first.reason, first.nodes, first.comment) == ("7", "Priority", "", "")
    assert (second.said, second.reason, second.restarts) == ("FUTURE", "", None)
    assert second.comment == "a|b"
    assert second.phase is JobPhase.UNSETTLED  # a state that nobody here knows is no end


@pytest.mark.parametrize(
    ("state", "reason", "phase", "flags"),
    [
        ("PENDING", "Dependency", JobPhase.WAITING, (False, False)),
        ("PENDING", "DependencyNeverSatisfied", JobPhase.WAITING, (True, False)),
        ("CONFIGURING", "None", JobPhase.STARTING, (False, False)),
        ("RUNNING", "None", JobPhase.RUNNING, (False, False)),
        *((word, "None", JobPhase.UNSETTLED, (False, False))
          for word in ("COMPLETING", "REQUEUED", "PREEMPTED", "SUSPENDED", "REQUEUE_HOLD")),
        *((word, "None", JobPhase.ENDED, (False, False))
          for word in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")),
        *((word, "None", JobPhase.ENDED, (False, True))
          for word in ("CANCELLED", "DEADLINE", "REVOKED", "BOOT_FAIL")),
    ],
)  # fmt: skip
def test_slurms_words_have_a_meaning_for_all_schedulers(
    tmp_path: Path,
    commands: Path,
    state: str,
    reason: str,
    phase: JobPhase,
    flags: tuple[bool, ...],
) -> None:
    write(commands / "squeue", f"echo '7|{state}|{reason}|0|n1|asl:01234567:t|'")
    (job,) = SlurmScheduler(tmp_path / "slurm").queue()
    assert (job.phase, job.said) == (phase, state)
    assert (job.can_never_start, job.never_began) == flags


def test_ids_that_slurm_has_forgotten_are_no_error_but_other_complaints_are(
    tmp_path: Path, commands: Path
) -> None:
    forgotten = "echo 'scancel: error: Kill job error on job id 9: Invalid job id specified' >&2"
    write(commands / "scancel", f"{forgotten}; exit 1")
    SlurmScheduler(tmp_path / "slurm").cancel(["9"])
    write(commands / "scancel", f"{forgotten}; echo 'scancel: error: Access denied' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Access denied"):
        SlurmScheduler(tmp_path / "slurm").cancel(["9", "10"])


def test_a_node_is_reached_by_its_name_else_by_slurms_address(commands: Path) -> None:
    write(commands / "scontrol", "echo 'NodeName=n1 NodeAddr=127.0.0.1 NodeHostName=localhost'")
    assert task.address_of("localhost") == "localhost"
    assert task.address_of("no-such-name.invalid") == "127.0.0.1"
    write(commands / "scontrol", "exit 1")
    with pytest.raises(SystemExit, match="cannot resolve the name of the first node, no-such-name"):
        task.address_of("no-such-name.invalid")


def test_a_node_without_scontrol_is_reached_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert task.address_of("localhost") == "localhost"
    with pytest.raises(SystemExit, match="cannot resolve the name of the first node, no-such-name"):
        task.address_of("no-such-name.invalid")


def test_a_task_becomes_its_command_which_gets_warnings_and_neutral_variables(
    tmp_path: Path,
) -> None:
    listen = """import os, signal
print({name: value for name, value in os.environ.items() if name.startswith("ASL_")})
signal.signal(signal.SIGUSR2, lambda *_: print("heard"))
print(sorted(signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())))"""
    command = [sys.executable, "-c", listen]
    (tmp_path / task.SUBMISSION).write_text(json.dumps([{"command": command}]))
    warned = f"""import os, runpy, signal, sys
become = os.execvp
def be_warned(*arguments):
    os.kill(os.getpid(), signal.SIGUSR2)
    become(*arguments)
os.execvp = be_warned
sys.argv = ["task.py", {str(tmp_path)!r}]
runpy.run_path({task.__file__!r}, run_name="__main__")"""
    slurm = {
        "JOB_ID": "27", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "PROCID": "0",
        "LOCALID": "0", "JOB_NODELIST": "localhost", "ARRAY_JOB_ID": "26", "ARRAY_TASK_ID": "0",
        "RESTART_COUNT": "1", "CPUS_PER_TASK": "3",
    }  # fmt: skip
    outer = {"ASL_JOB_CPUS": "9", "ASL_NODE": "of the job that has submitted this one"}
    done = subprocess.run(
        [sys.executable, "-c", warned], capture_output=True, text=True, check=False,
        env=os.environ | outer | {"SUBMITIT_EXECUTOR": "slurm"}
        | {f"SLURM_{name}": value for name, value in slurm.items()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "heard" in done.stdout
    said = {"JOB_ID": "26_0", "JOB_NODES": "localhost", "JOB_RESTARTS": "1", "JOB_CPUS": "3"}
    assert ast.literal_eval(done.stdout.splitlines()[0]) == {
        f"ASL_{name}": value for name, value in said.items()
    }


def test_a_task_needs_nothing_of_the_project(tmp_path: Path) -> None:
    copy = tmp_path / "task.py"
    copy.write_text(Path(task.__file__).read_text())
    done = subprocess.run(
        ["python", "-I", "-c", f"import runpy; runpy.run_path({str(copy)!r})"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
