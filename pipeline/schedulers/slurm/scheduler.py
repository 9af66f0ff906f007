"""Slurm: submitit writes what sbatch is given; squeue, scontrol, scancel and sacct are asked.

submitit's own view of a job (`done()`, `result()`, `state`) is not used: without accounting it
waits for ever, and after a preemption it says that a job failed which runs on.
Writes one folder per submission, whole before sbatch is called: a client that is killed while
sbatch runs leaves a job that lacks nothing.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.container import PYXIS
from pipeline.config.job_resources import JobResources
from pipeline.schedulers.port import (
    ARRAY_COMMENT,
    Account,
    BatchJob,
    EndKind,
    JobPhase,
    NoSchedulerError,
    QueuedJob,
    SchedulerError,
    SubmitError,
)
from pipeline.schedulers.slurm import task
from pipeline.schedulers.slurm.accounting import columns, read_accounts
from pipeline.schedulers.slurm.refusals import is_refusal
from pipeline.schedulers.slurm.resources import SlurmResources
from pipeline.schedulers.slurm.states import (
    NEVER_BEGAN,
    NEVER_SATISFIED,
    end_kind,
    is_over,
    phase_of,
)
from pipeline.writing import write_json

NOT_THERE = re.compile(r"invalid job id|already completing or completed", re.IGNORECASE)
NO_CLUSTER = re.compile(r"could not establish a configuration source", re.IGNORECASE)
"""What the programs say on a machine on which they were installed and nothing else."""

NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)

QUEUE_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "NodeList", "Comment")
QUEUE_WIDTHS = (64, 32, 64, 16, 1024, 1024)
"""squeue cuts what is longer."""

NO_MEMORY = re.compile(
    rb"slurmstepd.*(oom.kill event|exceeded memory limit|exceeded job memory limit)", re.IGNORECASE
)
"""What slurmstepd writes into the log of a job that it, or the kernel, kills for its memory."""
_LOG_TAIL = 1 << 16

IDS_PER_CALL = 500

_OUT_OF_USE = ("down", "drain", "fail", "maint", "unknown", "reboot")
"""How sinfo's words for nodes begin that start no job, or soon none."""

SUBMIT_TIMEOUT_S = 300.0
"""sbatch itself tries for two minutes while the controller has no room."""

KEPT_S = 24 * 3600.0
"""Submissions that are younger are kept: their jobs may not show in the queue yet."""


class SlurmScheduler:
    """The Slurm cluster that the commands on this machine's PATH talk to.

    Args:
        folder: Where submissions leave their files; on the shared filesystem, and the same for
            whoever submits and whoever asks.
        timeout_s: A command that takes longer has not answered.
    """

    def __init__(self, folder: Path, timeout_s: float = 60.0) -> None:
        self.folder = folder.absolute()
        self.timeout_s = timeout_s

    def submit(self, jobs: Sequence[BatchJob]) -> list[str]:
        """Hand jobs over; those that differ in name, comment and command only become arrays.

        Raises:
            SubmitError: With the ids of the jobs that were taken before; `ambiguous` if the
                array at which it stopped may be in the queue all the same.
        """
        ids: list[str | None] = [None] * len(jobs)
        try:
            for positions in self._arrays(jobs):
                taken = self._hand_over([jobs[position] for position in positions])
                for position, job_id in zip(positions, taken, strict=True):
                    ids[position] = job_id
        except SubmitError as error:
            raise SubmitError(str(error), ambiguous=error.ambiguous, job_ids=ids) from error
        except SchedulerError as error:  # how long an array may be could not be asked
            raise SubmitError(str(error), ambiguous=False, job_ids=ids) from error
        return [job_id for job_id in ids if job_id is not None]

    def queue(self) -> list[QueuedJob]:
        """Return this user's jobs, ended ones too for as long as Slurm's MinJobAge.

        Raises:
            NoSchedulerError: Slurm's programs are not on this machine, or know of no cluster.
            SchedulerError: squeue failed, or said what cannot be read.
        """
        if not any(map(shutil.which, ("squeue", "sbatch"))):
            raise NoSchedulerError("there is no Slurm here: neither sbatch nor squeue is on PATH")
        # variables such as SQUEUE_PARTITION would hide jobs
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
        columns = zip(QUEUE_FIELDS, QUEUE_WIDTHS, strict=True)
        wanted = ",".join(f"{field}:{width}|" for field, width in columns)
        said = self._ask(
            "squeue", "--me", "--all", "--noheader", "--array", "--states=all",
            f"--Format={wanted}", environment=environment,
        )  # fmt: skip
        comments = functools.cache(self._comments)
        return [_read_queue_line(line, comments) for line in said.splitlines()]

    def cancel(self, job_ids: Sequence[str]) -> None:
        """End jobs with scancel; ids that Slurm does not know any more are no error.

        Raises:
            SchedulerError: scancel failed.
        """
        for start in range(0, len(job_ids), IDS_PER_CALL):
            done = self._run("scancel", *job_ids[start : start + IDS_PER_CALL])
            complaints = [line for line in done.stderr.splitlines() if line.strip()]
            if done.returncode != 0 and not all(map(NOT_THERE.search, complaints or [""])):
                raise SchedulerError(f"scancel: {_tidy(done.stderr)}")

    def requeue(self, job_id: str) -> None:
        """Put a job back into the queue with scontrol.

        A job that is being cancelled ends with the same signal as one that is preempted, and
        Slurm would let it rise again.

        Raises:
            SchedulerError: Slurm refuses, requeues it already, or is ending it for good.
        """
        try:
            job = self._show_job(job_id)
            if job.get("JobState") == "COMPLETING" and job.get("Reason") != "TimeLimit":
                raise SchedulerError("it is already being cancelled")
            self._ask("scontrol", "requeue", job_id)
        except SchedulerError as error:
            raise SchedulerError(f"job {job_id} is not requeued: {error}") from error

    def send_signal(self, job_id: str, name: str) -> None:
        """Send a signal to all tasks of a job, as Slurm does before a time limit.

        Raises:
            SchedulerError: scancel failed.
        """
        self._ask("scancel", f"--signal={name}", job_id)

    def explain(self, job_id: str) -> str | None:
        """Return why a job ended: what accounting says, else what the controller remembers."""
        with contextlib.suppress(SchedulerError):
            said = self._ask(
                "sacct", "--jobs", job_id, "--allocations", "--noheader", "--parsable2",
                "--format=State,ExitCode,Reason",
            ).splitlines()  # fmt: skip
            if said:
                return _explanation(*said[-1].split("|", 2))
        with contextlib.suppress(SchedulerError):
            job = self._show_job(job_id)
            return _explanation(job["JobState"], job.get("ExitCode", ""), job.get("Reason", ""))
        return None

    def ends_of(self, job_id: str) -> list[EndKind]:
        """Return how a job's starts ended: of all where there is accounting, else of the last.

        Where no cgroup limits memory Slurm calls a job FAILED that it has killed for it, and in a
        step it may do so even where one does: what it wrote into the job's log tells.
        """
        ends = self._known_ends(job_id)
        if ends[-1:] in ([], [EndKind.OTHER]) and self._ran_out_of_memory(job_id):
            return [*ends[:-1], EndKind.OUT_OF_MEMORY]
        return ends

    def _ran_out_of_memory(self, job_id: str) -> bool:
        """Say whether Slurm has written into a job's log that it used too much memory."""
        for path in self.folder.glob(f"2*-*/*/log/{job_id}_*.log"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LOG_TAIL))
                if NO_MEMORY.search(file.read()):
                    return True
        return False

    def _known_ends(self, job_id: str) -> list[EndKind]:
        with contextlib.suppress(SchedulerError):
            said = self._ask(
                "sacct", "--jobs", job_id, "--allocations", "--duplicates", "--noheader",
                "--parsable2", "--format=JobID,State",
            )  # fmt: skip
            rows = [line.split("|", 1) for line in said.splitlines() if "|" in line]
            states = [state for found, state in rows if found == job_id]
            if states and is_over(states[-1]):
                return [end_kind(state) for state in states]
        with contextlib.suppress(SchedulerError):
            state = self._show_job(job_id).get("JobState", "")
            if is_over(state):
                return [end_kind(state)]
        return []

    def accounts_of(self, job_ids: Sequence[str]) -> list[Account]:
        """Return what sacct says of jobs, as few calls as there can be; nothing without accounting.

        Raises:
            SchedulerError: There is accounting, and it does not answer.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SACCT_")}
        environment["SLURM_TIME_FORMAT"] = "%s"
        found: list[Account] = []
        for start in range(0, len(job_ids), IDS_PER_CALL):
            try:
                said = self._ask(
                    "sacct", "--jobs", ",".join(job_ids[start : start + IDS_PER_CALL]),
                    "--duplicates", "--noheader", "--parsable2", columns(),
                    environment=environment,
                )  # fmt: skip
            except SchedulerError as error:
                if NO_ACCOUNTING.search(str(error)) or isinstance(error, _NotFoundError):
                    return []
                raise
            found += read_accounts(said)
        return found

    def node_names(self, nodes: str) -> tuple[str, ...]:
        """Return the names of nodes that squeue writes as one word, with scontrol.

        Raises:
            SchedulerError: scontrol failed.
        """
        if not re.search(r"[\[,]", nodes):
            return (nodes,) if nodes else ()
        return tuple(self._ask("scontrol", "show", "hostnames", nodes).split())

    def eligible_nodes(self, resources: JobResources) -> tuple[str, ...]:
        """Return the nodes of a job's partitions that are not down and have what it asks for.

        A constraint of more than names joined by & is not looked at.

        Raises:
            SchedulerError: sinfo failed.
        """
        partition = resources.partition if isinstance(resources, SlurmResources) else None
        named = [] if partition is None else [f"--partition={partition}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SINFO_")}
        said = self._ask(
            "sinfo", "--noheader", "--Node", "--responding", "--format=%N %T %P %G %f", *named,
            environment=environment,
        )  # fmt: skip
        rows = [line.split() for line in said.splitlines()]
        usable = [row for row in rows if len(row) == 5 and not row[1].startswith(_OUT_OF_USE)]
        usable = [row for row in usable if _has_what_is_asked(row[3], row[4], resources)]
        if partition is None:  # the default one has a star
            usable = [row for row in usable if row[2].endswith("*")]
        return tuple(sorted({row[0] for row in usable}))

    def longest_array(self) -> int | None:
        """Return the largest index of an array, plus one; None where Slurm does not say.

        Raises:
            SchedulerError: The controller does not answer.
        """
        longest = self.configuration().get("MaxArraySize", "")
        return int(longest) if longest.isdigit() else None

    def configuration(self) -> dict[str, str]:
        """Return the cluster's settings by their names in slurm.conf.

        Raises:
            SchedulerError: The controller does not answer.
        """
        lines = self._ask("scontrol", "show", "config").splitlines()
        pairs = (line.split("=", 1) for line in lines if "=" in line)
        return {name.strip(): value.strip() for name, value in pairs}

    def try_out(self, resources: JobResources) -> str:
        """Ask sbatch when a job with these resources would start; nothing is submitted.

        Raises:
            SchedulerError: It never would: says why.
        """
        job = BatchJob("doctor", self.folder / "nowhere", "", ("true",), resources)
        folder = self._new_folder()
        try:
            folder.mkdir(parents=True)
            script = _write_script([job], folder)
            done = self._run("sbatch", "--test-only", str(script), environment=_outside_of_jobs())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        said = _tidy(done.stderr)  # it answers there, also when it succeeds
        if done.returncode != 0:
            raise SchedulerError(f"sbatch: {said}")
        return said

    def remove_old_submissions(self, needed: Collection[Path] = ()) -> int:
        """Remove the files of submissions none of whose jobs can run again; return how many.

        Those of other users stay: the queue does not show their jobs. So do those that lead to
        folders in `needed`, where a site's rules take the comments away that tell jobs apart.

        Raises:
            SchedulerError: The queue cannot be asked.
        """
        live = {job.comment for job in self.queue() if not job.has_ended}
        kept = {path.resolve() for path in needed}
        removed = 0
        for folder in self.folder.glob("2*-*"):
            comments = self._comments(folder.name)
            found = folder.stat()
            old = time.time() - found.st_mtime > KEPT_S and found.st_uid == os.getuid()
            leads_to = {path.resolve() for path in folder.iterdir() if path.is_symlink()}
            if old and live.isdisjoint(comments) and leads_to.isdisjoint(kept):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def _new_folder(self) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return self.folder / f"{stamp}-{secrets.token_hex(4)}"

    def _arrays(self, jobs: Sequence[BatchJob]) -> Iterator[list[int]]:
        """Return positions of jobs that can be one array, no longer than the cluster allows."""
        alike: list[list[int]] = []
        for position, job in enumerate(jobs):
            for group in alike:
                if _asks_the_same(jobs[group[0]], job):
                    group.append(position)
                    break
            else:
                alike.append([position])
        longest = max(map(len, alike), default=0)
        allowed = self.longest_array() if longest > 1 else None
        most = max(1, longest if allowed is None else allowed)  # 0: there are no arrays
        for group in alike:
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _hand_over(self, jobs: Sequence[BatchJob]) -> list[str]:
        """Call sbatch once: for one job, or for an array; return the ids."""
        folder = self._new_folder()
        try:
            _lay_out(folder, jobs)
            script = _write_script(jobs, folder)
        except OSError as error:
            raise SubmitError(f"cannot write {folder}: {error}", ambiguous=False) from error
        try:
            done = self._run(
                "sbatch", "--parsable", str(script), environment=_outside_of_jobs(),
                timeout_s=max(SUBMIT_TIMEOUT_S, self.timeout_s),
            )  # fmt: skip
        except _NotFoundError as error:
            raise SubmitError(str(error), ambiguous=False) from error
        except SchedulerError as error:
            raise SubmitError(str(error), ambiguous=True) from error
        said = _tidy(done.stderr or done.stdout)
        if done.returncode != 0:
            raise SubmitError(f"sbatch: {said}", ambiguous=not is_refusal(said))
        answer = re.fullmatch(r"(\d+)(;\S*)?", done.stdout.strip())  # 27, or 27;cluster
        if answer is None:
            raise SubmitError(f"sbatch: no job id in its answer: {said}", ambiguous=True)
        if len(jobs) == 1:
            return [answer[1]]
        return [f"{answer[1]}_{index}" for index in range(len(jobs))]

    def _comments(self, name: str) -> list[str]:
        """Return the comments of a submission's jobs; none where its folder is not here."""
        try:
            content = json.loads((self.folder / name / task.SUBMISSION).read_text("utf-8"))
            return [job["comment"] for job in content]
        except (OSError, ValueError):
            return []

    def _show_job(self, job_id: str) -> dict[str, str]:
        """Return what the controller remembers of a job."""
        lines = self._ask("scontrol", "show", "job", "--oneliner", job_id).splitlines()
        return dict(re.findall(r"(\S+?)=(\S*)", lines[-1] if lines else ""))

    def _ask(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Return what a command of Slurm says.

        Raises:
            SchedulerError: It is not there, does not answer in time, or fails.
        """
        done = self._run(*command, environment=environment)
        if done.returncode != 0:
            if NO_CLUSTER.search(done.stderr):
                raise NoSchedulerError(
                    f"there is no Slurm here: {command[0]} finds neither slurm.conf nor controller"
                )
            raise SchedulerError(f"{command[0]}: {_tidy(done.stderr or done.stdout)}")
        return done.stdout

    def _run(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command of Slurm.

        Raises:
            SchedulerError: It is not there, or does not answer in time.
        """
        timeout_s = timeout_s or self.timeout_s
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False,
                timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise _NotFoundError(
                f"{command[0]}: {error.strerror}; go to a login node of the cluster"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SchedulerError(
                f"{command[0]} has not answered for {timeout_s:.0f} s; try again later"
            ) from error


class _NotFoundError(SchedulerError):
    """Raised when there is no such command on this machine."""


def _has_what_is_asked(generic: str, features: str, resources: JobResources) -> bool:
    """Say whether a node can have a job, as far as sinfo tells.

    Args:
        generic: Its resources, `gpu:a100:4(S:0-1),nvme:1`.
        features: `ib,avx512`.
        resources: What the job asks for.
    """
    kind = getattr(resources, "gpu_type", None)
    wanted = f"gpu:{kind}:" if kind else "gpu:"
    if resources.gpus and not any(each.startswith(wanted) for each in generic.split(",")):
        return False
    constraint = getattr(resources, "constraint", None) or ""
    plain = re.fullmatch(r"[\w.&-]+", constraint)
    return plain is None or set(constraint.split("&")) <= set(features.split(","))


def _asks_the_same(one: BatchJob, other: BatchJob) -> bool:
    """Say whether two jobs can be elements of one array."""

    def asked(job: BatchJob) -> tuple[object, ...]:
        return job.resources, job.setup, job.after, job.after_any, job.drop, job.avoid

    return asked(one) == asked(other)


def _lay_out(folder: Path, jobs: Sequence[BatchJob]) -> None:
    """Make a submission's folder: what tasks read, and links by which logs find their jobs."""
    folder.mkdir(parents=True)
    for index, job in enumerate(jobs):
        (job.folder / "log").mkdir(parents=True, exist_ok=True)
        (folder / str(index)).symlink_to(job.folder.absolute(), target_is_directory=True)
    content = [{"comment": job.comment, "command": list(job.command)} for job in jobs]
    write_json(folder / task.SUBMISSION, content)
    shutil.copyfile(task.__file__, folder / "task.py")


def _write_script(jobs: Sequence[BatchJob], folder: Path) -> Path:
    """Write what sbatch is given for a job, or for an array of jobs that ask the same."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError as error:  # it looks for srun
        raise SubmitError(
            "there is no srun on PATH; go to a login node of the cluster", ambiguous=False
        ) from error
    executor.update_parameters(**_parameters(jobs, folder))
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    command = shlex.join([_python(jobs[0].resources), "-P", str(folder / "task.py"), str(folder)])
    script = folder / "submission.sh"
    text = executor._make_submission_file_text(command, uid="")  # pyright: ignore[reportPrivateUsage]
    script.write_text(text, encoding="utf-8")
    return script


def _parameters(jobs: Sequence[BatchJob], folder: Path) -> dict[str, Any]:
    """Return submitit's parameters of a job, or of an array of jobs that ask the same."""
    first, resources = jobs[0], jobs[0].resources
    assert isinstance(resources, SlurmResources)
    options: dict[str, Any] = {
        name.replace("_", "-"): value
        for name, value in resources.options.items()
        if value is not False
    }
    if first.avoid:
        own = [str(options["exclude"])] if "exclude" in options else []
        options["exclude"] = ",".join(dict.fromkeys([*own, *first.avoid]))
    if first.drop and first.after:
        options["kill-on-invalid-dep"] = "yes"
    options["requeue" if resources.requeue == "allowed" else "no-requeue"] = True
    options["chdir"] = folder
    here = str(folder).replace("%", "%%")
    if len(jobs) == 1:
        name, comment, log = first.name, first.comment, f"{here}/0/log/%j"
    else:
        name, comment = f"{first.name} +{len(jobs) - 1}", ARRAY_COMMENT + folder.name
        log = f"{here}/%a/log/%A_%a"
    options["output"] = f"{log}_0.log"  # the batch shell writes where its first task does
    return {
        "job_name": name,
        "comment": comment,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": _gpus(resources),
        "mem": resources.memory,
        "time": resources.time,
        "constraint": resources.constraint,
        "dependency": _dependency(first),
        "signal_delay_s": resources.warning_seconds,
        # a stage must not run in another environment than was asked for
        "setup": ["set -e", *first.setup, "set +e"],
        "array_parallelism": min(len(jobs), resources.max_running or len(jobs)),
        "wckey": None,  # submitit has one of its own, which a cluster may not know
        "stderr_to_stdout": True,
        "additional_parameters": options,
        "srun_args": [
            f"--output={log}_%t.log", "--open-mode=append",
            "--export=ALL",  # what setup exports, whatever --export sbatch was given
            "--kill-on-bad-exit=1",  # else ranks wait for a dead one until the time limit
            "--wait=0",  # a site may have ranks killed a while after the first one has ended
            f"--cpus-per-task={resources.cpus}",  # srun does not take it from sbatch since 22.05
            *_entering(resources),
        ],
    }  # fmt: skip


def _python(resources: JobResources) -> str:
    """Return the interpreter of tasks: where srun enters a container first, the image's."""
    container = resources.container
    return container.python if container and container.runtime == PYXIS else sys.executable


def _entering(resources: SlurmResources) -> list[str]:
    """Return srun's options of the plugin pyxis, https://github.com/NVIDIA/pyxis/wiki/Usage."""
    container = resources.container
    if container is None or container.runtime != PYXIS:
        return []
    mounts = (bind if ":" in bind else f"{bind}:{bind}" for bind in container.binds)
    return [
        f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}",
        # what the image sets under these names would win
        "--container-env=PYTHONPATH,PYTHONNOUSERSITE", *container.options,
    ]  # fmt: skip


def _gpus(resources: SlurmResources) -> str | int | None:
    """Return what is asked for on each node: 4, or a100:4."""
    kind = resources.gpu_type
    return f"{kind}:{resources.gpus}" if kind and resources.gpus else resources.gpus or None


def _dependency(job: BatchJob) -> str | None:
    """Return what a job waits for; of arrays that need only have ended, the whole."""
    arrays = dict.fromkeys(job_id.partition("_")[0] for job_id in job.after_any)
    parts = [f"{kind}:{':'.join(ids)}"
             for kind, ids in (("afterok", job.after), ("afterany", arrays)) if ids]  # fmt: skip
    return ",".join(parts) or None


def _read_queue_line(line: str, comments: Callable[[str], list[str]]) -> QueuedJob:
    """Read one line of squeue."""
    parts = [part.strip() for part in line.split("|", len(QUEUE_FIELDS) - 1)]
    if len(parts) != len(QUEUE_FIELDS):
        raise SchedulerError(f"squeue printed an unexpected line: {line.strip()!r}")
    job_id, state, reason, restarts, nodes, comment = parts
    comment = comment.removesuffix("|").strip()
    if comment.startswith(ARRAY_COMMENT):
        own = comments(comment.removeprefix(ARRAY_COMMENT))
        index = job_id.partition("_")[2]
        if index.isdigit() and int(index) < len(own):
            comment = own[int(index)]
    phase = phase_of(state)
    return QueuedJob(
        job_id=job_id,
        phase=phase,
        said=state,
        reason="" if reason == "None" else reason,
        can_never_start=phase is JobPhase.WAITING and reason == NEVER_SATISFIED,
        never_began=state in NEVER_BEGAN,
        comment="" if comment == "(null)" else comment,
        nodes=nodes,
        restarts=int(restarts) if restarts.isdigit() else None,
    )


def _explanation(state: str, exit_code: str, reason: str) -> str:
    """Return one line: `FAILED, exit code 1`, `CANCELLED by 1000`, `OUT_OF_MEMORY, signal 9`."""
    code, _, number = exit_code.partition(":")
    parts = [state]
    if code not in ("", "0"):
        parts.append(f"exit code {code}")
    if number not in ("", "0"):
        parts.append(f"signal {number}")
    if reason not in ("", "None", "(null)"):
        parts.append(reason)
    return ", ".join(parts)


def _outside_of_jobs() -> dict[str, str]:
    """Return this process's environment without the job that it may be part of.

    sbatch hands it on: an element of an array that submits a job would make that one believe to be
    an element too. And without SBATCH_*, which would win over cluster.yaml.
    """
    inside = ("SLURM_", "SUBMITIT_", "SBATCH_")
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(inside)
    }


def _tidy(said: str) -> str:
    """Return what a command said, one line for each, without its name before each."""
    lines = (re.sub(r"^(\w+: )?(error: )?", "", line) for line in said.strip().splitlines())
    return "; ".join(line for line in lines if line) or "it failed without a message"
