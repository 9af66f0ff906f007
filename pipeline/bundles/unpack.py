"""Unpacks what a bundle brought back: whole, as its list says, and nowhere else. Files nothing."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundles.archive import Archive, ArchiveError
from pipeline.bundles.manifest import (
    METRICS,
    RESULTS_DIGEST,
    RESULTS_FILE,
    RUNS,
    Marks,
    Results,
    Status,
    mark_bytes,
    read_results,
    under,
)
from pipeline.errors import UserError
from pipeline.stages.table import STAGES

BESIDES = frozenset({RESULTS_FILE, RESULTS_DIGEST})
COPIES = 2
"""Unpacked, and in DVC's cache, where that cannot link."""


def read_archive(file: Path) -> Results:
    """Return what an archive says of itself; its files are not read.

    Raises:
        UserError: It is damaged, or something else.
    """
    with _refusals(), Archive(file) as archive:
        return _read(archive)


@contextmanager
def unpacked_results(root: Path, file: Path) -> Iterator[tuple[Results, Path]]:
    """Unpack an archive for the duration of the block.

    Args:
        root: Folder that has `.dvc`.
        file: What a bundle left.

    Yields:
        What it says of itself, and the folder with its files; all of them are what its list says.

    Raises:
        UserError: The archive is damaged, or not of this project.
    """
    with _folder(root / ".asl") as folder:
        with _refusals(), Archive(file) as archive:
            results = _read(archive)
            _check_suite(root, results)
            archive.check_list(results.files, BESIDES)
            _check_places(file, results)
            need = COPIES * sum(mark.size for mark in results.files.values())
            free = shutil.disk_usage(root).free
            if need > free:
                raise UserError(
                    f"{file} needs {need / 1e9:.2f} GB, {free / 1e9:.2f} are free; make room"
                )
            for name, mark in results.files.items():
                archive.extract(name, folder / name, mark)
        yield results, folder


def _read(archive: Archive) -> Results:
    text = archive.read(RESULTS_FILE)
    if archive.read(RESULTS_DIGEST, 100).decode("ascii", "replace").strip() != (
        mark_bytes(text).sha256
    ):
        raise ArchiveError(
            f"{archive.path}: {RESULTS_FILE} is not what {RESULTS_DIGEST} says; nothing was taken, "
            "copy it once more"
        )
    try:
        return read_results(text.decode("utf-8"))
    except ValueError as error:
        raise ArchiveError(f"{archive.path}: {error}; nothing was taken") from error


def _check_suite(root: Path, results: Results) -> None:
    """Refuse an archive for a suite that this project does not have."""
    suite = root / results.folder
    if not suite.resolve().is_relative_to(root.resolve()) or not (suite / "dvc.yaml").is_file():
        raise UserError(
            f"it is for the suite {results.suite} in {results.folder}, which {root} does not have"
        )


def _check_places(file: Path, results: Results) -> None:
    """Check that each run's files are outputs of its stage and in the archive's list.

    Raises:
        UserError: One is not; names it.
    """
    expected: Marks = {}
    for record in results.runs:
        name, _, key = record.name.partition("@")
        stage = STAGES.get(name)
        if stage is None or not key:
            raise UserError(f"{file}: {record.name!r} is no run that a bundle makes")
        if record.status is Status.FINISHED:
            metrics = (METRICS,) if stage.has_metrics else ()
            allowed = tuple(f"{role}/" for role in stage.outputs)
            for path in record.files:
                if path not in metrics and not path.startswith(allowed):
                    raise UserError(f"{file}: {record.name} has {path}, which is no output of it")
            if any(path not in record.files for path in metrics):
                raise UserError(f"{file}: {record.name} has no {METRICS}")
            expected |= under(f"{RUNS}/{record.name}", record.files)
    listed = {n: mark for n, mark in results.files.items() if n.startswith(f"{RUNS}/")}
    for path in sorted(dict(listed.items() ^ expected.items())):
        raise UserError(f"{file}: {path} is not as its run's record has it; nothing was taken")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what is wrong with an archive into one line."""
    try:
        yield
    except ArchiveError as error:
        raise UserError(str(error)) from error


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """Make a folder in the project's scratch, and remove it afterwards."""
    folder = scratch / f"accept-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder, ignore_errors=True)
