"""A project that is worked on from the command line, and the cluster that runs its jobs."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from two_nodes import TwoNodes

from pipeline.jobs.journal import effective_points, read_records
from pipeline.jobs.state import JobState
from pipeline.jobs.verdict import Patience, Verdict
from pipeline.results.dvc_cache import DvcCache
from pipeline.schedulers.port import QueuedJob
from pipeline.schedulers.slurm.scheduler import SlurmScheduler
from pipeline.submission.job_reports import JobReport, job_reports


class Lab:
    """Types commands in a project; looks at its records and at the queue.

    Attributes:
        root: The project.
        cluster: Where its jobs run.
        first_id: Jobs with lower numbers are those of other tests.
    """

    def __init__(self, root: Path, cluster: TwoNodes) -> None:
        self.root, self.cluster = root, cluster
        self.scheduler = SlurmScheduler(root / ".asl/slurm")
        self.shims = root.parent / "bin"
        self.first_id = 1 + max((_number(job) for job in self.scheduler.queue()), default=0)
        self._settings: dict[str, dict[str, Any]] = {"default": {"env": {}}}
        self.ask()

    # What a person does

    def ask(self, stage: str = "default", **settings: Any) -> None:
        """Write into cluster.yaml what jobs ask of Slurm."""
        self._settings.setdefault(stage, {}).update(settings)
        here = {"default": {"device": "cpu", "threads": 1, "log_every_steps": 1}}
        text = yaml.safe_dump({"local": here, "slurm": self._settings})
        (self.root / "cluster.yaml").write_text(text)

    def stub(self, **orders: Any) -> None:
        """Say what the stub stages of jobs do that are submitted from now on."""
        self.ask(env={"STUB": json.dumps(orders)})

    def edit(self, path: str, old: str, new: str) -> None:
        """Change a file of the project."""
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    @property
    def environment(self) -> dict[str, str]:
        """What a shell in the project has, the commands in `shims` before all others."""
        path = os.pathsep.join([str(self.shims), os.environ["PATH"]])
        return os.environ | {"PATH": path, "PYTHONPATH": str(self.root)}

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command in a session of its own."""
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment | environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def say(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command to its end and return what it said."""
        process = self.start(*command, **environment)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said

    def submit(self, *arguments: str, code: int = 0) -> str:
        return self.say("asl-pipe", "submit", *arguments, code=code)

    def put_in_the_way(self, command: str, script: str) -> Path:
        """Let a script be found instead of a command; REAL in it is the command's path."""
        which = ["which", command]
        real = subprocess.run(which, capture_output=True, text=True, check=True).stdout.strip()
        self.shims.mkdir(exist_ok=True)
        path = self.shims / command
        path.write_text("#!/bin/sh\n" + script.replace("REAL", real))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    # What is there

    def queue(self) -> list[QueuedJob]:
        """Return all jobs of this test, ended ones too."""
        return [job for job in self.scheduler.queue() if _number(job) >= self.first_id]

    def live(self) -> list[QueuedJob]:
        return [job for job in self.queue() if not job.has_ended]

    def reports(self, patience: Patience | None = None) -> dict[str, JobReport]:
        """Return the newest job of each run, by its name."""
        found = job_reports(self.root, self.scheduler, DvcCache(), patience=patience)
        return {report.job.name: report for report in found}

    def state(self, name: str) -> JobState:
        state = self.reports()[name].state
        assert state is not None
        return state

    def record(self, name: str) -> str:
        """Return what the records and logs of a run say, for a test that has failed."""
        report = self.reports().get(name)
        logs = [] if report is None else sorted((report.paths.folder / "log").glob("*"))
        said = "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in logs)
        return f"{report}\n{said}\n{self.queue()}"

    def wait(self, until: Callable[[], bool], name: str, seconds: float = 90.0) -> None:
        """Wait for something to be so; `name` is the run whose records show why it is not."""
        give_up = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < give_up, self.record(name)
            time.sleep(0.3)

    def wait_for(self, name: str, verdict: Verdict, seconds: float = 90.0) -> JobReport:
        """Wait until this is what became of a run; print it, for those who look with -s."""
        self.wait(lambda: self._verdict(name) is verdict, name, seconds)
        report = self.reports()[name]
        sys.stdout.write(f"{name}: job {report.job_id} {report.verdict} {report.finding.detail}\n")
        return report

    def _verdict(self, name: str) -> Verdict | None:
        report = self.reports().get(name)
        return None if report is None else report.verdict

    def wait_for_step(self, name: str, step: int) -> str:
        """Wait until a run has done so many steps and return its job's id."""

        def far_enough() -> bool:
            report = self.reports().get(name)
            if report is None or report.state is None or report.state.fingerprint is None:
                return False
            records = read_records(self.root / f".asl/jobs/{report.state.fingerprint}/journal")
            return any(r.kind == "metrics" and r.body["step"] >= step for r in records)

        self.wait(far_enough, name)
        job_id = self.reports()[name].job_id
        assert job_id is not None
        return job_id

    def losses(self, name: str) -> list[float]:
        """Return the training loss of each step of a run."""
        fingerprint = self.state(name).fingerprint
        points = effective_points(self.root / f".asl/jobs/{fingerprint}/journal")["pretrain/loss"]
        return [value for _, value, _ in points]

    def adopt(self, *names: str) -> str:
        """Let `dvc repro` take results home; nothing may run for it, and no job be added."""
        jobs = len(self.queue())
        said = self.say("dvc", "repro", *names)
        assert "Running stage" not in said.replace("Running stage 'code'", ""), said
        for name in names:
            assert f"Stage '{name}' is cached - skipping run" in said, said
            assert "up to date" in self.say("dvc", "status", name)
        assert len(self.queue()) == jobs
        return said

    def encoder(self) -> str:
        """Return what the stub has added up, after `dvc repro` has adopted it."""
        self.adopt("pretrain@asl")
        return (self.root / "runs/encoder/asl/encoder.safetensors").read_text()


def sum_after(steps: int) -> str:
    """Return what the stub's encoder is after so many undisturbed steps on the data of `icons`."""
    return str(len("icons") + sum(step**2 for step in range(1, steps + 1)))


def _number(job: QueuedJob) -> int:
    return int(job.job_id.partition("_")[0])
