"""Runs that were made elsewhere: their journals came with their results, by `dvc pull`."""

import contextlib
import os
import shutil
from pathlib import Path

from pipeline.jobs.folder import JobFolder
from pipeline.jobs.journal import read_run_name
from pipeline.project import suite_folders


def take_pulled_journals(root: Path) -> None:
    """Give each run a folder whose journal lies in the workspace alone.

    From then on it is shown like those that were made here.

    Args:
        root: Folder that has `.dvc`.
    """
    for suite in suite_folders(root).values():
        for file in sorted(suite.glob("runs/*/*/journal/attempt-000.jsonl")):
            run = read_run_name(file.parent)
            if run is not None:
                _copy(file.parent, JobFolder.of(root / ".asl", run.fingerprint))


def _copy(journal: Path, job: JobFolder) -> None:
    """Copy a journal, whole or not at all; one that there is stays."""
    if job.journal.exists():
        return
    incoming = job.scratch / f"pulled-{os.getpid()}"
    shutil.rmtree(incoming, ignore_errors=True)
    # contents alone: DVC's own files are not to be written to
    shutil.copytree(journal, incoming, copy_function=shutil.copyfile)
    job.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # another process was faster
        incoming.rename(job.journal)
    shutil.rmtree(incoming, ignore_errors=True)
