"""Stages in containers: what is asked for, how a process gets in, and that it goes on from there.

`apptainer` is a stand-in that enters namespaces, see tests/services/apptainer.py.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import apptainer
import pytest
from fake_scheduler import HERE as SERVICES

from pipeline.config.cluster import job_resources, read_cluster
from pipeline.config.container import Container
from pipeline.config.job_resources import JobResources
from pipeline.doctor import containers as doctor
from pipeline.errors import UserError
from pipeline.execution.trace import facts
from pipeline.jobs.container import (
    Entry,
    enter_command,
    environment_inside,
    folders_inside,
    lacking,
    launch_command,
    launch_setup,
    outer_python,
)
from pipeline.jobs.image import FOLDER, image_digest
from pipeline.jobs.job import read_attempts
from pipeline.jobs.verdict import Verdict
from pipeline.results.dvc_folders import dvc_folders
from pipeline.schedulers.port import (
    BatchJob,
    JobPhase,
    Level,
    NoSchedulerError,
    QueuedJob,
    SchedulerError,
    SubmitError,
)
from pipeline.schedulers.relay import RelayedScheduler, answer_all
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.scheduler import _lay_out, _write_script
from pipeline.submission.submit import submit
from pipeline.tables.provenance import origin
from pipeline.tables.trace import Link
from pipeline.worker.outside import listen

THIRTY_STEPS = str(5 + sum(n**2 for n in range(1, 31)))
IMAGE = "/images/asl.sif"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of the stand-in for Apptainer, which lies in `bin` beside it."""
    folder = tmp_path_factory.mktemp("apptainer")
    apptainer.make_or_skip(folder / "bin", folder / "asl.sif")
    return folder / "asl.sif"


@pytest.fixture
def on_path(image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the image, and let the stand-in be found."""
    monkeypatch.setenv("PATH", str(image.parent / "bin"), prepend=os.pathsep)
    return image


# What is asked for


def written(tmp_path: Path, section: str, text: str) -> JobResources:
    (tmp_path / "cluster.yaml").write_text(f"{section}:\n  default: {{container: {text}}}\n")
    file = read_cluster(tmp_path / "cluster.yaml")
    return file.job_request("pretrain").asked


def test_a_path_is_an_image(tmp_path: Path) -> None:
    asked = written(tmp_path, "slurm", IMAGE)
    assert asked.container == Container(image=IMAGE)
    assert job_resources("slurm", json.loads(json.dumps(dataclasses.asdict(asked)))) == asked


def test_all_of_it_can_be_said(tmp_path: Path) -> None:
    text = "{image: docker://lab/asl, runtime: singularity, python: /opt/bin/python3, " \
           "binds: /data, options: [--writable-tmpfs]}"  # fmt: skip
    assert written(tmp_path, "slurm", text).container == Container(
        image="docker://lab/asl", runtime="singularity", python="/opt/bin/python3",
        binds=("/data",), options=("--writable-tmpfs",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("asl.sif", "'asl.sif', expected a path from / on, or docker://..."),
        ("''", "got an empty image, expected the path of a .sif file"),
        (f"{{image: {IMAGE}, runtime: podman}}", "expected one of apptainer, singularity, pyxis"),
        (f"{{image: {IMAGE}, binds: [data]}}", "got 'data' in binds, expected /path or"),
        (f"{{image: {IMAGE}, options: [--container-name=a]}}", "apptainer has none such"),
        (f"{{image: {IMAGE}, runtime: pyxis, options: [--nv]}}", "got --nv in options"),
        (f"{{image: {IMAGE}, runtime: pyxis, options: ['--container-image=b']}}", "image or binds"),
        (f"{{imag: {IMAGE}}}", "did you mean 'image'?"),
        (f"{IMAGE}, options: {{container-name: a}}", "got container-name in options beside"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        written(tmp_path, "slurm", text)
    assert said in str(raised.value)
    assert "slurm.default" in str(raised.value)


def test_pyxis_is_for_schedulers_that_have_it() -> None:
    container = Container(image=IMAGE, runtime="pyxis")
    SlurmResources(container=container)
    with pytest.raises(ValueError, match="which this scheduler has not"):
        JobResources(container=container)


def test_without_a_container_nothing_changes(tmp_path: Path) -> None:
    command = launch_command(JobResources(), tmp_path, "/data", tmp_path, "a.module", "b")
    assert command == (sys.executable, "-P", "-u", "-m", "a.module", "b")


# How a process gets in


def test_the_runtime_is_given_what_processes_need(tmp_path: Path) -> None:
    container = Container(
        image=IMAGE, python="python3.11", binds=("/scratch:/mnt:ro",), options=("--writable-tmpfs",)
    )
    command = enter_command(container, [Path("/project"), Path("/cache")], ["-c", ""], gpus=True)
    assert command == [
        "apptainer", "exec", "--nv", "--bind=/project", "--bind=/cache", "--bind=/scratch:/mnt:ro",
        "--writable-tmpfs", IMAGE, "python3.11", "-c", "",
    ]  # fmt: skip
    amd = dataclasses.replace(container, options=("--rocm",))
    assert "--nv" not in enter_command(amd, [], [], gpus=True)
    assert "--nv" not in enter_command(container, [], [], gpus=False)


def test_folders_are_seen_once_and_behind_links(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "project", tmp_path / "disk/scratch"
    for folder in (root, elsewhere, tmp_path / "data", tmp_path / "cache/files"):
        folder.mkdir(parents=True)
    (root / ".asl").symlink_to(elsewhere)
    found = folders_inside(
        root / ".asl", str(tmp_path / "data"),
        [tmp_path / "cache", tmp_path / "cache/files", root / ".dvc/cache", tmp_path / "missing"],
        {"TMPDIR": str(tmp_path / "disk"), "HF_HOME": "/missing"},
    )  # fmt: skip
    assert set(found) == {root, tmp_path / "data", tmp_path / "cache", tmp_path / "disk"}


def test_dvcs_cache_is_found_wherever_it_is(dvc_project: Path, call, tmp_path: Path) -> None:
    assert dvc_project / ".dvc/cache" in dvc_folders(dvc_project)
    shared = tmp_path / "shared cache"
    call("dvc", "cache", "dir", "--local", str(shared), cwd=dvc_project)
    folders = dvc_folders(dvc_project)
    assert shared in folders
    assert any(folder.is_relative_to(tmp_path / "site") for folder in folders)


def test_the_hosts_python_packages_stay_outside() -> None:
    outer = {"PYTHONPATH": "/host", "PYTHONHOME": "/host", "VIRTUAL_ENV": "/venv", "RANK": "1",
             "CUDA_VISIBLE_DEVICES": "2", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    inner = environment_inside(outer, "apptainer", "/code", "/lab")
    assert inner == {
        "RANK": "1", "CUDA_VISIBLE_DEVICES": "2", "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "/code:/lab", "PYTHONNOUSERSITE": "1",
        "APPTAINERENV_PYTHONPATH": "/code:/lab", "APPTAINERENV_PYTHONNOUSERSITE": "1",
    }  # fmt: skip


def test_where_srun_enters_it_gets_the_options(tmp_path: Path) -> None:
    container = Container(
        image="nvcr.io#lab/asl:1", runtime="pyxis", python="python3.11",
        binds=("/data", "/a:/b:ro"), options=("--container-remap-root",),
    )  # fmt: skip
    job = BatchJob("a", tmp_path / "job", "", ("python3.11",), SlurmResources(container=container))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").touch(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        _lay_out(tmp_path / "submission", [job])
        text = _write_script([job], tmp_path / "submission").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("srun ")]
    assert (
        "'--container-image=nvcr.io#lab/asl:1' --container-mounts=/data:/data,/a:/b:ro "
        "--container-env=PYTHONPATH,PYTHONNOUSERSITE --container-remap-root" in line
    )
    assert "python3.11 -P" in line
    assert "container" not in "".join(x for x in text.splitlines() if x.startswith("#SBATCH"))


# Which image it was


def test_an_image_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "asl.sif"
    file.write_bytes(b"abc")
    container = Container(image=str(file))
    known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert image_digest(container, tmp_path) == known
    [note] = (tmp_path / FOLDER).iterdir()
    note.write_text(note.read_text().replace("ba7816bf", "00000000"))
    assert image_digest(container, tmp_path) == known.replace("ba7816bf", "00000000")
    file.write_bytes(b"abcd")
    assert image_digest(container, tmp_path) != known.replace("ba7816bf", "00000000")
    note.write_text("{")
    file.write_bytes(b"abc")
    assert image_digest(container, tmp_path) == known


def test_an_image_that_is_no_file_says_what_it_can(tmp_path: Path) -> None:
    digest = "sha256:" + "0f" * 32
    found = {
        name: image_digest(Container(image=name), tmp_path)
        for name in (f"docker://lab/asl@{digest}", "docker://lab/asl:latest", str(tmp_path), "/no")
    }
    assert list(found.values()) == [
        digest, "unknown: its name has no @sha256:...", "none: it is a folder",
        "unknown: No such file or directory",
    ]  # fmt: skip


# From inside the scheduler is asked outside


class Known:
    """A scheduler that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        self.asked += jobs
        if jobs[0].name == "refused":
            raise SubmitError("no", ambiguous=True, job_ids=["1", None])
        return ["1", "2"]

    def queue(self) -> list[QueuedJob]:
        return [QueuedJob("1", JobPhase.RUNNING, "RUNNING", nodes="n1", restarts=2)]

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.asked.append(list(job_ids))

    def requeue(self, job_id: str) -> None:
        raise SchedulerError(f"{job_id} is being cancelled")

    def send_signal(self, job_id: str, name: str) -> None:
        raise ZeroDivisionError("a bug")

    def explain(self, job_id: str) -> str | None:
        raise NoSchedulerError("none here")

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        self.asked.append(needed)
        return 3


@pytest.fixture
def asked_through() -> Iterator[tuple[Known, RelayedScheduler]]:
    ours, theirs = socket.socketpair()
    known = Known()
    thread = threading.Thread(target=answer_all, args=(ours, lambda: known, {"ready": str}))
    thread.start()
    # a descriptor of the test's own: the scheduler takes it over and leaves an empty one
    number = theirs.detach()
    relay = RelayedScheduler(str(number), "slurm")
    yield known, relay
    assert os.read(number, 1) == b""
    os.close(number)
    relay.close()
    thread.join(10)
    assert not thread.is_alive()


def test_every_call_goes_through(asked_through: tuple[Known, RelayedScheduler]) -> None:
    known, relay = asked_through
    relay.say_ready()
    asked = SlurmResources(memory="4G", options={"reservation": "asl"}, env={"A": "ä\n"})
    jobs = [BatchJob(name, Path("/job"), "asl:1:2", ("a", "b c"), asked, after=("7",),
                     avoid=("n1",)) for name in ("one", "two")]  # fmt: skip
    assert relay.submit(jobs) == ["1", "2"]
    assert known.asked == jobs
    assert relay.queue() == known.queue()
    relay.cancel(["1", "2"])
    assert relay.remove_old_submissions({Path("/job")}) == 3
    assert known.asked[2:] == [["1", "2"], [Path("/job")]]


def test_what_the_scheduler_raises_comes_back(
    asked_through: tuple[Known, RelayedScheduler],
) -> None:
    _, relay = asked_through
    with pytest.raises(SubmitError, match="no") as refused:
        relay.submit([BatchJob("refused", Path("/job"), "", ("a",), SlurmResources())])
    assert (refused.value.ambiguous, refused.value.job_ids) == (True, ("1", None))
    with pytest.raises(SchedulerError, match="7 is being cancelled"):
        relay.requeue("7")
    with pytest.raises(SchedulerError, match="ZeroDivisionError: a bug"):
        relay.send_signal("7", "USR2")
    with pytest.raises(NoSchedulerError, match="none here"):
        relay.explain("7")
    with pytest.raises(SchedulerError, match="'__init__', expected one of cancel"):
        relay._call("__init__")


def test_silence_is_an_error_and_no_answer() -> None:
    ours, theirs = socket.socketpair()
    relay = RelayedScheduler(str(theirs.detach()), "slurm")
    ours.close()
    with pytest.raises(SchedulerError, match="outside the container"):
        relay.queue()
    with pytest.raises(SchedulerError, match="outside the container"):
        RelayedScheduler("/no/socket", "slurm").queue()


# The process outside

INNER = """
import os, signal, sys, time
from pathlib import Path
from pipeline.schedulers.relay import relayed
told, folder = [], Path(sys.argv[1])
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda n, _: told.append(signal.Signals(n).name))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
relay = relayed(os.environ, "fake_scheduler:fake")
(folder / "begun").touch()
while len(told) < 1:
    time.sleep(0.02)
first = tuple(told)
relay.say_ready()
while len(told) < 2:
    time.sleep(0.02)
print(first, told[1:], relay.tags()["container.runtime"], os.path.exists(sys.argv[2]), flush=True)
sys.stdin.read()
{end}
"""


def outside(image: Path, folder: Path, program: str) -> "subprocess.Popen[str]":
    """Start Python in the container, as a job's task does."""
    folder.mkdir()
    begin = [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"]
    subprocess.run(begin, cwd=folder, check=True)
    code = Path(__file__).parents[2]
    entry = Entry(
        container=Container(image=str(image), binds=(f"{code}:{code}:ro",)), gpus=False,
        scratch=str(folder / ".asl"), data_root="/data", code=str(code),
    )  # fmt: skip
    command = ["-P", "-m", "pipeline.worker.outside", entry.to_text(), "-c", program]
    return subprocess.Popen(
        [sys.executable, *command, str(folder), str(image)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2]
        ),
    )  # fmt: skip


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("end", "codes"),
    [("sys.exit(75)", {75}), ("os.kill(os.getpid(), signal.SIGKILL)", {137})],
)
def test_signals_go_in_when_they_can_be_heard_and_the_end_comes_out(
    on_path: Path, tmp_path: Path, end: str, codes: set[int]
) -> None:
    process = outside(on_path, tmp_path / "project", INNER.replace("{end}", end))
    wait_for(tmp_path / "project/begun", process)
    os.kill(process.pid, signal.SIGUSR2)  # a warning waits until it is ready
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    said, logged = process.communicate(timeout=60)
    assert said == f"('SIGTERM',) ['SIGUSR2'] {apptainer.VERSION} False\n", logged
    assert process.returncode in codes
    assert f"apptainer exec --bind={tmp_path}/project" in logged


def test_the_process_inside_does_not_outlive_the_one_outside(on_path: Path, tmp_path: Path) -> None:
    process = outside(on_path, tmp_path / "project", INNER)
    wait_for(tmp_path / "project/begun", process)
    process.kill()
    said, _ = process.communicate(timeout=60)  # ends when nobody has its pipes any more
    assert said == ""


def test_what_is_not_there_on_the_node_is_said(image: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    process = outside(image, tmp_path / "project", "")
    assert "load its module in setup of cluster.yaml" in process.communicate(timeout=60)[1]
    assert process.returncode == 127
    process = outside(tmp_path / "gone.sif", tmp_path / "other", "")
    assert "gone.sif does not exist; build it" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


# Runs


def test_bad_input_is_refused_when_it_is_submitted(site, tmp_path: Path, image: Path) -> None:
    site.ask(default={"container": str(tmp_path / "gone.sif")})
    with pytest.raises(UserError, match=r"cluster.yaml: prepare@icons: container image .*gone.sif"):
        site.submit("pretrain")
    assert site.cluster.all() == []
    site.ask(default={"container": str(image)})
    plan = site.plan("pretrain")
    moved = dataclasses.replace(
        plan, project=dataclasses.replace(plan.project, root=tmp_path / "a,b")
    )
    with pytest.raises(UserError, match=r"a,b: no container can be given a folder with , or :"):
        submit(moved, site.services)
    bound = Container(image=str(image), binds=(f"{tmp_path}/no:/mnt",))
    assert lacking(bound, on_node=False) is None  # it may be on nodes alone
    assert f"container binds {tmp_path}/no, which does not exist" in str(lacking(bound))


def test_a_run_goes_on_from_inside_and_comes_home_as_without_a_container(
    site, on_path: Path
) -> None:
    def ask(**more: str) -> None:
        container = {"image": str(on_path), "binds": f"{SERVICES}:{SERVICES}:ro"}
        site.ask(default={"container": container, "env": {"PYTHONPATH": SERVICES}, **more})

    ask(requeue="resubmit")
    site.stub(steps=30, step_s=0.1)
    site.submit("pretrain")
    first = site.run_until_step("pretrain@asl", 3)
    site.cluster.signal(first, signal.SIGUSR2)  # it hands itself over to a new job
    site.cluster.run(until=lambda: len(site.cluster.all()) == 3)
    second = site.run_until_step("pretrain@asl", 15)
    assert second != first
    site.cluster.preempt(second)
    site.run()
    report = site.reports()["pretrain@asl"]
    assert report.verdict is Verdict.SUCCEEDED, report
    assert [each.job_id for each in read_attempts(report.paths)] == [first, second]
    command = site.cluster.read(second)["command"]
    assert command[0] == sys.executable == outer_python()
    assert site.state("pretrain@asl").restarts == 2
    assert site.encoder() == THIRTY_STEPS
    result = SimpleNamespace(
        difference=None, state="present", fingerprint=None, outputs={}, inputs={},
        stage="pretrain", key="asl",
    )  # fmt: skip
    suite = SimpleNamespace(
        root=site.root, folder=site.root, run_folder=lambda *_: site.work("pretrain@asl")
    )
    made = Link(origin(suite, result), site.root, site.root / "runs/pretrain/asl.json", None)
    digest = image_digest(Container(image=str(on_path)), site.project.scratch)
    assert dict(facts(suite, made, ""))["image"] == f"{on_path} {digest}, {apptainer.VERSION}"
    (note,) = (site.project.scratch / FOLDER).iterdir()
    assert json.loads(note.read_text())["path"] == str(on_path)


# The doctor


def run_probe(asked: JobResources, root: Path) -> dict[str, object]:
    from pipeline.doctor.node_probe import enter

    with contextlib.chdir(root):
        return enter(root, doctor.question(asked, root / ".asl"))


def test_the_doctor_starts_the_images_python(on_path: Path, stub_project: Path) -> None:
    asked = JobResources(container=Container(image=str(on_path)), gpus=1)
    assert [f.level for f in doctor.examine_images({"pretrain": asked, "embed": asked})] == ["ok"]
    answer = run_probe(asked, stub_project)
    packages, cuda = doctor.judge([answer], asked)
    assert packages.level is Level.OK, packages
    assert packages.detail.endswith("as here")
    assert cuda.level is Level.FAILURE
    assert "torch sees no GPU inside (0)" in cuda.detail
    other = answer | {"out": str(answer["out"]).replace('"dvc": "3', '"dvc": "2')}
    differing, _ = doctor.judge([other], asked)
    assert (differing.level, "differing: dvc 2." in differing.detail) == (Level.WARNING, True)
    lacks = answer | {"out": str(answer["out"]).replace('"timm": "', '"timm": null, "x": "')}
    assert next(doctor.judge([lacks], asked)).detail.endswith("lacks timm")


def test_the_doctor_says_what_is_missing(
    image: Path, stub_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = JobResources(container=Container(image="/no/asl.sif"))
    [finding] = doctor.examine_images({"pretrain": gone})
    assert (finding.level, finding.remedy) == (Level.FAILURE, doctor.BUILD)
    assert lacking(Container(image="docker://lab/asl")) is None
    fetched = JobResources(container=Container(image="docker://lab/asl"))
    assert [f.level for f in doctor.examine_images({"pretrain": fetched})] == ["ok", "note"]
    monkeypatch.setenv("PATH", "/nowhere")
    asked = JobResources(container=Container(image=str(image)))
    [finding] = doctor.judge([run_probe(asked, stub_project)], asked)
    assert "No such file or directory: 'apptainer'" in finding.detail
    assert "module load apptainer" in finding.remedy


def test_a_socket_that_cannot_be_made_takes_nothing_else_with_it(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "socket").mkdir()  # in its place
    entry = Entry(
        container=Container(image="docker://lab/asl", runtime="pyxis"), gpus=False,
        scratch=str(tmp_path), data_root=str(tmp_path), code=str(tmp_path), python_path=None,
    )  # fmt: skip
    with pytest.raises(OSError, match="in use"):
        listen(tmp_path / "socket", entry)
    assert (tmp_path / "precious").exists()


def test_a_job_ends_where_no_folder_for_the_socket_can_be_made(tmp_path: Path) -> None:
    asked = SlurmResources(container=Container(image="docker://lab/asl", runtime="pyxis"))
    lines = launch_setup(asked, tmp_path / ".asl", str(tmp_path), tmp_path)
    script = "\n".join(["set -e", "mktemp() { return 1; }", *lines[:-1], "echo went on"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_signal_within_a_question_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    interrupted, let_go = threading.Event(), threading.Event()

    class Slow:
        def queue(self) -> list[QueuedJob]:
            while not interrupted.wait(0.05):
                signal.pthread_kill(asks, signal.SIGUSR1)
            let_go.wait(60)
            return [QueuedJob("1", JobPhase.RUNNING, "RUNNING")]

        def explain(self, job_id: str) -> str:
            return f"why {job_id} ended"

    def interrupt(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    asks = threading.get_ident()
    ours, theirs = socket.socketpair()
    answering = threading.Thread(target=answer_all, args=(ours, Slow, {}), daemon=True)
    answering.start()
    relayed = RelayedScheduler(str(theirs.detach()), "slurm")
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            relayed.queue()
        let_go.set()
        assert relayed.explain("7") == "why 7 ended"
    finally:
        signal.signal(signal.SIGUSR1, before)
