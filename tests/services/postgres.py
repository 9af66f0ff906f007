"""A PostgreSQL on this machine, made from nothing, for tests and benchmarks.

    python tests/services/postgres.py start FOLDER     # prints its address, password included
    python tests/services/postgres.py stop FOLDER

Everything lives in FOLDER. PostgreSQL refuses to run as root: then it runs as the user of Debian's
package.
"""

import argparse
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

PACKAGE = "postgresql"
USER = "postgres"
"""Of Debian's package."""


class PostgresError(RuntimeError):
    """Raised when a program of PostgreSQL fails; has the end of what it said."""


class Postgres:
    """A database server that listens on this machine only and asks for a password.

    Args:
        folder: Of everything that it needs; no folder above it may be closed to other users.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"

    def start(self) -> str:
        """Make the server, start it, and return the address of an empty database."""
        self.folder.mkdir(parents=True, exist_ok=True)
        password, port = secrets.token_hex(8), _free_port()
        secret = self.folder / "password"
        secret.write_text(password)
        if os.geteuid() == 0:
            for path in (self.folder, secret):
                shutil.chown(path, USER, USER)
        self._call("initdb", "-D", str(self.data), "-U", "asl", "--auth=scram-sha-256",
                   f"--pwfile={secret}")  # fmt: skip
        # a test's data need not survive a power cut
        options = f"-p {port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-D", str(self.data), "-o", options, "-w",
                   "-l", str(self.folder / "log"), "start")  # fmt: skip
        return f"postgresql://asl:{password}@127.0.0.1:{port}/postgres"

    def stop(self) -> None:
        """End the server; its folder stays."""
        self._call("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        path = find_program(program)
        if path is None:
            raise PostgresError(f"no {program}; apt-get install {PACKAGE}")
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        # not as pipes: the server, which stays, would inherit them
        with (self.folder / f"{program}.txt").open("w+") as said:
            done = subprocess.run(
                [*(user if os.geteuid() == 0 else []), path, *arguments],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False,
            )  # fmt: skip
            said.seek(0)
            if done.returncode != 0:
                raise PostgresError(f"{program}: {said.read().strip()[-2000:]}")


def find_program(program: str) -> str | None:
    """Return the path of a program of PostgreSQL, of Debian's newest version if not on PATH."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)],
        reverse=True,
    )
    path = os.pathsep.join([os.environ.get("PATH", ""), *(str(v / "bin") for v in versions)])
    return shutil.which(program, path=path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Start or stop."""
    parser = argparse.ArgumentParser(description="A PostgreSQL on this machine.")
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    server = Postgres(arguments.folder)
    try:
        if arguments.command == "start":
            sys.stdout.write(f"{server.start()}\n")
        else:
            server.stop()
    except PostgresError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
