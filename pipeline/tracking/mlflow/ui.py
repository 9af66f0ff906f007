"""Start MLflow's pages on the project's store, and say where to look."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType

from pipeline.errors import AslPipeError, UserError
from pipeline.tracking.mlflow.address import StoreAddress
from pipeline.tracking.mlflow.link import (
    RunLink,
    all_links,
    charts_fragment,
    results_fragment,
    runs_fragment,
)
from pipeline.tracking.mlflow.lock import tracking_lock

PORTS_TRIED = 50
START_SECONDS = 90.0
STOP_SECONDS = 10.0

APP = "asl-pipe"
"""Name under which pyproject.toml offers MLflow our pages, `pipeline.tracking.mlflow.app`."""

SERVER_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else eight more processes of 250 MB each
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def serve(root: Path, first_port: int, show: Callable[[str], None]) -> None:
    """Serve MLflow's pages until a signal to stop; its processes end with this one.

    Args:
        root: Folder that has `.dvc`.
        first_port: Where to listen on this machine; taken: the next one that is free.
        show: Prints a line.

    Raises:
        UserError: Nothing has been tracked yet, or no port is free.
        AslPipeError: The server did not start.
    """
    address = StoreAddress.of(root)
    if address.is_server:
        show(f"The store is already a server: {address.shown}")
        _show_pages(address.page, root, show)
        return
    if address.database is not None and not address.database.exists():
        raise UserError(
            f"no runs to show: {address.database} does not exist; run dvc repro first (or "
            "asl-pipe sync, if runs were made while the store could not be reached)"
        )
    port = free_port(first_port)
    if port != first_port:
        show(f"Port {first_port} is taken; {port} is not.")
    with tracking_lock(root):  # tables that are just being made must be complete
        log = root / ".asl" / "mlflow-server.log"
    with _stop_on_signals(), _server(address, port, log) as server:
        base = f"http://127.0.0.1:{port}"
        _wait_until_up(server, base, log)
        _show_pages(base, root, show)
        show("Ctrl-C stops it.")
        server.wait()
        raise AslPipeError(f"MLflow's server exited; see {log}")


def free_port(first: int) -> int:
    """Return the first port from `first` on that nobody listens on.

    Raises:
        UserError: Fifty in a row are taken.
    """
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        if _is_free(port):
            return port
    raise UserError(f"ports {first} and the {PORTS_TRIED - 1} after it are taken; use --port")


def pages(links: list[RunLink]) -> list[tuple[str, str]]:
    """Return (what, address after the server's) of the pages worth opening, by suite."""
    found: list[tuple[str, str]] = []
    for suite in dict.fromkeys(link.suite for link in links):
        own = [link for link in links if link.suite == suite]
        experiment_id = own[-1].experiment_id
        charts = charts_fragment(experiment_id)
        found.append((f"{suite}: charts of all experiments", charts))
        experiments = list(dict.fromkeys(link.key for link in own if link.parent_run_id))
        if len(experiments) > 1:
            names = ", ".join(experiments)
            found.append((f"{suite}: {names} side by side", results_fragment(experiment_id)))
        found.append((f"{suite}: all runs", runs_fragment(experiment_id)))
    return found


def _show_pages(base: str, root: Path, show: Callable[[str], None]) -> None:
    digest = StoreAddress.of(root).digest
    found = pages([link for link in all_links(root) if link.store == digest])
    for what, fragment in found or [("MLflow", "/#/experiments")]:
        show(f"{what}\n    {base}{fragment}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _server(address: StoreAddress, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server in a process group of its own, and end the whole group afterwards."""
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1"]  # fmt: skip
    if entry_points(group="mlflow.app", name=APP):  # an environment of an earlier version has none
        # the server looks for it in the current folder first, where another `pipeline` may be
        command += ["--app-name", APP, "--uvicorn-opts", shlex.join(["--app-dir", str(log.parent)])]
    if address.artifacts is not None:
        command += ["--artifacts-destination", address.artifacts.as_uri()]
    # By the environment and not as an argument: everybody can read the arguments of a process.
    settings = {"MLFLOW_BACKEND_STORE_URI": address.uri}
    environment = {**os.environ, **SERVER_SETTINGS, **settings, "PYTHONSAFEPATH": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and a hang-up of the terminal end us as Ctrl-C does, and silently."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_until_up(server: "subprocess.Popen[bytes]", base: str, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise AslPipeError(f"MLflow's server did not start: {_last_line(log)} (see {log})")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{base}/health", timeout=2).close()
            return
        time.sleep(0.2)
    raise AslPipeError(f"MLflow's server did not answer in {START_SECONDS:.0f} s; see {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
