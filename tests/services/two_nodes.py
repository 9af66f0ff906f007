"""A Slurm cluster of two nodes on this machine, made from nothing, for tests.

    python tests/services/two_nodes.py install                # Debian packages; needs root
    python tests/services/two_nodes.py start FOLDER [--accounting]
    export SLURM_CONF=FOLDER/slurm.conf                    # sbatch, squeue, ... find it by this
    python tests/services/two_nodes.py stop FOLDER

Everything lives in FOLDER: configuration, keys, state, logs, the accounting's database, and the
process numbers of the daemons. Nothing of the machine's own Slurm, munge or hosts file is touched,
and several clusters may run side by side.
"""

import argparse
import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from debian import PackagesError, install

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")
NODES = ("n1", "n2")
DATABASE = "slurm_accounting"

SLURM_CONF = """
ClusterName=asltest
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.own.pid
SlurmdPidFile={folder}/run/slurmd-%n.own.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{settings}
{accounting}
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""

SETTINGS = {
    "KillWait": "5",
    "MinJobAge": "300",
    "SlurmdTimeout": "10",
    "MessageTimeout": "3",  # how long commands wait for a controller that is down
    "MaxArraySize": "1001",
    # a requeued job waits until its credential has expired: 120 s by default
    "CredentialSeconds": "5",
}

ACCOUNTING_CONF = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# so it is named for munge: where slurmdbd's clients find the socket
AccountingStoragePass={folder}/run/munge.socket
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc={database}
"""


class ClusterError(RuntimeError):
    """Raised when a daemon does not come up; says which and shows the end of its log."""


class TwoNodes:
    """The cluster in a folder, running or not.

    Attributes:
        folder: Absolute and short: munge's socket is in it, and such paths have at most 107
            characters.
        tied: The daemons end with the process that has started them, however that ends.
    """

    def __init__(self, folder: Path, *, tied: bool = False) -> None:
        self.folder = folder.resolve()
        self.tied = tied

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a shell needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def log(self, daemon: str) -> str:
        """Return what a daemon has written to its log."""
        path = self.folder / "log" / f"{daemon}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def call(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command against this cluster and return what it printed.

        Raises:
            ClusterError: It failed.
        """
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self, *, accounting: bool = False, **settings: str) -> None:
        """Write the configuration and start all daemons; return when both nodes are idle.

        Args:
            accounting: With slurmdbd on a MariaDB of its own, so that sacct works.
            settings: Over `SETTINGS`: lines of slurm.conf.

        Raises:
            ClusterError: A daemon does not come up.
        """
        for name in ("log", "run", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure(accounting, {**SETTINGS, **settings})
        self.start_munge()
        if accounting:
            self._start_database()
            self.start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def stop(self) -> None:
        """End all jobs, daemons and what jobs have left behind."""
        if self._pid("slurmctld") is not None:
            self.call(
                "scancel", "--signal=KILL", "--full", "--user", getpass.getuser(), check=False
            )
        daemons = (
            *(f"slurmd-{node}" for node in NODES),
            "slurmctld",
            "slurmdbd",
            "mariadbd",
            "munged",
        )
        for daemon in daemons:
            self.kill(daemon, signal.SIGTERM)
        for process in self._leftovers():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def clear(self, seconds: float = 60.0) -> None:
        """End all jobs; return when none is left and both nodes are idle.

        Raises:
            ClusterError: They do not come to rest.
        """
        mine = ("--user", getpass.getuser())

        def is_clear() -> bool:
            # again and again: a job that is just being requeued survives one scancel
            self.call("scancel", *mine, check=False)
            self.call("scancel", "--signal=KILL", "--full", *mine, check=False)
            return not self.call("squeue", "-h", *mine) and self._idle_nodes() == len(NODES)

        self._wait("slurmctld", is_clear, seconds)

    # one daemon at a time: for the faults that tests inject

    def start_munge(self) -> None:
        """Start munged with a key and a socket of its own."""
        key = self.folder / "munge.key"
        if not key.is_file():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(1024))
        run, log = self.folder / "run", self.folder / "log"
        self._start(
            "munged", "--foreground", "--force", f"--socket={run}/munge.socket",
            f"--key-file={key}", f"--pid-file={run}/munged.own.pid",
            f"--seed-file={run}/munge.seed", f"--log-file={log}/munged.log",
        )  # fmt: skip
        probe = ("munge", "-n", f"--socket={run}/munge.socket")
        self._wait("munged", lambda: _succeeds(*probe))

    def start_accounting(self) -> None:
        """Start slurmdbd, and make the cluster and one account known to it."""
        self._start("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self._answers("sacctmgr", "-n", "list", "cluster"))
        if "asltest" not in self.call("sacctmgr", "-n", "list", "cluster", "format=cluster"):
            self.call("sacctmgr", "-i", "add", "cluster", "asltest")
            self.call("sacctmgr", "-i", "add", "account", "lab", "cluster=asltest")
            self.call(
                "sacctmgr",
                "-i",
                "add",
                "user",
                getpass.getuser(),
                "account=lab",
                "defaultaccount=lab",
            )

    def start_controller(self) -> None:
        """Start slurmctld; it knows what it knew before."""
        self._start("slurmctld", "-D")
        self._wait("slurmctld", lambda: self._answers("scontrol", "ping"))

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=f"slurmd-{node}")

    def kill(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a daemon (`slurmctld`, `slurmd-n1`, ...) if it runs; return when it is gone."""
        pid = self._pid(daemon)
        if pid is None:
            return
        os.kill(pid, number)
        give_up = time.monotonic() + 20
        while self._pid(daemon) is not None:
            if time.monotonic() > give_up:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        (self.folder / "run" / f"{daemon}.pid").unlink(missing_ok=True)

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Wait until both nodes have nothing to do.

        Raises:
            ClusterError: They do not come to rest.
        """
        self._wait("slurmd-n1", lambda: self._idle_nodes() == len(NODES), seconds)

    def _idle_nodes(self) -> int:
        states = ("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D")
        return int(self.call(*states, check=False) or 0)

    def _configure(self, accounting: bool, settings: Mapping[str, str]) -> None:
        """Write slurm.conf, and slurmdbd.conf beside it."""
        if self.conf.is_file():
            return  # started again: the ports stay
        lines = {**settings}
        seconds = lines.pop("CredentialSeconds")
        lines["AuthInfo"] = f"cred_expire={seconds},socket={self.folder}/run/munge.socket"
        names = ("controller", "accounting", "database", *NODES)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        storage = "AccountingStorageType=accounting_storage/none"
        if accounting:
            storage = ACCOUNTING_CONF.format(port=ports["accounting"], folder=self.folder)
            conf = self.folder / "slurmdbd.conf"
            conf.touch(mode=0o600)  # slurmdbd refuses one that others can read
            conf.write_text(
                SLURMDBD_CONF.format(
                    folder=self.folder, user=getpass.getuser(), port=ports["accounting"],
                    database_port=ports["database"], database=DATABASE,
                )
            )  # fmt: skip
            (self.folder / "database.port").write_text(str(ports["database"]))
        nodes = (
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[node]} "
            "CPUs=2 RealMemory=8000 State=UNKNOWN"
            for node in NODES
        )
        self.conf.write_text(
            SLURM_CONF.format(
                folder=self.folder, user=getpass.getuser(), controller_port=ports["controller"],
                settings="\n".join(f"{name}={value}" for name, value in lines.items()),
                accounting=storage, nodes="\n".join(nodes),
            )
        )  # fmt: skip

    def _start_database(self) -> None:
        """Start a MariaDB of the cluster's own, on the loopback interface."""
        data, port = self.folder / "db", (self.folder / "database.port").read_text()
        as_me = f"--user={getpass.getuser()}"  # without it MariaDB refuses to be root
        if not (data / "mysql").is_dir():
            with (self.folder / "log" / "mariadb-install.log").open("w") as log:
                subprocess.run(
                    ["mariadb-install-db", "--no-defaults", as_me, f"--datadir={data}",
                     "--auth-root-authentication-method=normal", "--skip-test-db"],
                    stdout=log, stderr=log, check=True,
                )  # fmt: skip
        local = f"--socket={self.folder}/run/db.socket"
        self._start(
            "mariadbd", "--no-defaults", as_me, f"--datadir={data}", local, f"--port={port}",
            "--bind-address=127.0.0.1", f"--pid-file={data}/own.pid", "--skip-log-bin",
            "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        client = ("mariadb", "--no-defaults", local, "-u", "root", "-e")
        self._wait("mariadbd", lambda: _succeeds(*client, "select 1"))
        rights = "; ".join(
            f"create user if not exists slurm@'{host}' identified by 'slurm'; "
            f"grant all on {DATABASE}.* to slurm@'{host}'"
            for host in ("127.0.0.1", "localhost")
        )
        subprocess.run([*client, f"create database if not exists {DATABASE}; {rights}"], check=True)

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        """Start a daemon in the foreground of a session of its own, and note its number."""
        name = name or program
        tie = ("setpriv", "--pdeathsig", "TERM", "--") if self.tied else ()
        with (self.folder / "log" / f"{name}.out").open("a") as log:
            process = subprocess.Popen(
                [*tie, find_program(program), *arguments], env=os.environ | self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip
        (self.folder / "run" / f"{name}.pid").write_text(str(process.pid))
        _CHILDREN.append(process)

    def _pid(self, daemon: str) -> int | None:
        path = self.folder / "run" / f"{daemon}.pid"
        if not path.is_file():
            return None
        pid = int(path.read_text())
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for _ in range(100):
                environment = process.environ()
                if environment or process.status() == psutil.STATUS_ZOMBIE:
                    break
                time.sleep(0.02)  # it is just becoming another program, and has none for a moment
            ours = str(self.folder) in environment.get("SLURM_CONF", "")
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                return pid
        path.unlink()
        return None

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, check=False
        )
        return done.returncode == 0

    def _wait(self, daemon: str, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        give_up = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > give_up or self._pid(daemon) is None:
                out = self.folder / "log" / f"{daemon}.out"
                said = (out.read_text(errors="replace") + self.log(daemon)).splitlines()[-15:]
                raise ClusterError("\n".join([f"{daemon} is not ready; its log ends:", *said]))
            time.sleep(0.1)

    def _leftovers(self) -> list[psutil.Process]:
        """Return what is left of jobs of this cluster: a killed slurmd leaves them alone."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                ours = environment.get("SLURM_CONF") == str(self.conf)
                if ours and ("SLURM_JOB_ID" in environment or "slurmstepd" in process.name()):
                    found.append(process)
        return found


_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Daemons that this process has started; kept, or Python would complain that they still run."""


def missing_programs(*, accounting: bool = False) -> list[str]:
    """Return the programs of Slurm that this machine lacks."""
    wanted = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ()))
    return [program for program in wanted if find_program(program) == program]


def find_program(program: str) -> str:
    """Return a program's path, its bare name where there is none; daemons are in sbin."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
    return shutil.which(program, path=path) or program


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run one of the commands that the module's docstring shows."""
    parser = argparse.ArgumentParser(description="A two-node Slurm cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="Debian packages; needs root")
    start = commands.add_parser("start", help="configure and start")
    start.add_argument("folder", type=Path)
    start.add_argument("--accounting", action="store_true", help="with slurmdbd, so with sacct")
    commands.add_parser("stop", help="end everything").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        if arguments.command == "install":
            install(*PACKAGES, *ACCOUNTING_PACKAGES)
        elif arguments.command == "start":
            TwoNodes(arguments.folder).start(accounting=arguments.accounting)
        else:
            TwoNodes(arguments.folder).stop()
    except (ClusterError, PackagesError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"{arguments.command}: {time.monotonic() - started:.1f} s\n")


if __name__ == "__main__":
    main()
