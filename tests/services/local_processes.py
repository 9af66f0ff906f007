"""A scheduler of the plainest kind: each job is a process of this machine and waits for others.

`scheduler: local_processes:local_processes` in cluster.yaml chooses it. All that a scheduler needs
is in this file: it is here to show that, and to be tested.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

POLL_S, KILL_WAIT_S = 0.05, 2.0
DONE, CANCELLED = "exit code 0", "cancelled while it waited"


@dataclass(frozen=True, kw_only=True)
class LocalResources(JobResources):
    """What a job asks for here."""

    niceness: int = 0


def local_processes() -> SchedulerKind:
    """Return what cluster.yaml's `scheduler:` names."""
    return SchedulerKind(
        "local_processes", LocalResources, lambda scratch: LocalProcesses(scratch / "processes")
    )


class LocalProcesses:
    """Starts a process for each job, which waits for what comes before it.

    Args:
        folder: Has a folder for each job: `job.json`, then `began`, then `ended`, which say of
            which process and how.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        return [self._start(job) for job in jobs]

    def queue(self) -> list[QueuedJob]:
        return [_line(path.parent) for path in sorted(self.folder.glob("*/job.json"))]

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            with contextlib.suppress(FileExistsError):  # its age is how long the job had to end
                (self.folder / job_id / "cancelled").touch(exist_ok=False)
            self._signal(job_id, signal.SIGTERM)

    def requeue(self, job_id: str) -> None:
        raise SchedulerError(f"job {job_id}: a process that has ended does not rise again")

    def send_signal(self, job_id: str, name: str) -> None:
        self._signal(job_id, signal.Signals[f"SIG{name}"])

    def explain(self, job_id: str) -> str | None:
        line = _line(self.folder / job_id)
        return line.said if line.has_ended else None

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        return 0

    def _start(self, job: BatchJob) -> str:
        numbers = (int(path.name) for path in self.folder.glob("*"))
        job_id = str(max(numbers, default=0) + 1)
        folder = self.folder / job_id
        script = "\n".join(["set -e", *job.setup, 'exec "$@"'])
        content = {
            "id": job_id, "comment": job.comment, "after": job.after,
            "after_any": job.after_any, "folder": str(job.folder),
            "command": ["bash", "-c", script, "job", *job.command],
            "niceness": getattr(job.resources, "niceness", 0),
        }  # fmt: skip
        if job.resources.nodes * job.resources.tasks_per_node > 1:
            raise SubmitError("a job is one process here", ambiguous=False)
        folder.mkdir(parents=True)
        write_json(folder / "job.json", content)
        subprocess.run(  # it outlives whoever submits
            ["setsid", "--fork", sys.executable, __file__, str(folder)], check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return job_id

    def _signal(self, job_id: str, number: int) -> None:
        with contextlib.suppress(OSError, ValueError, ProcessLookupError):
            os.kill(int((self.folder / job_id / "began").read_text()), number)


def _line(folder: Path) -> QueuedJob:
    job = json.loads((folder / "job.json").read_text())
    phase, said = JobPhase.WAITING, "waits"
    if (folder / "ended").exists():
        phase, said = JobPhase.ENDED, (folder / "ended").read_text()
    elif (folder / "began").exists():
        phase, said = JobPhase.RUNNING, "runs"
    return QueuedJob(
        job["id"], phase, said, comment=job["comment"], nodes="here" if said == "runs" else "",
        can_never_start=(folder / "never").exists(), never_began=said == CANCELLED,
    )  # fmt: skip


def main(folder: Path) -> None:
    """Wait for what a job needs, run it, and leave its exit code."""
    job = json.loads((folder / "job.json").read_text())
    before = [folder.with_name(job_id) / "ended" for job_id in job["after"]]
    others = [folder.with_name(job_id) for job_id in job["after_any"]]

    def may_begin() -> bool:
        over = ((path / "ended").exists() or (path / "never").exists() for path in others)
        return all(path.exists() and path.read_text() == DONE for path in before) and all(over)

    while not may_begin():
        if any(path.exists() and path.read_text() != DONE for path in before):
            (folder / "never").touch()
        if (folder / "cancelled").exists():
            _write(folder / "ended", CANCELLED)
            return
        time.sleep(POLL_S)
    logs = Path(job["folder"]) / "log"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{job['id']}_0.log").open("ab") as log:
        process = subprocess.Popen(
            job["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=logs,
            env=_environment(os.environ, job["id"]), preexec_fn=lambda: os.nice(job["niceness"]),
        )  # fmt: skip
        _write(folder / "began", str(process.pid))
        while process.poll() is None:
            time.sleep(POLL_S)
            with contextlib.suppress(FileNotFoundError):
                if time.time() - (folder / "cancelled").stat().st_mtime > KILL_WAIT_S:
                    process.kill()
        _write(folder / "ended", f"exit code {process.returncode}")


def _environment(outer: Mapping[str, str], job_id: str) -> dict[str, str]:
    """Return a job's: its id, and where it finds this module."""
    path = os.pathsep.join([*filter(None, [outer.get("PYTHONPATH")]), str(Path(__file__).parent)])
    return {**outer, "PYTHONPATH": path, "ASL_JOB_ID": job_id}


def _write(path: Path, text: str) -> None:
    whole = path.with_name(f".{path.name}")
    whole.write_text(text)
    whole.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
