"""A tracking server that asks for a password: runs get there, the password gets nowhere."""

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

USER, PLANTED = "lab", "kaltmamsell77"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length"}


@pytest.fixture
def port() -> Iterator[int]:
    """One that nobody else gets meanwhile; a server can listen there all the same."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def open_server(port: int, tmp_path: Path) -> Iterator[str]:
    """MLflow's own server, which lets everybody in; its store and its log are in `server`."""
    folder = tmp_path / "server"
    folder.mkdir()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        give_up = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()


@pytest.fixture
def guarded(open_server: str) -> Iterator[str]:
    """Address, without its `http://`, of a proxy before it that asks for user and password."""
    right = "Basic " + base64.b64encode(f"{USER}:{PLANTED}".encode()).decode()

    class Guard(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != right:
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = {k: v for k, v in self.headers.items() if k not in ("Host", "Authorization")}
            behind = http.client.HTTPConnection(open_server, timeout=60)
            behind.request(self.command, self.path, body, asked)
            answer = behind.getresponse()
            said = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            behind.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def holders(folder: Path, text: str) -> list[str]:
    """Return the files below a folder that have a text in them, or in their names."""
    found = []
    for path in folder.rglob("*"):
        inside = path.is_file() and text.encode() in path.read_bytes()
        if inside or text in path.name:
            found.append(str(path))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["in MLflow's own variables", "in the address"])
def test_a_password_lets_runs_in_and_is_written_nowhere(
    stub_project: Path, open_server: str, guarded: str, place: str
) -> None:
    root, folder = stub_project, stub_project.parent
    address = f"http://{guarded}"
    here = {"PYTHONPATH": str(root), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    if place == "in the address":
        keys = {"MLFLOW_TRACKING_URI": f"http://{USER}:{PLANTED}@{guarded}"}
    else:
        keys = {
            "MLFLOW_TRACKING_URI": address,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PLANTED,
        }
    said: list[str] = []

    def say(*command: str, **environment: str) -> int:
        # to a file: whoever reads a pipe waits for the processes that bring runs into MLflow too
        with (folder / f"said-{len(said)}").open("w+") as file:
            done = subprocess.run(
                command, cwd=root, env=os.environ | here | environment, check=False,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
            file.seek(0)
            said.append(file.read())
        return done.returncode

    # an error that has the password in it, as those of libraries sometimes have
    orders = json.dumps({"steps": 3, "full": f"/nowhere/{keys['MLFLOW_TRACKING_URI']}/{PLANTED}"})
    known = {"MLFLOW_TRACKING_PASSWORD": PLANTED, **keys}  # else nothing says what it is
    assert say("dvc", "repro", "pretrain@asl", STUB=orders, **known) != 0
    assert "No such file" in said[-1]
    assert say("dvc", "repro", "linprobe@asl", **keys) == 0, said[-1]
    assert say("asl-pipe", "sync", **keys) == 0, said[-1]
    client = MlflowClient(tracking_uri=f"http://{open_server}")
    experiment = client.get_experiment_by_name("asl/tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {"pretrain/asl", "linprobe/asl", "asl"} <= {run.info.run_name for run in runs}
    for link in (root / ".asl/jobs").glob("*/mlflow.json"):
        link.unlink()
    wrong = {name: value.replace(PLANTED, "not-this-one") for name, value in keys.items()}
    assert say("asl-pipe", "sync", **wrong) == 75
    assert "does not accept" in said[-1]
    assert "(401)" in said[-1]
    assert "nothing is lost" in said[-1]
    assert "Traceback" not in said[-1]
    for secret in (PLANTED, "not-this-one"):
        assert holders(folder, secret) == []
