"""What tracking costs a training run, and what becomes of its points when the server does not.

    python benchmarks/tracking.py [--seconds 60] [--rounds 2] [--every 5] [--conditions ...]
                                  [--points 100000] [--uri URI ...]

steps   The same training step in turn without a journal; with one that nobody brings anywhere; and
        with one that a process brings into MLflow as beside a stage, but every five seconds and
        not every 30: to an `mlflow server` that is up, to a port that refuses, to one that takes
        connections and says nothing, and to a server that is killed midway. `x` is the median step
        against the one without a journal. Afterwards the server is there again, `asl-pipe sync`
        runs once, and the points that it has are counted: how many, how many are lost, how many
        are there twice.
points  So many points: written into a journal, brought into a new sqlite store, into a server over
        HTTP and into each --uri (postgresql://...), beside `log_metric` one by one in each.

On a laptop the server and the process that brings the journal take part of the same cores; on a
cluster the server is elsewhere. What counts are the ratios and the counts.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from mlflow import MlflowClient

from asl_core.engine.journal import Journal
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.protocol import Draw, Views
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS
from pipeline.jobs.folder import JobFolder
from pipeline.tracking.mlflow.link import read_link
from pipeline.tracking.mlflow.store import MlflowStore
from pipeline.tracking.mlflow.ui import SERVER_SETTINGS

CONDITIONS = ("journal", "server up", "refused", "black hole", "killed midway")
KEYS = ("loss", "loss_mae", "lr", "images_per_s", "grad_norm")
ONE_BY_ONE = 300
"""Points that are logged one by one: 100,000 would take hours."""


class Server:
    """An `mlflow server` on a port of its own, its store in a folder; may be killed and come back.

    Args:
        folder: Of the database and the artifacts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1",
            "--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        log = (self.folder / "server.log").open("ab")
        environment = os.environ | SERVER_SETTINGS
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            time.sleep(0.1)
        raise SystemExit(f"the server does not start; see {self.folder / 'server.log'}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it and its workers."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Give the address of a port that takes connections and never answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class Trainer:
    """A small MAE in training, one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        recipe = MaeRecipe(dataset="random", model=MODELS["vit-demo"])
        self.method = MaskedAutoencoder(recipe, (0.5,) * 3, (0.25,) * 3)  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(self.method.parameters(), lr=1e-4)
        side = recipe.model.image_size
        images = torch.randint(0, 256, (32, 3, side, side), dtype=torch.uint8)
        self.views = Views((images,), torch.arange(32))

    def step(self, step: int) -> float:
        loss = self.method(self.views, Draw(0, step)).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def run(self, seconds: float, journal: Journal | None, halfway: object = None) -> list[float]:
        """Train for so long and return the seconds of each step, its journal lines included."""
        times: list[float] = []
        begun = time.perf_counter()
        step = 0
        while time.perf_counter() - begun < seconds:
            if callable(halfway) and time.perf_counter() - begun > seconds / 2:
                halfway()
                halfway = None
            start = time.perf_counter()
            loss = self.step(step)
            step += 1
            if journal is not None:
                journal.metrics(step, {f"pretrain/{key}": loss + i for i, key in enumerate(KEYS)})
            times.append(time.perf_counter() - start)
        return times


def describe(journal: Journal, key: str, fingerprint: str) -> None:
    """Say which run a journal is of, as a stage does."""
    names = {"stage": "pretrain", "key": key, "suite": "bench", "fingerprint": fingerprint}
    journal.tags({**names, "scale": "reduced"})
    journal.params({"method": "mae"})


def follow(root: Path, fingerprint: str, uri: str, every: float) -> "subprocess.Popen[bytes]":
    """Start what brings a run into MLflow while it is made, every so many seconds."""
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking import sync; "
        "from pipeline.tracking.mlflow.store import MlflowStore; sync.FOLLOW_S, "
        f"sync.PATIENCE = {every}, 0; "
        "root = Path(sys.argv[1]); "
        "sync.follow_run(root, sys.argv[2], MlflowStore(root, trust_links=True))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root), fingerprint], cwd=root, start_new_session=True,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.nice(10),
    )  # fmt: skip


def count(client: MlflowClient, run_id: str, name: str, steps: int) -> tuple[int, int, int]:
    """Return points that are there, are lost, and are there twice, of all keys."""
    there = lost = twice = 0
    for key in KEYS:
        found = [point.step for point in client.get_metric_history(run_id, f"{name}/{key}")]
        there += len(found)
        lost += len(set(range(1, steps + 1)) - set(found))
        twice += len(found) - len(set(found))
    return there, lost, twice


def race(
    folder: Path, server: Server, seconds: float, rounds: int, every: float, conditions: list[str]
) -> None:
    """Train in every condition in turn; print ratios and counts."""
    root, trainer = folder / "project", Trainer()
    (root / ".dvc").mkdir(parents=True)
    trainer.run(2.0, None)
    times: dict[str, list[float]] = {}
    made: list[tuple[str, str, int]] = []
    for i in range(rounds):
        with black_hole() as hole:
            refused = f"http://127.0.0.1:{_free_port()}"
            addresses = {
                "no journal": None, "journal": "", "server up": server.uri, "refused": refused,
                "black hole": hole, "killed midway": server.uri,
            }  # fmt: skip
            for name, uri in addresses.items():
                if name not in conditions:
                    continue
                if uri is None:
                    times.setdefault(name, []).extend(trainer.run(seconds, None))
                    continue
                if uri == server.uri:
                    server.start()
                fingerprint = f"{i}{len(made):02d}".ljust(64, "0")
                job = JobFolder.of(root / ".asl", fingerprint)
                with Journal.open(job.journal) as journal:
                    describe(journal, f"{name.replace(' ', '-')}-{i}", fingerprint)
                    follower = follow(root, fingerprint, uri, every) if uri else None
                    halfway = server.kill if name == "killed midway" else None
                    taken = trainer.run(seconds, journal, halfway)
                    journal.end("SUCCEEDED")
                times.setdefault(name, []).extend(taken)
                made.append((name, fingerprint, len(taken)))
                if follower is not None:
                    follower.wait()
                server.kill()
    base = statistics.median(times["no journal"])
    server.start()
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri}
    subprocess.run([sys.executable, "-m", "pipeline", "sync"], cwd=root, env=environment,
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    client = MlflowClient(tracking_uri=server.uri)
    print(f"step {base * 1000:.1f} ms, {len(KEYS)} points each, {rounds} rounds of {seconds:.0f} s")
    print("condition       x step  points  there after recovery  lost  twice")
    for name, values in times.items():
        line = f"{name:14}  {statistics.median(values) / base:6.3f}"
        runs = [(fingerprint, steps) for other, fingerprint, steps in made if other == name]
        if runs:
            counts = []
            for fingerprint, steps in runs:
                link = read_link(JobFolder.of(root / ".asl", fingerprint).folder)
                assert link is not None
                counts.append(count(client, link.run_id, "pretrain", steps))
            there, lost, twice = (sum(column) for column in zip(*counts, strict=True))
            asked = sum(steps for _, steps in runs) * len(KEYS)
            line += f"  {asked:6}  {there:20}  {lost:4}  {twice:5}"
        print(line, flush=True)


def rates(folder: Path, server: Server, points: int, uris: list[str]) -> None:
    """Print how fast a journal is written and brought into each store."""
    stores = {"sqlite": f"sqlite:///{folder}/rates.db", "HTTP server": server.uri}
    stores |= {uri.partition("://")[0]: uri for uri in uris}
    lines = points // len(KEYS)
    print(f"\n{lines * len(KEYS)} points                    points/s  x log_metric")
    for name, uri in stores.items():
        root = folder / f"rates-{name.replace(' ', '-')}"
        (root / ".dvc").mkdir(parents=True)
        os.environ["MLFLOW_TRACKING_URI"] = uri
        client = MlflowClient(tracking_uri=uri)
        run = client.create_run(client.create_experiment(f"one-by-one-{time.time_ns()}"))
        start = time.perf_counter()
        for step in range(ONE_BY_ONE):
            client.log_metric(run.info.run_id, "loss", 1.0, step=step)
        one_by_one = ONE_BY_ONE / (time.perf_counter() - start)
        fingerprint = f"{time.time_ns():x}".ljust(64, "0")
        job = JobFolder.of(root / ".asl", fingerprint)
        with Journal.open(job.journal) as journal:
            describe(journal, "rates", fingerprint)
            start = time.perf_counter()
            for step in range(1, lines + 1):
                journal.metrics(step, {f"pretrain/{key}": step + 0.5 for key in KEYS})
            journal.sync()
            written = lines * len(KEYS) / (time.perf_counter() - start)
            journal.end("SUCCEEDED")
        start = time.perf_counter()
        link = MlflowStore(root).ingest(job.journal, job.details)
        brought = lines * len(KEYS) / (time.perf_counter() - start)
        there, lost, twice = count(client, link.run_id, "pretrain", lines)
        print(f"{name:12} journal written   {written:10.0f}")
        print(f"{name:12} brought           {brought:10.0f}  {brought / one_by_one:12.1f}"
              f"   there {there}, lost {lost}, twice {twice}")  # fmt: skip
        print(f"{name:12} log_metric        {one_by_one:10.0f}           1.0", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each condition and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds; 30 beside a stage")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--points", type=int, default=100_000, help="0: no rates")
    parser.add_argument("--uri", nargs="*", default=[], help="more stores to bring points into")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server(folder / "server") as server:
            conditions = ["no journal", *options.conditions]
            race(folder, server, options.seconds, options.rounds, options.every, conditions)
        if options.points:
            with Server(folder / "rates-server") as server:
                server.start()
                rates(folder, server, options.points, options.uri)


if __name__ == "__main__":
    main()
