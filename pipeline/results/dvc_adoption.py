"""Taking results out of DVC's run-cache into a suite, all under one lock and into one dvc.lock.

What `dvc repro --single-item` does for runs whose results are in the run-cache, but for two things:
dvc.lock is read and written once and not once for each run, and a run that is not in the run-cache
is left out, its outputs untouched, in place of being run.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pipeline.stages.table import name_in_dvc, run_in_dvc

logger = logging.getLogger(__name__)

LOCK_S, PAUSE_S = 120.0, 0.5
"""How long to wait for another DVC command; DVC itself gives up after three seconds."""

HOLD_S, BREATH_S = 1.5, 0.6
"""Every HOLD_S the project's lock is released for BREATH_S: a stage that DVC runs then needs it
when its command ends, asks every half second and gives up after three seconds."""


def adopt_at_once(repo: Any, file: Path, names: Sequence[str]) -> list[str]:
    """Adopt what the run-cache has of some runs; return their names, in the order of adoption.

    Killed at any moment it leaves the old dvc.lock or a new one, whole; asked to stop it ends after
    the run that it is at, and dvc.lock has what was adopted until then.

    Args:
        repo: DVC's, of the suite.
        file: The suite's dvc.yaml.
        names: Stages with key; each comes after those of them that make what it needs.

    Raises:
        OSError: Another DVC command holds the project for more than two minutes.
    """
    from dvc.dvcfile import ProjectFile
    from dvc.repo import lock_repo

    give_up = time.monotonic() + LOCK_S
    with _HeldSignals() as signals, ExitStack() as held:
        _wait(lambda: held.enter_context(lock_repo(repo)), give_up, signals)
        # read only now: another DVC may have been writing it before
        suite = ProjectFile(repo, str(file))
        done: list[Any] = []
        try:
            with repo.scm_context(quiet=True):
                held_since = time.monotonic()
                for stage in _in_order(suite.stages, names):
                    signals.check()
                    if time.monotonic() - held_since > HOLD_S:
                        _let_others_in(repo, give_up)
                        held_since = time.monotonic()
                    if _adopt_one(repo, stage, give_up, signals):
                        done.append(stage)
        finally:  # when asked to stop too: what has been laid out is what dvc.lock says
            _write_lock(suite, done)
        return [run_in_dvc(str(stage.addressing).rpartition(":")[2]) for stage in done]


class _HeldSignals:
    """Holds signals back until a place where DVC's own files are whole.

    DVC rewrites .dvc/tmp/rwlock in place; where that is cut short no DVC command works any more.
    """

    WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.came: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {which: signal.signal(which, self._note) for which in self.WHICH}
        return self

    def _note(self, which: int, _frame: FrameType | None) -> None:
        self.came = which

    def check(self) -> None:
        """Raise KeyboardInterrupt if one has come."""
        if self.came is not None:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for which, before in self._before.items():
            signal.signal(which, before)
        if self.came is not None:
            signal.raise_signal(self.came)


def _in_order(stages: Any, names: Sequence[str]) -> Iterator[Any]:
    """Yield stages after those of `names` that make what they need."""
    wanted = {name: stages[name_in_dvc(name, stages)] for name in dict.fromkeys(names)}
    makers = {out.fs_path: name for name, stage in wanted.items() for out in stage.outs}
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Any]:
        if name in seen:
            return
        seen.add(name)
        for dep in wanted[name].deps:
            if dep.fs_path in makers:
                yield from visit(makers[dep.fs_path])
        yield wanted[name]

    for name in wanted:
        yield from visit(name)


def _adopt_one(repo: Any, stage: Any, give_up: float, signals: _HeldSignals) -> bool:
    """Lay out one result if the run-cache has it; say whether it has."""
    from dvc.dependency.base import DependencyDoesNotExistError

    with ExitStack() as held:
        # whoever makes this stage just now needs the project's lock to end: it can have that
        _wait(
            lambda: held.enter_context(_paths_locked(repo, stage)), give_up, signals,
            lambda: _let_others_in(repo, give_up),
        )  # fmt: skip
        try:
            stage.save_deps()
        except DependencyDoesNotExistError as error:
            logger.warning("%s: skipped: %s", stage.name, error)
            return False
        entry = repo.stage_cache._load(stage)
        cached = None if entry is None else repo.stage_cache._create_stage(entry, wdir=stage.wdir)
        if cached is None or not cached.outs_cached():
            logger.warning(
                "%s: skipped: its inputs in the workspace are not the ones its result was "
                "made from, or the cache lacks a part of it; run dvc checkout or dvc pull",
                stage.name,
            )
            return False
        stage.remove_outs(ignore_remove=False, force=False)
        cached.checkout()
        stage.save()
        stage.commit()
        return True


def _paths_locked(repo: Any, stage: Any) -> AbstractContextManager[Any]:
    """Hold what DVC holds while it makes a stage: inputs against writing, outputs against all."""
    from dvc.rwlock import rwlock

    return rwlock(
        repo.tmp_dir, repo.fs, " ".join(sys.argv),
        [dep.fs_path for dep in stage.deps], [out.fs_path for out in stage.outs],
        repo.config["core"].get("hardlink_lock", False),
    )  # fmt: skip


def _wait(
    take: Callable[[], Any],
    give_up: float,
    signals: _HeldSignals | None = None,
    pause: Callable[[], None] = lambda: time.sleep(PAUSE_S),
) -> None:
    """Take a lock, waiting for who has it.

    Raises:
        OSError: It is not to be had in time.
    """
    from dvc.lock import LockError

    while True:
        try:
            take()
            return
        except LockError as error:
            if time.monotonic() > give_up:
                raise OSError(f"another DVC command is busy: {error}") from error
        if signals is not None:
            signals.check()
        pause()


def _let_others_in(repo: Any, give_up: float) -> None:
    """Let go of the project's lock for a moment, as DVC does while a command runs."""
    repo.lock.unlock()
    repo._reset()
    try:
        time.sleep(BREATH_S)
    finally:
        _wait(repo.lock.lock, max(give_up, time.monotonic() + LOCK_S))


def _write_lock(file: Any, stages: Sequence[Any]) -> None:
    """Bring dvc.lock up to date by one rename: it is the old one or the new one."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dump_yaml, parse_yaml_for_update

    if not stages:
        return
    path = Path(file._lockfile.path)
    content: Any = parse_yaml_for_update(path.read_text("utf-8"), str(path)) if path.exists() else 0
    if not content:
        content = {"schema": "2.0"}
    content.setdefault("stages", {})
    for stage in stages:
        content["stages"].update(to_lockfile(stage))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # DVC is told to ignore *.tmp
    try:
        dump_yaml(str(temporary), content)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
