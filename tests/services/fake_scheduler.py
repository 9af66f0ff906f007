"""A cluster in a folder: a working fake of the scheduler, for tests and for trying things out.

`scheduler: fake_scheduler:fake` in a project's cluster.yaml chooses it; its folder is `cluster`
beside the project. `FakeScheduler` is what a client sees, from any process. `FakeCluster`
is the controller: it starts jobs as processes of this machine, preempts them, loses nodes, enforces
nothing else.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.job_resources import JobResources
from pipeline.schedulers.port import (
    BatchJob,
    JobPhase,
    QueuedJob,
    SchedulerError,
    SchedulerKind,
    SubmitError,
)
from pipeline.writing import write_json

KILL_WAIT_S = 5.0
"""Between asking processes to end and ending them."""

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = (
    "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED",
)  # fmt: skip
"""Its words for the states of jobs."""
ENDED_STATES = (COMPLETED, FAILED, CANCELLED)
PHASES = {PENDING: JobPhase.WAITING, RUNNING: JobPhase.RUNNING} | dict.fromkeys(
    ENDED_STATES, JobPhase.ENDED
)
NEVER = "what it waits for has failed"

HERE = str(Path(__file__).parent)
"""Jobs ask the scheduler too: they find this module there."""


def fake() -> SchedulerKind:
    """Return what `fake_scheduler:fake` in cluster.yaml stands for."""
    return SchedulerKind("fake", JobResources, lambda scratch: FakeScheduler(folder_of(scratch)))


def folder_of(scratch: Path) -> Path:
    """Return the folder of a project's cluster, given its `.asl`."""
    return scratch.absolute().parent.with_name("cluster")


class FakeScheduler:
    """The scheduler's port on a folder.

    Args:
        folder: Made if missing. `faults.json` in it says what goes wrong: {"refuse": 1} refuses
            the next submission, {"lie": 1} takes it and reports an error, {"swallow": 1} reports
            an error and takes nothing, {"deaf": 1} does not answer once, {"deaf": -1} never.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
        (folder / "submissions").mkdir(exist_ok=True)

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        with self._locked():
            if self._fault("refuse"):
                raise SubmitError("Invalid account or account/partition", ambiguous=False)
            if self._fault("swallow"):
                raise SubmitError("Socket timed out on send/recv operation", ambiguous=True)
            number = self._next_number()
            single = len(jobs) == 1
            ids = [str(number) if single else f"{number}_{i}" for i in range(len(jobs))]
            for job_id, job in zip(ids, jobs, strict=True):
                self._write(_pending(job_id, job))
            write_json(self.folder / "submissions" / f"{number}.json", ids)
            if self._fault("lie"):
                raise SubmitError("Socket timed out on send/recv operation", ambiguous=True)
        return ids

    def queue(self) -> list[QueuedJob]:
        with self._locked():
            if self._fault("deaf"):
                raise SchedulerError("Unable to contact slurm controller (connect failure)")
            return [
                QueuedJob(
                    job["id"], PHASES[job["state"]], job["state"], job["reason"], job["comment"],
                    job["nodes"], job["restarts"], can_never_start=job["reason"] == NEVER,
                    never_began=job["state"] == CANCELLED,
                )
                for job in self.all()
            ]  # fmt: skip

    def cancel(self, job_ids: Sequence[str]) -> None:
        with self._locked():
            for job in self.all():
                if job["id"] in job_ids and job["state"] not in ENDED_STATES:
                    waits = job["state"] == PENDING
                    self._write(job | ({"state": CANCELLED} if waits else
                                       {"order": "cancel"}))  # fmt: skip

    def requeue(self, job_id: str) -> None:
        with self._locked():
            job = self.read(job_id)
            if job["forbids_requeue"] or job["state"] != RUNNING:
                raise SchedulerError("Requested operation is presently disabled")
            self._write(job | {"order": "requeue"})

    def explain(self, job_id: str) -> str | None:
        with contextlib.suppress(OSError), self._locked():
            return f"{self.read(job_id)['state']}, exit {self.read(job_id)['exit_code']}"
        return None

    def send_signal(self, job_id: str, name: str) -> None:
        raise SchedulerError("only the controller, which started them, can signal processes")

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        files = list((self.folder / "submissions").glob("*.json"))
        live = {job.job_id for job in self.queue() if not job.has_ended}
        old = [path for path in files if live.isdisjoint(json.loads(path.read_text("utf-8")))]
        for path in old:
            path.unlink()
        return len(old)

    def set_fault(self, name: str, times: int) -> None:
        """Let something go wrong so many times; -1: always."""
        with self._locked():
            write_json(self.folder / "faults.json", self._faults() | {name: times})

    def read(self, job_id: str) -> dict[str, Any]:
        """Return all that is known of a job."""
        return json.loads((self.folder / "jobs" / f"{job_id}.json").read_text(encoding="utf-8"))

    def all(self) -> list[dict[str, Any]]:
        """Return all jobs, the oldest first."""
        files = [p for p in (self.folder / "jobs").iterdir() if p.suffix == ".json"]
        jobs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        return sorted(jobs, key=lambda job: [int(part) for part in job["id"].split("_")])

    def _write(self, job: dict[str, Any]) -> None:
        write_json(self.folder / "jobs" / f"{job['id']}.json", job)

    def _next_number(self) -> int:
        return max((int(job["id"].split("_")[0]) for job in self.all()), default=0) + 1

    def _faults(self) -> dict[str, int]:
        try:
            return json.loads((self.folder / "faults.json").read_text(encoding="utf-8"))
        except OSError:
            return {}

    def _fault(self, name: str) -> bool:
        faults = self._faults()
        left = faults.get(name, 0)
        if left > 0:
            write_json(self.folder / "faults.json", faults | {name: left - 1})
        return left != 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class FakeCluster(FakeScheduler):
    """The controller; one process has it. `step` does what is due, `close` ends everything.

    Args:
        folder: Of the cluster.
        slots: Jobs that run at once.
        environment: What jobs find in their environment besides the port's variables.
    """

    def __init__(
        self, folder: Path, slots: int = 2, environment: dict[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        self.slots, self.environment = slots, environment or {}
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self.ending: dict[str, float] = {}
        self.orphans: list[subprocess.Popen[bytes]] = []

    def step(self) -> None:
        """Take note of what has ended, obey orders, start what can start."""
        with self._locked():
            for job in self.all():
                if job["id"] in self.processes:
                    self._look_after(job)
            for job in self.all():
                if job["state"] == PENDING and len(self.processes) < self.slots:
                    self._start_if_free(job)

    def run(self, until: Callable[[], bool] | None = None, seconds: float = 240.0) -> None:
        """Step until a condition holds; absent: until nothing runs or could run.

        Raises:
            TimeoutError: It took too long; says what the jobs do.
        """
        give_up = time.monotonic() + seconds
        while True:
            self.step()
            if until() if until else self.is_idle():
                return
            if time.monotonic() > give_up:
                raise TimeoutError(str([(j["id"], j["state"], j["reason"]) for j in self.all()]))
            time.sleep(0.05)

    def is_idle(self) -> bool:
        """Say whether nothing runs and nothing waits for anything but the impossible."""
        waiting = [j for j in self.all() if j["state"] == PENDING]
        return not self.processes and all(job["reason"] == NEVER for job in waiting)

    def signal(self, job_id: str, number: int, rank: int | None = None) -> None:
        """Send a signal to every process of a job, or to one."""
        chosen = self.processes[job_id] if rank is None else [self.processes[job_id][rank]]
        for process in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def preempt(self, job_id: str) -> None:
        """Take a job's machine away as Slurm does: SIGTERM, in time SIGKILL, back to the queue."""
        with self._locked():
            self._write(self.read(job_id) | {"order": "requeue"})

    def lose_node(self, job_id: str) -> None:
        """Lose sight of a job's machine: it goes back to the queue, its processes live on."""
        with self._locked():
            self.orphans += self.processes.pop(job_id)
            self._put_back(self.read(job_id))

    def forget_ended(self) -> None:
        """Drop ended jobs from the queue, as Slurm does after MinJobAge."""
        with self._locked():
            for job in self.all():
                if job["state"] in ENDED_STATES:
                    (self.folder / "jobs" / f"{job['id']}.json").rename(
                        self.folder / "jobs" / f"{job['id']}.gone"
                    )

    def close(self) -> None:
        """Kill everything."""
        alive = [*self.orphans, *(p for group in self.processes.values() for p in group)]
        _kill(alive, signal.SIGKILL)
        for process in alive:
            process.wait()
        self.processes.clear()

    def _next_number(self) -> int:
        gone = [int(p.stem.split("_")[0]) for p in (self.folder / "jobs").glob("*.gone")]
        return max(super()._next_number(), max(gone, default=0) + 1)

    def _start_if_free(self, job: dict[str, Any]) -> None:
        known = {other["id"]: other["state"] for other in self.all()}
        states = [known.get(job_id, COMPLETED) for job_id in job["after"]]
        if any(state in ENDED_STATES and state != COMPLETED for state in states):
            self._write(job | {"reason": NEVER})
        elif any(state != COMPLETED for state in states) or any(
            other["state"] not in ENDED_STATES and other["reason"] != NEVER
            for other in self.all()
            if other["id"] in job.get("after_any", ())
        ):
            self._write(job | {"reason": "Dependency"})
        elif time.time() >= job["begin"]:
            ranks = range(job["tasks"])
            self.processes[job["id"]] = [self._start(job, rank) for rank in ranks]
            self._write(job | {"state": RUNNING, "reason": "", "nodes": "n1"})

    def _start(self, job: dict[str, Any], rank: int) -> "subprocess.Popen[bytes]":
        logs = Path(job["folder"]) / "log"
        logs.mkdir(parents=True, exist_ok=True)
        script = "\n".join(["set -e", *job["setup"], 'exec "$@"'])
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ASL_")},
            "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), HERE]),
            **self.environment,
            "ASL_JOB_ID": job["id"], "ASL_JOB_NODES": "n1", "ASL_NODE": "n1",
            "ASL_JOB_RESTARTS": str(job["restarts"]),
        }  # fmt: skip
        if job["tasks"] > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["tasks"]),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"]),
            }  # fmt: skip
        with (logs / f"{job['id']}_{rank}.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", script, "job", *job["command"]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, cwd=logs,
            )  # fmt: skip

    def _look_after(self, job: dict[str, Any]) -> None:
        processes = self.processes[job["id"]]
        codes = [process.poll() for process in processes]
        bad = next((code for code in codes if code not in (None, 0)), None)
        if None in codes:
            if bad is not None:  # one process that fails ends its job
                _kill(processes, signal.SIGKILL)
            elif job["order"] and job["id"] not in self.ending:
                _kill(processes, signal.SIGTERM)
                self.ending[job["id"]] = time.monotonic() + KILL_WAIT_S
            elif job["order"] and time.monotonic() > self.ending[job["id"]]:
                _kill(processes, signal.SIGKILL)
            return
        del self.processes[job["id"]]
        self.ending.pop(job["id"], None)
        if job["order"] == "requeue":
            self._put_back(job)
            return
        state = COMPLETED if bad is None else FAILED
        if job["order"] == "cancel":
            state = CANCELLED
        self._write(job | {"state": state, "nodes": "", "exit_code": bad or 0, "order": None})

    def _put_back(self, job: dict[str, Any]) -> None:
        state = {"state": PENDING, "reason": "BeginTime", "nodes": "", "order": None}
        self._write(job | state | {"restarts": job["restarts"] + 1})


def _kill(processes: "list[subprocess.Popen[bytes]]", number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _pending(job_id: str, job: BatchJob) -> dict[str, Any]:
    resources = job.resources
    return {
        "id": job_id, "name": job.name, "folder": str(job.folder), "comment": job.comment,
        "command": list(job.command), "setup": list(job.setup), "after": list(job.after),
        "after_any": list(job.after_any), "avoid": list(job.avoid),
        "tasks": resources.nodes * resources.tasks_per_node, "begin": 0.0,
        "port": 20_000 + int(job_id.split("_")[0]) % 10_000,
        "state": PENDING, "reason": "Priority", "nodes": "", "restarts": 0,
        "order": None, "exit_code": None, "forbids_requeue": resources.requeue != "allowed",
    }  # fmt: skip
