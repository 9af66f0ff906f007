"""Run stages of asl-pipe on a machine that has Python, torch, torchvision, timm and safetensors.

Unpacks beside itself what it carries, checks every file's sha256, runs what is not finished yet,
each run from its newest checkpoint, and leaves one archive of results for `asl-pipe accept`.
Ctrl-C or SIGTERM ends it after the current step, with a checkpoint; the same command goes on.

Exit codes: 0 all runs are finished; 1 a run failed; 2 the input is wrong; 75 not finished yet.
"""

# The `__main__.py` of a bundle: standard library only, and nothing of the project until it lies
# unpacked and checked.

import argparse
import fcntl
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, TextIO

MANIFEST, CHUNK, PATIENCE_S = "manifest.json", 1 << 20, 60.0
REQUIRED = ("torch", "torchvision", "timm", "safetensors")
INSTALLED_AS = {"faster_coco_eval": "faster-coco-eval", "sklearn": "scikit-learn"}
"""What pip calls a package that is imported by another name."""
OLDEST = (3, 11)
"""Python on a foreign machine, which no installer has checked."""
DATE = (315532800, 315532800)
"""1980, in seconds since 1970: unpacked code is older than the process that imports it."""


def main() -> int:
    """Unpack, check, run; return the exit code."""
    bundle = Path(sys.argv[0]).resolve()
    options = _options(bundle)
    try:
        with zipfile.ZipFile(bundle) as archive:
            text = archive.read(MANIFEST)
            manifest: dict[str, Any] = json.loads(text)
            digest = hashlib.sha256(text).hexdigest()
            _require([] if options.skip_missing else manifest["runs"])
            results = options.results or bundle.with_name(f"{bundle.stem}.results.zip")
            if not os.access(results.absolute().parent, os.W_OK):
                raise Refusal(f"{results.absolute().parent} cannot be written to; see --results")
            work = bundle.with_name(f"{bundle.stem}-{digest[:8]}.work")
            work.mkdir(exist_ok=True)
            lock = _lock(work)
            _unpack(archive, manifest["files"], work)
    except Refusal as refusal:
        _say(f"{bundle.name}: {refusal}", sys.stderr)
        return refusal.code
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        _say(f"{bundle.name}: {said}; copy the bundle once more, or free space", sys.stderr)
        return 2
    with lock:
        return _run(text.decode(), digest, work, results, options)


class Refusal(Exception):
    """Raised with one line when nothing is run."""

    def __init__(self, line: str, code: int = 2) -> None:
        super().__init__(line)
        self.code = code


def _options(bundle: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python {bundle.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to compute")
    parser.add_argument("--threads", type=int, help="compute threads")
    parser.add_argument("--workers", type=int, help="processes that load images")
    parser.add_argument("--micro-batch", type=int, help="images per pass, where memory is short")
    parser.add_argument("--checkpoint-minutes", type=float, help="between two checkpoints")
    parser.add_argument("--compile", action="store_true", default=None, help="the network")
    parser.add_argument("--cuda-graphs", action="store_true", default=None,
                        help="replay it with few launches; with --compile, on a GPU")  # fmt: skip
    parser.add_argument(
        "--minutes", type=float,
        help="measure each pre-training, then give all of them the largest number of epochs for "
        "which they fit into so many minutes, the measuring included; evaluations come after",
    )  # fmt: skip
    parser.add_argument("--skip-missing", action="store_true",
                        help="leave out runs whose packages are not installed")  # fmt: skip
    parser.add_argument("--results", type=Path, help="archive to write")
    return parser.parse_args()


def _require(runs: list[dict[str, Any]]) -> None:
    """Refuse where a package is missing that some run imports."""
    if sys.version_info[:2] < OLDEST:
        raise Refusal(f"Python {sys.version.split()[0]} is too old; 3.11 is needed")
    wanted = {*REQUIRED, *(name for run in runs for name in run["packages"])}
    missing = [name for name in sorted(wanted) if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(INSTALLED_AS.get(name, name) for name in missing)
        raise Refusal(f"{', '.join(missing)} cannot be imported by {sys.executable}; "
                      f"pip install {names}")  # fmt: skip


def _lock(work: Path) -> Any:
    """Hold the work folder; this process's children hold it with it."""
    file = (work / "lock").open("w")
    give_up, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                _say(f"waiting for another process that works in {work}", sys.stdout)
                told = True
            if time.monotonic() > give_up:
                file.close()
                raise Refusal(
                    f"another process works in {work}; wait until it has ended", 75
                ) from None
            time.sleep(0.2)
        else:
            return file


def _unpack(archive: zipfile.ZipFile, files: dict[str, dict[str, Any]], work: Path) -> None:
    """Bring the work folder to what the manifest says; what is right stays."""
    code = work / "code"
    for path in sorted(code.rglob("*")):
        if path.is_file() and path.relative_to(work).as_posix() not in files:
            path.unlink()  # compiled files too: only what is listed is run
    wrong = [name for name, mark in files.items() if _digest(work / name) != mark["sha256"]]
    needed = sum(files[name]["size"] for name in wrong)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise Refusal(f"{needed / 1e9:.2f} GB are needed in {work}, {free / 1e9:.2f} GB are free")
    for name in wrong:
        target = work / name
        if ".." in Path(name).parts or not target.resolve().is_relative_to(work):
            raise Refusal(f"its list has {name}, which leads out of {work}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with archive.open(name) as read, part.open("wb") as written:
            shutil.copyfileobj(read, written, CHUNK)
        if _digest(part) != files[name]["sha256"]:
            part.unlink()
            raise Refusal(f"{name} is not what its list says (sha256); copy the bundle once more")
        os.utime(part, DATE)
        part.replace(target)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _run(text: str, digest: str, work: Path, results: Path, options: argparse.Namespace) -> int:
    """Hand over to the code that lies unpacked."""
    sys.dont_write_bytecode = True
    sys.path[0] = str(work / "code")  # in place of the bundle itself
    from asl_core.recipes.optimisation import Resources
    from pipeline.bundles.folder import WorkFolder
    from pipeline.bundles.manifest import read_manifest
    from pipeline.bundles.one_run import Bundle
    from pipeline.bundles.runner import run_all

    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING,
        stream=sys.stdout,
    )  # fmt: skip
    for package in ("asl_core", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    said = {
        "device": options.device, "threads": options.threads, "num_workers": options.workers,
        "micro_batch_size": options.micro_batch, "checkpoint_minutes": options.checkpoint_minutes,
        "compile": options.compile, "cuda_graphs": options.cuda_graphs,
    }  # fmt: skip
    resources = {name: value for name, value in said.items() if value is not None}
    manifest = read_manifest(text)
    try:
        for run in manifest.runs:
            Resources(**{**run.resources, **resources})
    except ValueError as error:
        _say(f"{error}; see --help", sys.stderr)
        return 2
    bundle = Bundle(manifest, digest, WorkFolder(work), importlib.import_module, resources)
    return run_all(bundle, results.absolute(), options.minutes)


def _say(line: str, stream: TextIO) -> None:
    stream.write(f"{line}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
