"""DVC's remotes, for what DVC's own commands leave behind: finished results that no dvc.lock names.

`dvc push --run-cache` sends the run-cache's entries, and files of those results alone that dvc.lock
has; `dvc pull --run-cache` likewise.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asl_core.engine.journal import redact
from asl_core.wording import counted
from pipeline.errors import NotFinishedError, UserError


def push(suite: Path, keys: Collection[str], remote: str | None) -> int:
    """Send what `dvc push --run-cache` sends, and the files of results that are only filed.

    Args:
        suite: Folder with dvc.yaml.
        keys: Of results in the run-cache.
        remote: Its name; None: DVC's default.

    Returns:
        Number of files that the remote did not have.

    Raises:
        UserError: There is no such remote, or it keeps no run-cache.
        NotFinishedError: The remote cannot be reached, or did not take all.
    """
    with _repo(suite) as repo:
        _check(repo, remote)
        sent = repo.push(remote=remote, run_cache=True)
        done = repo.cloud.push(_files_of(repo, keys), remote=remote)
        _check_all(done.failed)
        return sent + len(done.transferred)


def pull_run_cache(suite: Path, remote: str | None) -> None:
    """Fetch the run-cache's entries, which say what results there are; no files.

    Raises:
        UserError: There is no such remote, or it keeps no run-cache.
        NotFinishedError: The remote cannot be reached.
    """
    with _repo(suite) as repo:
        _check(repo, remote)
        repo.stage_cache.pull(remote)


def pull_files(suite: Path, keys: Collection[str], remote: str | None) -> int:
    """Fetch the files of results that the run-cache has entries of.

    Args:
        suite: Folder with dvc.yaml.
        keys: Of the results; one without an entry is passed over.
        remote: Its name; None: DVC's default.

    Returns:
        Number of files that came.

    Raises:
        NotFinishedError: The remote cannot be reached, or lacks some of them.
    """
    with _repo(suite) as repo:
        done = repo.cloud.pull(_files_of(repo, keys, remote), remote=remote)
        _check_all(done.failed)
        return len(done.transferred)


@contextmanager
def _repo(suite: Path) -> Iterator[Any]:
    """Open a project of DVC; what it says against a remote becomes one line."""
    from dvc.config import ConfigError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(suite)) as repo:
            yield repo
    except ConfigError as error:
        raise UserError(
            f"DVC's remote: {_in_one_line(error)} (asl-pipe expand --all hands the project's "
            "remotes on to its suites)"
        ) from error
    except (DvcException, OSError) as error:
        raise NotFinishedError(f"DVC's remote: {_in_one_line(error)}; try again") from error


def _check(repo: Any, remote: str | None) -> None:
    """Refuse a remote that DVC would pass over in silence: of HTTP, or versioned by its cloud."""
    from dvc.fs import HTTPFileSystem

    odb = repo.cloud.get_remote_odb(remote, "push --run-cache", hash_name="md5-dos2unix")
    if isinstance(odb.fs, HTTPFileSystem):
        raise UserError(
            f"{redact(str(odb.path))}: DVC keeps no run-cache over HTTP; use another remote"
        )


def _files_of(repo: Any, keys: Collection[str], remote: str | None = None) -> set[Any]:
    """Return the hashes of all files of the newest result under each key."""
    entries = []
    for key in keys:
        folder = Path(repo.stage_cache._get_cache_dir(key))
        found = [path for path in folder.glob("*") if not path.name.startswith(".")]
        if found:
            entries.append((key, max(found, key=lambda path: path.stat().st_mtime).name))
    # forced: files that were never sent are passed over
    used = repo.stage_cache.get_used_objs(entries, remote=remote, force=True)
    return {each for hashes in used.values() for each in hashes}


def _check_all(failed: Collection[Any]) -> None:
    if failed:
        raise NotFinishedError(
            f"DVC's remote: {counted(len(failed), 'file')} not transferred; try again"
        )


def _in_one_line(error: BaseException) -> str:
    return redact(" ".join(str(error).split()))
