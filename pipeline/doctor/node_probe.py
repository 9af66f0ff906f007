"""What `asl-pipe doctor` runs on the nodes of a cluster: it answers questions put to it in files.

A copy of this file is the job's program: standard library only, and nothing of the project. The
login node asks by writing `ask-<n>.json` into the folder; each process answers by writing
`answer-<n>-<rank>.json`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LIFETIME_S = 600.0
POLL_S = 0.02
COUNTER = "counter.json"
PADDING = 50_000
"""Characters of the file that is replaced again and again: more than one block."""
FIRST_COUNT = {"count": 0, "padding": "0" * PADDING}

_got: list[str] = []


def main(folder: Path) -> None:
    """Answer questions until asked to stop, or until no question comes any more."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda n, _frame: _got.append(signal.Signals(n).name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2, signal.SIGTERM))
    rank, number, deadline = os.environ.get("RANK", "0"), 0, time.time() + LIFETIME_S
    while time.time() < deadline:
        ask = read_json(folder / f"ask-{number}.json")
        if ask is None:
            time.sleep(POLL_S)
            continue
        if ask["kind"] == "stop":
            return
        answer = ANSWERS[ask["kind"]](folder, ask)
        write_json(folder / f"answer-{number}-{rank}.json", answer)
        number += 1


def introduce(_folder: Path, _ask: Any) -> dict[str, Any]:
    """Say who this is."""
    return {
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": count_gpus(),
        "time": time.time(),
    }


def contend(folder: Path, ask: Any) -> dict[str, Any]:
    """Try to make folders at the same time as others; say which ones."""
    start = ask["start"] + ask["ahead"].get(os.environ.get("RANK", "0"), 0.0)
    return {"won": take_names(folder, ask["names"], start, ask["step"])}


def observe(folder: Path, ask: Any) -> dict[str, Any]:
    """Read a file that others replace meanwhile."""
    return watch(folder / COUNTER, ask["seconds"])


def meet(_folder: Path, _ask: Any) -> dict[str, Any]:
    """Connect to the first process, as the processes of a training do."""
    rank, others = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
    port = int(os.environ["MASTER_PORT"])
    try:
        if rank > 0:
            _connect((os.environ["MASTER_ADDR"], port))
        elif others:
            with socket.create_server(("", port)) as server:
                server.settimeout(20)
                for _ in range(others):
                    server.accept()[0].close()
        return {"error": None}
    except OSError as error:
        return {"error": f"{os.environ['MASTER_ADDR']}:{port}: {error}"}


def tell_signals(_folder: Path, ask: Any) -> dict[str, Any]:
    """Wait a while for a signal; say which have come."""
    give_up = time.time() + ask["seconds"]
    while not _got and time.time() < give_up:
        time.sleep(POLL_S)
    return {"signals": _got}


def enter(_folder: Path, ask: Any) -> dict[str, Any]:
    """Run a command, the image's Python, and say what it said; a code of None: it did not start."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            ask["command"], env=own | ask["environment"], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False, timeout=ask["seconds"],
        )  # fmt: skip
        said = {"code": done.returncode, "out": done.stdout, "err": done.stderr[-2000:]}
    except (OSError, subprocess.TimeoutExpired) as error:
        said = {"code": None, "out": "", "err": str(error)}
    return {"host": socket.gethostname(), **said}


ANSWERS: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
    "introduce": introduce,
    "contend": contend,
    "observe": observe,
    "meet": meet,
    "signals": tell_signals,
    "container": enter,
}


def _connect(address: tuple[str, int]) -> None:
    give_up = time.time() + 20
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError:
            if time.time() > give_up:
                raise
            time.sleep(0.1)


def take_names(folder: Path, names: Iterable[str], start: float, step: float) -> list[str]:
    """Make folders that others try to make too, each at its moment; return those made here.

    Args:
        folder: Where.
        names: The same for all that contend.
        start: Seconds since 1970, of this machine, at which the first is made.
        step: Seconds between two.
    """
    won = []
    for index, name in enumerate(names):
        # asleep until then: who has waited busily is the first to be put off a full processor
        time.sleep(max(0.0, start + index * step - time.time()))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder / name)
            won.append(name)
    return won


def replace_for(path: Path, seconds: float) -> int:
    """Replace a file again and again; return how often."""
    end, count = time.time() + seconds, 0
    while time.time() < end:
        count += 1
        write_json(path, {"count": count, "padding": str(count % 10) * PADDING})
    return count


def watch(path: Path, seconds: float) -> dict[str, int]:
    """Read a file that is being replaced; count what must not be: halves, absences, steps back."""
    end = time.time() + seconds
    found = {"reads": 0, "torn": 0, "missing": 0, "backwards": 0, "last": 0}
    while time.time() < end:
        found["reads"] += 1
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if len(set(content["padding"])) != 1 or len(content["padding"]) != PADDING:
                raise ValueError
        except FileNotFoundError:
            found["missing"] += 1
        except (ValueError, OSError):
            found["torn"] += 1
        else:
            found["backwards"] += content["count"] < found["last"]
            found["last"] = content["count"]
    return found


def count_gpus() -> int | str:
    """Return the number of NVIDIA GPUs, or why it is not known."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        return str(error)


def write_json(path: Path, content: Any) -> None:
    """Write to a sibling, flush and rename, as the pipeline's records are written."""
    sibling = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with sibling.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    sibling.replace(path)


def read_json(path: Path) -> Any:
    """Return the content of a file, None while it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
