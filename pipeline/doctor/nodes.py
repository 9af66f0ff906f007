"""Examine the nodes of a cluster: a job answers questions, then is told, requeued and cancelled."""

import dataclasses
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.container import PYXIS
from pipeline.config.job_resources import JobResources
from pipeline.doctor import containers, node_probe
from pipeline.doctor.checks import judge_race, judge_reads, probe_request
from pipeline.doctor.containers import probe_folders
from pipeline.doctor.node_probe import (
    FIRST_COUNT,
    read_json,
    replace_for,
    take_names,
    write_json,
)
from pipeline.jobs.container import with_folders
from pipeline.schedulers.port import (
    BatchJob,
    Finding,
    JobPhase,
    Level,
    QueuedJob,
    Scheduler,
    SchedulerError,
)

POLL_S = 0.05
ANSWER_S = 90.0
"""A network filesystem may show a new file a minute late."""
SKEW_S = 10.0
"""A job is lost when it was not heard of for 120 s, by the clock of who looks."""
SIGNAL_S = 10.0
READS_S = 2.0
RACE_NAMES = [f"race-{index}" for index in range(100)]
RACE_STEP_S = 0.01


REMEDY = "change what the stage asks for in cluster.yaml"
BLIND = "lower checkpoint_minutes in cluster.yaml: warnings may not reach jobs"


class NoAnswerError(Exception):
    """Raised when the job has not answered in time."""


@dataclass
class Conversation:
    """Questions to the processes of a job and their answers, in files of a folder.

    Attributes:
        folder: On the filesystem that is examined.
        ranks: Number of processes.
        seconds: How long to wait for an answer.
    """

    folder: Path
    ranks: int
    seconds: float
    asked: int = field(default=0)

    def ask(self, kind: str, **question: Any) -> int:
        """Put a question to all; return its number."""
        number, self.asked = self.asked, self.asked + 1
        write_json(self.folder / f"ask-{number}.json", {"kind": kind, **question})
        return number

    def answers(self, number: int) -> list[dict[str, Any]]:
        """Return the answers of all, by rank.

        Raises:
            NoAnswerError: One is missing.
        """
        give_up = time.time() + self.seconds
        found: list[dict[str, Any]] = []
        while len(found) < self.ranks:
            answer = read_json(self.folder / f"answer-{number}-{len(found)}.json")
            if answer is not None:
                found.append(answer)
            elif time.time() > give_up:
                raise NoAnswerError(f"process {len(found)} has not answered question {number}")
            else:
                time.sleep(POLL_S)
        return found


def examine_nodes(
    scratch: Path, scheduler: Scheduler, request: JobResources, wait_s: float
) -> Iterator[Finding]:
    """Run a short job on the nodes that a stage would run on, and say what it met.

    Args:
        scratch: The project's `.asl`.
        scheduler: Where it is handed to.
        request: What the stage asks for.
        wait_s: How long to wait for the job to start.
    """
    small = probe_request(request)
    folder = scratch / f"doctor-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    program = folder / "probe.py"
    shutil.copyfile(node_probe.__file__, program)
    job = BatchJob(
        name="asl-pipe doctor", folder=folder, comment=f"asl-doctor:{folder.name}",
        command=(_python(small), "-P", "-u", str(program), str(folder)),
        resources=with_folders(small, probe_folders(scratch) if small.container else ()),
        setup=small.setup_lines(),
    )  # fmt: skip
    try:
        [job_id] = scheduler.submit([job])
    except SchedulerError as error:
        # were it taken all the same, it would end at once for lack of its program
        shutil.rmtree(folder, ignore_errors=True)
        yield Finding("a job", Level.FAILURE, str(error), REMEDY)
        return
    try:
        started = _wait_for_start(scheduler, job_id, wait_s)
        if started is not None:
            yield started
            return
        yield from _converse(
            Conversation(folder, small.nodes, ANSWER_S), scheduler, job_id, request
        )
    except NoAnswerError as error:
        yield Finding("a job", Level.FAILURE, f"job {job_id}: {error}", _last_words(folder, job_id))
    except SchedulerError as error:
        yield Finding("the scheduler", Level.FAILURE, str(error), "try again later")
    finally:
        # killed in any case: a probe that was requeued would begin anew
        _cancel(scheduler, job_id)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_start(scheduler: Scheduler, job_id: str, wait_s: float) -> Finding | None:
    """Return a finding if the job does not start in time."""
    give_up = time.time() + wait_s
    while True:
        line = _line_of(scheduler, job_id)
        if line is None or line.phase not in (JobPhase.WAITING, JobPhase.STARTING):
            return None
        if time.time() > give_up:
            return Finding(
                "a job", Level.WARNING,
                f"has waited {wait_s:.0f} s for a node ({line.reason or line.said})",
                "asl-pipe doctor --wait SECONDS waits longer",
            )  # fmt: skip
        time.sleep(0.5)


def _converse(
    talk: Conversation, scheduler: Scheduler, job_id: str, request: JobResources
) -> Iterator[Finding]:
    """Ask everything there is to ask."""
    asked_at = time.time()
    nodes = talk.answers(talk.ask("introduce"))
    hosts = ", ".join(node["host"] for node in nodes)
    yield Finding(
        "a job", Level.OK,
        f"ran on {hosts} and saw this folder; answered in {time.time() - asked_at:.1f} s",
    )  # fmt: skip
    yield _node_gpus(nodes, request)
    if request.container is not None:
        yield from _container(talk, request)
    ahead, clocks = _clocks(talk)
    yield clocks
    yield _race(talk, ahead)
    yield _reads(talk)
    if talk.ranks > 1:
        yield _meeting(talk)
    yield _signals(talk, scheduler, job_id)
    yield _requeue(scheduler, job_id, request)


def _node_gpus(nodes: list[dict[str, Any]], request: JobResources) -> Finding:
    found = [node["gpus"] for node in nodes]
    detail = ", ".join(f"{node['host']}: {node['gpus']}" for node in nodes)
    if any("not installed" in str(gpus) for gpus in found):
        return Finding("GPUs of the nodes", Level.FAILURE, detail, "pip install nvidia-ml-py")
    if request.gpus and not all(isinstance(gpus, int) and gpus for gpus in found):
        remedy = "ask for nodes with a driver in cluster.yaml"
        return Finding("GPUs of the nodes", Level.FAILURE, detail, remedy)
    return Finding("GPUs of the nodes", Level.OK, detail)


def _container(talk: Conversation, request: JobResources) -> Iterator[Finding]:
    """Start the image's Python on each node."""
    patient = dataclasses.replace(talk, seconds=talk.seconds + containers.START_S)
    number = patient.ask("container", **containers.question(request, talk.folder.parent))
    talk.asked = patient.asked
    yield from containers.judge(patient.answers(number), request)


def _python(request: JobResources) -> str:
    """Return the interpreter of the probe: where srun enters a container first, the image's."""
    container = request.container
    return container.python if container and container.runtime == PYXIS else sys.executable


def _clocks(talk: Conversation) -> tuple[dict[str, float], Finding]:
    """Return how far each node's clock is ahead of this one's, and a finding.

    The answer was given between question and arrival: the truth lies within half that time.
    """
    asked_at = time.time()
    answers = talk.answers(talk.ask("introduce"))
    middle, doubt = (asked_at + time.time()) / 2, (time.time() - asked_at) / 2
    ahead = {str(rank): answer["time"] - middle for rank, answer in enumerate(answers)}
    worst = max(ahead.values(), key=abs)
    detail = f"nodes are {worst:+.1f} s ahead of this host, +- {doubt:.1f} s"
    if abs(worst) - doubt > SKEW_S:
        remedy = "set up NTP: heartbeats are compared with this host's clock"
        return ahead, Finding("clocks", Level.FAILURE, detail, remedy)
    return ahead, Finding("clocks", Level.OK, detail)


def _race(talk: Conversation, ahead: dict[str, float]) -> Finding:
    start = time.time() + 2.0
    number = talk.ask(
        "contend", names=RACE_NAMES, start=start, step=RACE_STEP_S, ahead=ahead
    )  # fmt: skip
    mine = take_names(talk.folder, RACE_NAMES, start, RACE_STEP_S)
    theirs = [answer["won"] for answer in talk.answers(number)]
    finding = judge_race("mkdir between hosts", [mine, *theirs], RACE_NAMES)
    shares = "/".join(str(len(won)) for won in (mine, *theirs))
    return dataclasses.replace(finding, detail=f"{finding.detail} (here/nodes: {shares})")


def _reads(talk: Conversation) -> Finding:
    counter = talk.folder / node_probe.COUNTER
    write_json(counter, FIRST_COUNT)
    number = talk.ask("observe", seconds=READS_S)
    writes = replace_for(counter, READS_S + 1.0)
    seen = talk.answers(number)
    sums = {kind: sum(answer[kind] for answer in seen) for kind in seen[0]}
    return judge_reads("rename between hosts", sums, writes)


def _meeting(talk: Conversation) -> Finding:
    errors = [answer["error"] for answer in talk.answers(talk.ask("meet")) if answer["error"]]
    if not errors:
        return Finding("network between nodes", Level.OK, "the processes reach the first one")
    remedy = "open the ports 20000-32000 between nodes, or run on one node"
    return Finding("network between nodes", Level.FAILURE, errors[0], remedy)


def _signals(talk: Conversation, scheduler: Scheduler, job_id: str) -> Finding:
    number = talk.ask("signals", seconds=SIGNAL_S)
    time.sleep(0.5)  # let them listen
    try:
        scheduler.send_signal(job_id, "USR2")
    except SchedulerError as error:
        talk.answers(number)
        return Finding("signals", Level.WARNING, str(error), BLIND)
    deaf = [a for a in talk.answers(number) if "SIGUSR2" not in a["signals"]]
    if not deaf:
        return Finding(
            "signals", Level.OK, "SIGUSR2, the warning before a limit, reaches each task"
        )
    return Finding(
        "signals", Level.FAILURE, f"SIGUSR2 did not reach {len(deaf)} of {talk.ranks} processes",
        "remove wrappers from setup in cluster.yaml; what starts the task must pass signals on",
    )  # fmt: skip


def _requeue(scheduler: Scheduler, job_id: str, request: JobResources) -> Finding:
    if request.requeue == "resubmit":
        return Finding("requeue", Level.OK, "not asked for (requeue: resubmit)")
    try:
        scheduler.requeue(job_id)
    except SchedulerError as error:
        remedy = "set requeue: resubmit in cluster.yaml"
        return Finding("requeue", Level.FAILURE, str(error), remedy)
    line = _line_of(scheduler, job_id)
    if line is not None and not line.has_ended:
        return Finding("requeue", Level.OK, f"allowed; the job is {line.said} under its id")
    remedy = "set requeue: resubmit in cluster.yaml"
    return Finding("requeue", Level.FAILURE, "the scheduler agreed, but the job ended", remedy)


def _line_of(scheduler: Scheduler, job_id: str) -> QueuedJob | None:
    return next((job for job in scheduler.queue() if job.job_id == job_id), None)


def _cancel(scheduler: Scheduler, job_id: str) -> None:
    """Cancel a job, again if it was just being requeued."""
    give_up = time.time() + 30
    try:
        while time.time() < give_up:
            scheduler.cancel([job_id])
            line = _line_of(scheduler, job_id)
            if line is None or line.has_ended:
                return
            time.sleep(1)
    except SchedulerError:
        return


def _last_words(folder: Path, job_id: str) -> str:
    """Return what the job's log ends with, as a hint."""
    for log in sorted((folder / "log").glob(f"{job_id}_*.log")):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"its log ends: {lines[-1]}"
    return "it has no log: does the node see this folder? put the project on a shared filesystem"
