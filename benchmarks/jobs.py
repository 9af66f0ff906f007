"""How long people wait for the commands about jobs: submit, adoption by dvc repro, status.

    python tests/services/two_nodes.py start /tmp/two
    export SLURM_CONF=/tmp/two/slurm.conf
    python benchmarks/jobs.py [--rounds 3] [--runs 40] [--records 200]

Asks whatever Slurm PATH and SLURM_CONF lead to, for a temporary project with this one's DAG and
code in which stages train nothing. Times whole command lines, as they are typed:

submit    of a sweep from nothing (jobs are held, so that nothing runs, and cancelled), and again
          when every run has a job; beside `dvc status`, which hashes what a submission has to
          hash, and beside sbatch alone
adoption  `dvc repro` of a sweep whose jobs have ended, beside one that has nothing to do
status    with records of jobs that have ended, beside the start of the program and squeue alone

`x` is the best time against the best time of the part's first line, measured in turn with it: what
counts are these ratios; the seconds move with whatever else the machine does, those of the
processor (`cpu`, least of the rounds) less. On another machine than a laptop the project must lie
where the nodes see it: `--folder`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.yaml_files import read_yaml
from pipeline.jobs.folder import JobFolder
from pipeline.jobs.job import PROVISIONAL, new_token, read_attempts, write_attempt, write_job
from pipeline.jobs.state import write_state
from pipeline.jobs.verdict import Verdict
from pipeline.results.dvc_cache import DvcCache
from pipeline.schedulers.port import SchedulerError
from pipeline.schedulers.slurm.scheduler import SlurmScheduler
from pipeline.stages.table import CODE_STAGE, key_of, stage_of
from pipeline.submission.cancel import cancel
from pipeline.submission.job_reports import JobReport, job_reports

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
ASL_PIPE, DVC = str(PROGRAMS / "asl-pipe"), str(PROGRAMS / "dvc")
HIDDEN = ("ASL_", "DVC_", "MLFLOW_", "GIT_", "SBATCH_", "SQUEUE_", "PYTHONDONTWRITEBYTECODE")
"""Variables of the caller's shell that would change what is measured."""

CODE_IS_CACHED = f"Stage '{CODE_STAGE}' is cached - skipping run"
"""What DVC says of the stage that is no run; the first time it runs it."""

ENDS_S = 3600.0
"""In which all jobs must have ended."""

SWEEP: dict[str, dict[str, Any]] = {
    "experiments": {"method": "mae", "dataset": "icons", "model": "vit-demo", "epochs": 2,
                    "warmup_epochs": 1},
    "linprobe": {"dataset": "icons"},
    "finetune": {"dataset": "icons"},
}  # fmt: skip
"""One recipe of each stage but prepare; the experiments of a sweep differ in their seed."""

STAGE = '''"""Leaves as many files as a pre-training with eight snapshots, and trains nothing."""

import json

from pipeline.stages.request import StageRequest


def run(request: StageRequest) -> dict[str, float]:
    values = {f"{request.stage}/loss": 1.0, f"{request.stage}/images_per_s": 8.0}
    request.journal.metrics(1, values)
    for number in range(10):
        (request.out / f"file-{number}").write_text(f"{request.stage} {request.key} {number}")
    if request.stage == "prepare":
        digests = {"train": "0123456789abcdef"}
        manifest = request.outputs["dataset"] / "manifest.json"
        manifest.write_text(json.dumps({"digests": digests}))
        return {}
    if request.stage == "pretrain":
        (request.outputs["encoder"] / "encoder.safetensors").write_text(request.key)
        (request.outputs["held_out"] / "step-000001.npz").write_text(request.key)
    return {f"{request.stage}/loss": 1.0}
'''


class Bench:
    """A temporary project, and the times of command lines in it.

    Args:
        root: Its folder, to be made.
        runs: Stage runs in its DAG.
    """

    def __init__(self, root: Path, runs: int) -> None:
        self.root, self.runs = root, runs
        self.seconds: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(HIDDEN)}
        path = os.pathsep.join([str(PROGRAMS), kept.get("PATH", os.defpath)])
        self.environment = kept | {"PATH": path, "PYTHONPATH": str(ROOT)}
        self.scheduler = SlurmScheduler(root / ".asl" / "slurm")
        self.cache = DvcCache()

    def make(self) -> None:
        """Lay the project out and commit it: DAG and code of this checkout, a sweep, no result."""
        self.root.mkdir()
        self.call("git", "init", "-q")
        self.call(DVC, "init", "-q")
        for name in (".dvc/config", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, self.root / name)
        # the database of file hashes too goes when the project goes
        self.call(DVC, "config", "core.site_cache_dir", str(self.root.parent / "site"))
        for name in ("asl_core", "pipeline"):
            compiled = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.root / name, ignore=compiled)
        for stage in ("prepare", "pretrain", "linprobe", "finetune"):
            (self.root / "pipeline" / "stages" / f"{stage}.py").write_text(STAGE)
        dag = read_yaml(ROOT / "dvc.yaml")
        del dag["stages"]["report"]  # it is no job, and `dvc repro` would make it
        self._write("dvc.yaml", dag)
        self._write("params.yaml", _sweep(self.runs))
        self.hold(True)
        self.call("git", "add", "-A")
        self.call("git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost",
                  "commit", "-qm", "Begin")  # fmt: skip

    def hold(self, held: bool) -> None:
        """Let jobs wait for ever, or run; not part of a result's identity."""
        cluster = read_yaml(ROOT / "cluster.yaml")
        default = cluster.setdefault("slurm", {}).setdefault("default", {})
        default["options"] = {**default.get("options", {}), "hold": held}
        self._write("cluster.yaml", cluster)

    def call(self, *command: str) -> str:
        """Run a command line in the project and return what it printed."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def time(self, name: str, *command: str) -> str:
        """Call, and keep the seconds under a name."""
        start, used = time.perf_counter(), _processor_seconds()
        said = self.call(*command)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        self.processor.setdefault(name, []).append(_processor_seconds() - used)
        return said

    def reports(self) -> list[JobReport]:
        return job_reports(self.root, self.scheduler, self.cache)

    def forget_jobs(self) -> None:
        """Cancel all jobs and remove what is known of them."""
        cancel(self.reports(), self.scheduler)
        shutil.rmtree(self.root / ".asl", ignore_errors=True)

    def wait_for_jobs(self) -> None:
        """Return when every job has succeeded."""
        give_up = time.monotonic() + ENDS_S
        while True:
            reports = self.reports()
            verdicts = {report.verdict for report in reports}
            if verdicts == {Verdict.SUCCEEDED}:
                return
            if verdicts & {Verdict.FAILED, Verdict.LOST, Verdict.BLOCKED}:
                said = [f"{r.job.name}: {r.verdict} {r.finding.detail}" for r in reports]
                raise SystemExit("\n".join(["not all jobs succeeded:", *said]))
            if time.monotonic() > give_up:
                raise SystemExit(f"jobs have not ended after {ENDS_S:.0f} s")
            time.sleep(5)

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def print_part(self, title: str, names: Sequence[str], each: str = "") -> None:
        """Print times of a part; `each` is the line that is shown for one stage run, too."""
        print(f"{title:36} median s    min s        x    cpu s")
        for name in names:
            median, best = statistics.median(self.seconds[name]), self.best(name)
            print(f"{name:36} {median:8.3f} {best:8.3f} {best / self.best(names[0]):8.2f}"
                  f" {min(self.processor[name]):8.3f}")  # fmt: skip
        if each:
            share = (self.best(each) - self.best(names[0])) / self.runs
            print(f"{'a stage run more':45} {share:8.3f}")
        sys.stdout.flush()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.root / name).write_text(yaml.safe_dump(content, sort_keys=False))


def _processor_seconds() -> float:
    """Return what the commands that have ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _sweep(runs: int) -> dict[str, Any]:
    """Return params of one dataset and of experiments with two evaluations each."""
    sections: dict[str, dict[str, Any]] = {section: {} for section in SWEEP}
    for number in range(runs - 1):
        section = tuple(SWEEP)[number % len(SWEEP)]
        seed = number // len(SWEEP)
        sections[section][f"s{seed:03d}"] = {**SWEEP[section], "seed": seed}
    return {
        "suite": "sweep", "title": "Sweep", "scale": "reduced", "tables": [],
        "datasets": {"icons": {"source": "icons", "train": 8, "test": 4}},
        **sections, "detect": {}, "segment": {}, "analyze": {},
    }  # fmt: skip


def measure_submission(bench: Bench, rounds: int) -> None:
    """Submit and attach, with jobs that are held."""
    bench.hold(True)
    names = (
        "dvc status", "sbatch, one job", "asl-pipe submit --all --dry-run",
        f"asl-pipe submit --all, {bench.runs} runs", "asl-pipe submit --all, all attached",
    )  # fmt: skip
    status, sbatch, dry_run, submit, attach = names
    bench.call(DVC, "status")  # whoever comes first would hash all the code
    for _ in range(rounds):
        bench.time(status, DVC, "status")
        job_id = bench.time(sbatch, "sbatch", "--parsable", "--hold", "--wrap=true").strip()
        bench.scheduler.cancel([job_id.partition(";")[0]])
        bench.time(dry_run, ASL_PIPE, "submit", "--all", "--dry-run")
        said = bench.time(submit, ASL_PIPE, "submit", "--all")
        _expect(said, "submitted", bench.runs)
        _expect(bench.time(attach, ASL_PIPE, "submit", "--all"), "attached", bench.runs)
        bench.forget_jobs()
    bench.print_part("submit", names)


def measure_adoption(bench: Bench, rounds: int) -> None:
    """Let jobs run, and `dvc repro` take what they have made."""
    bench.hold(False)
    bench.call(ASL_PIPE, "submit", "--all")
    bench.wait_for_jobs()
    names = ("dvc repro, nothing to do", f"dvc repro, {bench.runs} results of jobs")
    nothing, adopt = names
    for _ in range(rounds):
        for made in ("data", "runs"):
            shutil.rmtree(bench.root / made, ignore_errors=True)
        (bench.root / "dvc.lock").unlink(missing_ok=True)
        said = bench.time(adopt, DVC, "repro").replace(CODE_IS_CACHED, "")
        _expect(said, "is cached - skipping run", bench.runs)
        bench.time(nothing, DVC, "repro")
    bench.print_part("adoption", names, each=adopt)


def measure_status(bench: Bench, rounds: int, records: int) -> None:
    """Show the jobs that have ended."""
    add_records(bench, records)
    count = len(bench.reports())
    names = ("asl-pipe --help", "squeue --me", f"asl-pipe status, {count} records")
    floor, squeue, status = names
    bench.call(ASL_PIPE, "status")
    for _ in range(rounds):
        bench.time(floor, ASL_PIPE, "--help")
        bench.time(squeue, "squeue", "--me")
        _expect(bench.time(status, ASL_PIPE, "status"), str(Verdict.SUCCEEDED), count)
    bench.print_part("status", names)


def add_records(bench: Bench, count: int) -> None:
    """Copy records of jobs under other fingerprints, each with outputs of its own."""
    reports = bench.reports()
    jobs = bench.root / ".asl" / "jobs"
    for number in range(count - len(reports)):
        report = reports[number % len(reports)]
        job, state = report.job, report.state
        assert state is not None
        assert state.fingerprint is not None
        fingerprint = hashlib.sha256(str(number).encode()).hexdigest()
        # a job that was submitted before its inputs were there works in another folder
        work = JobFolder(jobs / fingerprint)
        shutil.copytree(jobs / state.fingerprint, work.folder, symlinks=True)
        provisional = job.fingerprint.startswith(PROVISIONAL)
        record = JobFolder(jobs / f"{PROVISIONAL}{fingerprint}" if provisional else work.folder)
        if provisional:
            shutil.copytree(report.paths.folder, record.folder, symlinks=True)
        stage, key = stage_of(job.name), key_of(job.name)
        places = {path: work.out / role for role, path in stage.output_paths(key).items()}
        for folder in places.values():
            (folder / "file-0").write_text(fingerprint)
        metrics = stage.metrics_path(key)
        if metrics is not None:
            work.metrics.write_text(json.dumps({"fingerprint": fingerprint}))
            places[metrics] = work.metrics
        if places.keys() != state.manifest.keys():
            raise SystemExit(f"{job.name}: has {[*state.manifest]} and not {[*places]}")
        manifest = {path: dict(h) for path, h in bench.cache.add(bench.root, places).items()}
        name = f"{job.name}-{number}"
        write_job(record, dataclasses.replace(job, name=name, fingerprint=record.fingerprint))
        attempt = dataclasses.replace(read_attempts(record)[-1], token=new_token())
        write_attempt(record, attempt)
        write_state(
            record,
            dataclasses.replace(
                state, token=attempt.token, fingerprint=fingerprint, manifest=manifest
            ),
        )


def _expect(said: str, text: str, times: int) -> None:
    """Refuse to time what did something else."""
    found = said.count(text)
    if found != times:
        raise SystemExit(f"expected {times} times {text!r}, found {found}:\n{said}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=40, help="stage runs of the sweep")
    parser.add_argument("--records", type=int, default=200, help="of jobs that have ended")
    parser.add_argument("--folder", type=Path, help="for the project; the nodes must see it")
    options = parser.parse_args(arguments)
    try:
        SlurmScheduler(Path.cwd()).queue()
    except SchedulerError as error:
        parser.exit(2, f"no Slurm answers ({error}); make one: python tests/services/two_nodes.py "
                       "start /tmp/two, then SLURM_CONF=/tmp/two/slurm.conf\n")  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # held jobs must not stay
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(
        prefix="asl-jobs-", dir=options.folder, ignore_cleanup_errors=True
    ) as folder:
        bench = Bench(Path(folder) / "project", options.runs)
        try:
            bench.make()
            measure_submission(bench, options.rounds)
            measure_adoption(bench, options.rounds)
            measure_status(bench, options.rounds, options.records)
        finally:
            with contextlib.suppress(SchedulerError):
                bench.forget_jobs()
    after = os.getloadavg()[0]
    print(f"{options.rounds} rounds; load average {load:.2f} before, {after:.2f} after")


if __name__ == "__main__":
    main()
