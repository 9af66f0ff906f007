"""What every task of a job runs first: it becomes the process that it is for.

A copy of this file lies beside the submission: nothing of the project is imported, which may have
changed since. Needs the standard library and submitit, whose helper knows ranks under Slurm.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

SUBMISSION = "submission.json"
"""Commands and comments of a submission's jobs, in the order of the array's elements."""

PORTS = (20_000, 32_000)
"""Below the ports that Linux hands out by itself."""


SCONTROL_TIMEOUT_S = 60.0

HELD_BACK = (signal.SIGUSR1, signal.SIGUSR2)
"""The scheduler's warnings. They would end a process that has no handlers for them yet."""


def main(folder: Path) -> None:
    """Read which command this task is for, and become it."""
    # what is blocked stays so, and what has come stays pending, when the process becomes another
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    submission = json.loads((folder / SUBMISSION).read_text(encoding="utf-8"))
    become(submission[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]["command"])


def become(command: Sequence[str]) -> None:
    """Replace this process by the command, which is told its rank and where the first one is.

    A task is its command from then on: signals reach it, and its exit code is the task's. It has to
    unblock those in `HELD_BACK` once it is ready for them. The variables are those of torch's
    env:// rendezvous and those that every scheduler sets.
    """
    from submitit.helpers import TorchDistributedEnvironment

    job_id, restart = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    # a restart gets a port of its own, lest it meets what a lost start has left running
    port = random.Random(f"{job_id} {restart}").randrange(*PORTS)
    os.environ["MASTER_PORT"] = str(port)
    # CUDA_VISIBLE_DEVICES is Slurm's to set; a process picks its GPU by LOCAL_RANK
    processes = TorchDistributedEnvironment()
    processes.export(set_cuda_visible_devices=False, overwrite=True)
    one_node = processes.local_world_size == processes.world_size
    os.environ["MASTER_ADDR"] = "127.0.0.1" if one_node else address_of(processes.master_addr)
    name_for_all_schedulers(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        sys.exit(f"{command[0]} on {socket.gethostname()}: {error.strerror}; is it on this node?")


def name_for_all_schedulers(environment: MutableMapping[str, str]) -> None:
    """Say in variables that every scheduler sets what Slurm says in its own; see the port."""
    array, element = (environment.get(f"SLURM_ARRAY_{n}_ID") for n in ("JOB", "TASK"))
    said = {
        "ASL_JOB_ID": f"{array}_{element}" if array and element else environment["SLURM_JOB_ID"],
        "ASL_JOB_NODES": environment.get("SLURM_JOB_NODELIST"),
        "ASL_JOB_RESTARTS": environment.get("SLURM_RESTART_COUNT"),
        "ASL_JOB_CPUS": environment.get("SLURM_CPUS_PER_TASK"),
        "ASL_NODE": environment.get("SLURMD_NODENAME"),
    }
    for name, value in said.items():
        environment.pop(name, None)  # of the job from which this one was submitted
        if value is not None:
            environment[name] = value


def address_of(node: str) -> str:
    """Return what a node can be reached by: its name where that resolves, else Slurm's address.

    Exits with one line that names the node where neither does.
    """
    if _resolves(node):
        return node
    known = _addresses(node)
    for name in (known.get("NodeAddr"), known.get("NodeHostName")):
        if name is not None and _resolves(name):
            return name
    sys.exit(
        f"{socket.gethostname()} cannot resolve the name of the first node, {node}, nor Slurm's "
        f"address of it ({known.get('NodeAddr', 'none')}); add it to DNS or to /etc/hosts"
    )


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _addresses(node: str) -> dict[str, str]:
    """Return what Slurm knows of a node's addresses; nothing where it cannot be asked."""
    command = shutil.which("scontrol")
    if command is None:
        return {}
    try:
        shown = subprocess.run(
            [command, "show", "node", "--oneliner", node],
            capture_output=True, text=True, check=False, timeout=SCONTROL_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(re.findall(r"\b(NodeAddr|NodeHostName)=(\S+)", shown.stdout))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
