"""The doctor's judgements, and its conversation with a job, on a cluster of this machine."""

import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config.cluster import STAGES, load_job_request
from pipeline.config.job_resources import JobResources
from pipeline.doctor import nodes as doctor_nodes
from pipeline.doctor.checks import (
    examine,
    examine_scheduler,
    judge_race,
    judge_reads,
    probe_request,
    worst,
)
from pipeline.doctor.machine import Filesystem, Machine
from pipeline.doctor.node_probe import take_names, watch, write_json
from pipeline.doctor.nodes import examine_nodes
from pipeline.project import Project
from pipeline.schedulers.port import (
    BatchJob,
    Finding,
    JobPhase,
    Level,
    QueuedJob,
    SchedulerError,
    SchedulerKind,
)
from pipeline.schedulers.slurm import examination
from pipeline.schedulers.slurm.examination import judge_configuration, judge_time
from pipeline.schedulers.slurm.resources import SlurmResources


@dataclass
class OneMachine:
    """A cluster whose nodes are processes here."""

    configured: dict[str, str] = field(default_factory=lambda: {"SLURM_VERSION": "25.05"})
    down: bool = False
    starts: bool = True
    forbids: bool = False
    deaf: bool = False
    refused: str = ""
    phase: JobPhase = JobPhase.WAITING
    tasks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        if self.starts:
            self.phase = JobPhase.RUNNING
            ranks = range(jobs[0].resources.nodes)
            environment = os.environ | {
                "WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20999",
            }  # fmt: skip
            self.tasks = [
                subprocess.Popen(jobs[0].command, env=environment | {"RANK": str(rank)})
                for rank in ranks
            ]
        return ["1"]

    def queue(self) -> list[QueuedJob]:
        if self.down:
            raise SchedulerError("squeue: Unable to contact slurm controller")
        return [QueuedJob("1", self.phase, self.phase.upper(), "Priority")]

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.cancelled += job_ids
        self.phase = JobPhase.ENDED
        for process in self.tasks:
            process.kill()
            process.wait()

    def requeue(self, job_id: str) -> None:
        if self.forbids:
            raise SchedulerError("Requested operation is presently disabled")
        self.phase = JobPhase.WAITING

    def explain(self, job_id: str) -> str | None:
        return None

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        return 0

    def configuration(self) -> dict[str, str]:
        if self.down:
            raise SchedulerError("scontrol: Unable to contact slurm controller")
        return self.configured

    def try_out(self, resources: JobResources) -> str:
        if self.refused:
            raise SchedulerError(self.refused)
        return "to start now"

    def send_signal(self, job_id: str, name: str) -> None:
        for process in self.tasks:
            process.send_signal(0 if self.deaf else signal.Signals[f"SIG{name}"])


@dataclass
class FakeMachine:
    """A machine that is as a test wants it."""

    kind: str = "ext4"
    free_bytes: int = 10**12
    settings: dict[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ("hardlink", "symlink", "copy")
    cores: int = 8
    load: float = 1.0

    def filesystem(self, path: Path) -> Filesystem:
        return Filesystem(self.kind, self.free_bytes)

    def link_kinds(self, source: Path, target: Path) -> list[str]:
        return list(self.links)

    def dvc_settings(self, root: Path) -> dict[str, str]:
        return {"cache.type": "reflink,hardlink,copy", **self.settings}

    def dvc_cache(self, root: Path) -> Path:
        return root / "cache"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, tmp_path)


@pytest.fixture
def cluster() -> Iterator[OneMachine]:
    one = OneMachine()
    yield one
    one.cancel([])


def by_what(findings: Iterator[Finding]) -> dict[str, Finding]:
    found = {finding.what: finding for finding in findings}
    for finding in found.values():
        assert finding.remedy or finding.level in (Level.OK, Level.NOTE), finding
    return found


def found(project: Project, **machine: object) -> dict[str, Finding]:
    return by_what(examine(project, FakeMachine(**machine)))  # type: ignore[arg-type]


def of_slurm(
    project: Project, cluster: OneMachine, programs: Collection[str] = examination.COMMANDS
) -> dict[str, Finding]:
    """Return what is found where these commands are on PATH."""
    requests = {stage: load_job_request(project.cluster_file, stage).asked for stage in STAGES}
    which = {name: f"/usr/bin/{name}" for name in programs}.get
    return by_what(examination.examine(cluster, requests, which))


def test_a_healthy_place_has_no_failures_and_leaves_nothing(
    project: Project, cluster: OneMachine
) -> None:
    findings = found(project) | of_slurm(project, cluster)
    assert worst(findings.values()) is not Level.FAILURE, findings
    assert list(project.scratch.iterdir()) == []


def test_a_place_without_slurm_is_no_fault(project: Project, cluster: OneMachine) -> None:
    findings = of_slurm(project, cluster, programs=())
    assert findings["Slurm's commands"].level is Level.NOTE
    assert "Slurm's controller" not in findings


def test_half_a_slurm_is_a_fault(project: Project, cluster: OneMachine) -> None:
    finding = of_slurm(project, cluster, programs=("sbatch", "squeue"))["Slurm's commands"]
    assert finding.level is Level.FAILURE
    assert finding.detail == "srun, scontrol, scancel not on PATH"


def test_a_controller_that_does_not_answer_is_a_fault(project: Project) -> None:
    findings = of_slurm(project, OneMachine(down=True))
    assert findings["Slurm's controller"].level is Level.FAILURE
    assert "grace" not in findings


@pytest.mark.parametrize(("down", "level"), [(False, Level.OK), (True, Level.FAILURE)])
def test_a_scheduler_of_which_little_is_known_is_asked_for_its_queue(
    tmp_path: Path, down: bool, level: Level
) -> None:
    kind = SchedulerKind("own", JobResources, lambda _: OneMachine(down=down))
    assert by_what(examine_scheduler(kind, tmp_path, {}))["scheduler"].level is level


def test_a_request_that_can_never_be_met_names_its_stages(
    project: Project, cluster: OneMachine
) -> None:
    project.cluster_file.write_text("slurm: {detect: {nodes: 99}}")
    cluster.refused = "sbatch: Requested node configuration is not available"
    findings = of_slurm(project, cluster)
    assert findings["cluster.yaml for detect"].level is Level.FAILURE
    assert "cluster.yaml" in findings["cluster.yaml for detect"].remedy


def test_a_network_filesystem_wants_locks_by_link(project: Project) -> None:
    finding = found(project, kind="nfs4")["DVC's lock"]
    assert finding.level is Level.WARNING
    assert "dvc config --local core.hardlink_lock true" in finding.remedy
    set_up = {"core.hardlink_lock": "true"}
    assert found(project, kind="nfs4", settings=set_up)["DVC's lock"].level is Level.OK


@pytest.mark.parametrize(
    ("kinds", "configured", "level"),
    [
        (("reflink", "copy"), "reflink,copy", Level.OK),
        (("hardlink", "symlink", "copy"), "hardlink", Level.OK),
        (("hardlink", "symlink", "copy"), "reflink,copy", Level.WARNING),
        (("symlink", "copy"), "hardlink,copy", Level.WARNING),
        (("copy",), "reflink,hardlink,copy", Level.NOTE),
    ],
)
def test_weights_that_are_copied_are_mentioned(
    project: Project, kinds: tuple[str, ...], configured: str, level: Level
) -> None:
    machine = {"links": kinds, "settings": {"cache.type": configured}}
    findings = list(examine(project, FakeMachine(**machine)))  # type: ignore[arg-type]
    assert [f.level for f in findings if f.what == "DVC's links"] == [level]


def test_a_shared_cache_that_the_group_cannot_write_to_is_a_fault(project: Project) -> None:
    closed = project.root / "cache" / "files"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o2775)
    closed.chmod(0o755)
    finding = found(project, settings={"cache.shared": "group"})["DVC's cache"]
    assert finding.level is Level.FAILURE
    assert str(closed) in finding.detail
    closed.chmod(0o2775)
    finding = found(project, settings={"cache.shared": "group"})["DVC's cache"]
    assert finding.level is Level.OK


def test_a_busy_machine_and_a_full_disk_are_mentioned(project: Project) -> None:
    findings = found(project, load=9.0, free_bytes=10**8)
    assert findings["processors here"].level is Level.WARNING
    assert findings["disk"].level is Level.WARNING


@pytest.mark.parametrize(
    ("won", "level"),
    [
        ([["a"], ["b"]], Level.OK),
        ([["a", "b"], ["b"]], Level.FAILURE),  # two makers
        ([["a"], []], Level.FAILURE),  # none
    ],
)
def test_each_contended_folder_must_have_one_maker(won: list[list[str]], level: Level) -> None:
    assert judge_race("race", won, ["a", "b"]).level is level


@pytest.mark.parametrize("wrong", ["torn", "missing", "backwards"])
def test_a_file_must_be_there_whole_and_never_older(wrong: str) -> None:
    good = {"reads": 9, "torn": 0, "missing": 0, "backwards": 0}
    assert judge_reads("file", good, 5).level is Level.OK
    assert judge_reads("file", {**good, wrong: 1}, 5).level is Level.FAILURE


def test_a_writer_that_does_not_rename_is_noticed(tmp_path: Path) -> None:
    path, stop = tmp_path / "file", threading.Event()

    def write_in_place() -> None:
        while not stop.is_set():
            with path.open("w") as file:
                file.write('{"count": 1, "padding": "')
                file.flush()
                time.sleep(0.01)
                file.write("1" * 50_000 + '"}')

    writer = threading.Thread(target=write_in_place)
    writer.start()
    try:
        assert watch(path, 0.3)["torn"] > 0
    finally:
        stop.set()
        writer.join()


def test_a_name_that_is_taken_is_not_won(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert take_names(tmp_path, ["a", "b"], time.time(), 0.0) == ["a"]


def test_little_time_between_sigterm_and_the_end_is_mentioned() -> None:
    levels = {
        seconds: next(f.level for f in judge_configuration({"KillWait": f"{seconds} sec"})
                      if f.what == "grace")
        for seconds in (5, 30)
    }  # fmt: skip
    assert levels == {5: Level.WARNING, 30: Level.OK}


@pytest.mark.parametrize(
    ("mode", "level"), [("REQUEUE", Level.OK), ("OFF", Level.OK), ("GANG,CANCEL", Level.WARNING)]
)
def test_preemption_that_cancels_is_mentioned(mode: str, level: Level) -> None:
    found = {f.what: f for f in judge_configuration({"PreemptMode": mode})}
    assert found["preemption"].level is level


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 0), ("24:00:00", 0), (None, 0)])
def test_a_time_limit_that_leaves_no_time_to_work_is_mentioned(
    limit: str | int | None, count: int
) -> None:
    assert len(list(judge_time(["pretrain"], SlurmResources(time=limit)))) == count


def test_the_probe_asks_for_little_of_the_same(tmp_path: Path) -> None:
    stage = SlurmResources(
        partition="gpu", nodes=8, tasks_per_node=4, gpus=4, memory="400G", time="2-0",
        setup=("module load x",), options={"reservation": "r"},
    )  # fmt: skip
    small = probe_request(stage)
    assert (small.nodes, small.tasks_per_node, small.gpus, small.memory) == (2, 1, 1, None)
    assert (small.partition, small.setup, small.options) == (
        stage.partition, stage.setup, stage.options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read for a moment only."""
    monkeypatch.setattr(doctor_nodes, "READS_S", 0.3)


def nodes(tmp_path: Path, cluster: OneMachine, **asked: object) -> dict[str, Finding]:
    request = SlurmResources(**asked)  # type: ignore[arg-type]
    return {f.what: f for f in examine_nodes(tmp_path, cluster, request, wait_s=0.5)}


def test_two_nodes_are_examined_and_the_job_is_gone_afterwards(
    tmp_path: Path, cluster: OneMachine
) -> None:
    findings = nodes(tmp_path, cluster, nodes=2)
    failures = {what for what, finding in findings.items() if finding.level is Level.FAILURE}
    assert failures <= {"GPUs of the nodes"}, findings
    assert {
        "a job", "clocks", "mkdir between hosts", "rename between hosts",
        "network between nodes", "signals", "requeue",
    } <= findings.keys()  # fmt: skip
    assert cluster.cancelled == ["1"]
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_forbid_requeueing_and_keep_signals_are_told_apart(
    tmp_path: Path, cluster: OneMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_nodes, "SIGNAL_S", 1.0)  # none will come
    cluster.forbids = cluster.deaf = True
    findings = nodes(tmp_path, cluster)
    assert findings["requeue"].level is Level.FAILURE
    assert "requeue: resubmit" in findings["requeue"].remedy
    assert findings["signals"].level is Level.FAILURE


def test_nodes_without_gpus_are_a_fault_where_gpus_are_asked_for(
    tmp_path: Path, cluster: OneMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answers = [{"host": "n1", "gpus": "no driver"}]
    asked = doctor_nodes._node_gpus(answers, SlurmResources(gpus=1))
    assert asked.level is Level.FAILURE
    assert doctor_nodes._node_gpus(answers, SlurmResources()).level is Level.OK


def test_clocks_that_differ_by_more_than_the_doubt_are_a_fault() -> None:
    def talk(ahead: float) -> SimpleNamespace:
        return SimpleNamespace(
            ask=lambda kind: 0, answers=lambda number: [{"time": time.time() + ahead}]
        )

    for ahead, level in ((0.0, Level.OK), (60.0, Level.FAILURE), (-60.0, Level.FAILURE)):
        _, finding = doctor_nodes._clocks(talk(ahead))  # type: ignore[arg-type]
        assert finding.level is level


def test_a_job_that_does_not_start_is_cancelled_and_mentioned(
    tmp_path: Path, cluster: OneMachine
) -> None:
    cluster.starts = False
    findings = nodes(tmp_path, cluster)
    assert findings["a job"].level is Level.WARNING
    assert "Priority" in findings["a job"].detail
    assert cluster.cancelled == ["1"]


def test_a_job_that_does_not_answer_is_a_fault_and_its_log_is_quoted(
    tmp_path: Path, cluster: OneMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_nodes, "ANSWER_S", 0.3)
    silent = dataclasses.replace(cluster, starts=False, phase=JobPhase.RUNNING)
    findings = nodes(tmp_path, silent)
    assert findings["a job"].level is Level.FAILURE
    assert "shared filesystem" in findings["a job"].remedy
    assert silent.cancelled == ["1"]


def test_this_machine_is_what_it_is(dvc_project: Path) -> None:
    machine = Machine()
    assert machine.cores >= 1
    assert machine.filesystem(dvc_project).free_bytes > 0
    kinds = machine.link_kinds(dvc_project, dvc_project)
    assert {"symlink", "copy"} <= set(kinds)
    assert not [path for path in dvc_project.iterdir() if "doctor" in path.name]
    assert machine.dvc_settings(dvc_project)["core.analytics"] == "false"
    assert machine.dvc_cache(dvc_project) == dvc_project / ".dvc" / "cache"


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("nfs4", True), ("lustre", True), ("fuse.glusterfs", True), ("ext4", False)],
)
def test_shared_filesystems_are_known_by_their_kind(kind: str, shared: bool) -> None:
    assert Filesystem(kind, 0).is_shared == shared


def test_records_of_the_probe_are_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
