"""DVC's caches: the one place that knows DVC's private names.

Reads the project; writes DVC's caches and nothing in the workspace. Held to what DVC itself
writes, byte for byte, by tests/pipeline/test_dvc_cache.py. Should a name be gone, results are
filed through DVC's commands instead (`dvc_command`).
"""

import copy
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asl_core.wording import counted
from pipeline.config.files import each
from pipeline.config.starts import starts_in
from pipeline.config.yaml_files import read_yaml_if_any
from pipeline.errors import UserError
from pipeline.results.code import Code, read_code, refresh_identities
from pipeline.results.documents import (
    Document,
    Hashes,
    code_of,
    hashes_of,
    missing_deps,
    recipe_id,
    with_outs,
)
from pipeline.results.dvc_adoption import adopt_at_once
from pipeline.results.dvc_command import adopt_through_commands, file_through_commands
from pipeline.results.port import Filing, Identity, StageFacts
from pipeline.stages.table import CODE_FOLDER, PRETRAIN, STARTED, name_in_dvc, run_in_dvc

logger = logging.getLogger(__name__)

# DVC takes 0.3 s to import, and --help does not need it: imports are inside the functions.

NAME_IS_GONE = (ImportError, AttributeError, TypeError, AssertionError, NotImplementedError)
"""What another version of DVC than the ones known here may answer with."""


class DvcCache:
    """Asks DVC itself, so that DVC and the project agree on what is current."""

    def __init__(self) -> None:
        self._repos: dict[Path, Any] = {}
        self._code: Code | None = None

    def identify(self, suite: Path, name: str) -> Identity:
        """Return the key under which DVC would file the stage's result now.

        Args:
            suite: Folder with dvc.yaml.
            name: Stage name with key, `pretrain@asl`.

        Raises:
            UserError: dvc.yaml has no such stage, or DVC cannot read it.
        """
        from dvc.stage.cache import _get_stage_hash  # pyright: ignore[reportPrivateUsage]

        with _stages(suite, name) as (_, stages):
            stage = stages[name]
            texts = [str(dep.def_path) for dep in stage.deps]
            refresh_identities(suite, self._read_code(suite), texts)  # out of date: never used
            stage.save_deps()
            inputs = {
                dep.def_path: str(dep.hash_info.value)
                for dep in stage.deps
                if dep.hash_info and dep.hash_info.name == "md5"
            }
            code = [path for path in inputs if path.startswith(f"{CODE_FOLDER}/")]
            text = "".join((suite / path).read_text(encoding="utf-8") for path in code)
            return Identity(_get_stage_hash(stage), inputs, text)

    def survey(
        self, suite: Path, names: Sequence[str], anew: Collection[str] = ()
    ) -> dict[str, StageFacts]:
        """Return the facts of stages and of all that they need, in topological order.

        What another stage makes is known from that stage's result and not from the workspace,
        where it may be missing, edited, or of yesterday.

        Args:
            suite: Folder with dvc.yaml.
            names: Stages with key.
            anew: Those whose results are taken for absent.

        Raises:
            UserError: dvc.yaml has no such stage, or an input is missing that no stage makes.
        """
        refresh_identities(suite)
        with _stages(suite, ", ".join(names), with_lock=True) as (repo, stages):
            return _Survey(repo, stages, anew).of(names)

    def key(self, document: Document) -> str:
        """Return DVC's run-cache key of a document whose inputs all have hashes."""
        from dvc.stage.cache import _get_cache_hash  # pyright: ignore[reportPrivateUsage]

        return _get_cache_hash(copy.deepcopy(document), key=True)

    def find(self, root: Path, fingerprint: str) -> Hashes | None:
        """Return the newest result under a key if all of it is in the cache."""
        return _newest_result(self._opened(root), fingerprint)

    def holds(self, root: Path, hashes: Hashes) -> bool:
        """Say whether the cache has all these files and folders, whole."""
        return _is_cached(self._opened(root).cache.local, hashes)

    def _read_code(self, suite: Path) -> Code:
        """Return the code as it is now; what was understood of the same before is kept."""
        code = read_code(suite)
        if self._code is None or self._code.files != code.files:
            self._code = code
        return self._code

    def _opened(self, root: Path) -> Any:
        """Return the project, opened once: its caches are asked for hundreds of results in turn."""
        if root not in self._repos:
            with _repo(root) as repo:
                self._repos[root] = repo
        return self._repos[root]

    def add(self, root: Path, paths: Mapping[str, Path]) -> Hashes:
        """Put files and folders into the cache and return their hashes under the same names."""
        with _repo(root) as repo:
            return {name: _put(repo, path, root / name) for name, path in paths.items()}

    def digest(self, root: Path, path: Path) -> str | None:
        """Hash a file or folder anew as DVC does, whatever it remembers; None where there is none.

        DVC itself takes a file for unchanged whose size, inode and time are.
        """
        from dvc_data.hashfile.build import build
        from dvc_data.hashfile.db import HashFileDB
        from dvc_objects.fs.local import localfs

        if not path.exists():
            return None
        ignore: Any = self._opened(root).dvcignore
        with tempfile.TemporaryDirectory() as empty:
            forgetful = HashFileDB(localfs, empty)
            _, _, built = build(forgetful, str(path), localfs, "md5", ignore=ignore, dry_run=True)
        return built.hash_info.value

    def link(self, root: Path, hashes: Hashes, target: Path) -> None:
        """Lay files and folders out under `target`; linked where the filesystem can.

        Raises:
            UserError: One of them is not in the cache.
        """
        from dvc_data.hashfile import load
        from dvc_data.hashfile.checkout import CheckoutError, checkout
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_objects.fs.local import localfs

        with _repo(root) as repo:
            odb = repo.cache.local
            for path, hashed in hashes.items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                try:
                    wanted = load(odb, HashInfo("md5", hashed["md5"]))
                    checkout(str(target / path), localfs, wanted, odb, force=True, quiet=True)
                except (CheckoutError, FileNotFoundError) as error:
                    raise UserError(
                        f"{path} ({hashed['md5']}) is no longer in DVC's cache {odb.path}; "
                        "run dvc repro or dvc pull"
                    ) from error

    def adopt(self, suite: Path, names: Sequence[str]) -> list[str]:
        """Take results of stages from the run-cache into a suite and its dvc.lock; run nothing.

        Returns:
            Those that were taken; of each other a line says why it was not.

        Raises:
            OSError: DVC did not do it; carries what it said.
        """
        refresh_identities(suite)
        try:
            with _repo(suite) as repo:
                return adopt_at_once(repo, suite / "dvc.yaml", names)
        except NAME_IS_GONE as error:
            logger.warning("DVC's internals changed (%r); adopting through its commands", error)
            with _stages(suite, ", ".join(names)) as (_, stages):
                called = [name_in_dvc(name, stages.loader) for name in names]
            adopt_through_commands(suite, called)
            return list(names)

    def file(self, filing: Filing) -> Hashes:
        """Put outputs into the cache and write the run-cache's entry, as DVC would have.

        Raises:
            OSError: They could not be written; nothing refers to what was.
        """
        try:
            with _repo(filing.suite) as repo:
                hashes = {
                    path: _put(repo, place, filing.suite / path)
                    for path, place in filing.outputs.items()
                }
                code, _ = code_of(filing.document)
                _put(repo, filing.code / code, filing.suite / code)
                self._write_entry(repo, with_outs(filing.document, hashes))
        except NAME_IS_GONE as error:
            logger.warning("DVC's internals changed (%r); filing through its commands", error)
            return file_through_commands(filing)
        return hashes

    def file_again(self, suite: Path, document: Document, outputs: Hashes) -> None:
        """Write another entry of the run-cache for outputs that the workspace and the cache have.

        Raises:
            UserError: The cache lacks some of them.
        """
        with _repo(suite) as repo:
            for path, hashed in outputs.items():
                if not _is_cached(repo.cache.local, {path: hashed}):
                    # a metrics file of a pulled result is in git, and need not be in the cache
                    put = _put(repo, suite / path, suite / path)
                    if put["md5"] != hashed["md5"]:
                        raise UserError(f"{path} is no longer in DVC's cache; run dvc pull")
            code, _ = code_of(document)
            _put(repo, suite / code, suite / code)  # for who compares it with later code
            self._write_entry(repo, with_outs(document, outputs))

    def read(self, root: Path, md5: str) -> str | None:
        """Return the text of a file in the cache; None where it is not there."""
        try:
            path = self._opened(root).cache.local.oid_to_path(md5)
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return None

    def _write_entry(self, repo: Any, document: Document) -> None:
        from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
        from dvc.stage.cache import _get_cache_hash  # pyright: ignore[reportPrivateUsage]
        from dvc.utils.serialize import dump_yaml

        COMPILED_LOCK_FILE_STAGE_SCHEMA(copy.deepcopy(document))
        value = _get_cache_hash(copy.deepcopy(document))
        path = repo.stage_cache._get_cache_path(self.key(document), value)
        if Path(path).exists():
            os.utime(path)  # DVC takes the newest
            return
        parent = os.path.dirname(path)
        repo.cache.legacy.makedirs(parent)
        temporary = os.path.join(parent, f".{value}.{os.getpid()}.tmp")
        dump_yaml(temporary, document)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        repo.cache.legacy.move(temporary, path)


class _ByRun:
    """A suite's stages by the names of runs, which dvc.yaml may call otherwise.

    Raises:
        UserError: dvc.yaml has runs in another place than params.yaml has them now.
    """

    def __init__(self, suite: Path, loader: Any) -> None:
        self.loader = loader
        params = read_yaml_if_any(suite / "params.yaml")
        started, others = (
            loader.stages_data.get(name, {}).get("foreach", {}) for name in (STARTED, PRETRAIN.name)
        )
        differing = set(started) ^ starts_in(params).keys()
        if isinstance(others, Mapping) and started:  # all are named there
            named = started.keys() | others.keys()
            differing |= named ^ {str(key) for key, _ in each(params.get(str(PRETRAIN.section)))}
        if differing:
            raise UserError(
                f"{suite / 'dvc.yaml'} does not have {min(differing)} where params.yaml and its "
                f"`initialise` want it; run asl-pipe expand in {suite}"
            )
        self.names = {run_in_dvc(name): name for name in loader}

    def __getitem__(self, run: str) -> Any:
        return self.loader[self.names.get(run, run)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def lockfile_data(self) -> dict[str, Any]:
        recorded = self.loader.lockfile_data
        return {run: recorded[name] for run, name in self.names.items() if name in recorded}


class _Survey:
    """Goes through a suite's stages, each after what it needs."""

    def __init__(self, repo: Any, stages: Any, anew: Collection[str]) -> None:
        self.repo, self.stages, self.anew = repo, stages, anew
        self.loaded: dict[str, Any] = {}
        self.facts: dict[str, StageFacts] = {}
        self.makers: dict[str, str] | None = None
        self.hashed: dict[str, Any] = {}
        self.values: dict[str, dict[str, Any]] = {}

    def of(self, names: Sequence[str]) -> dict[str, StageFacts]:
        self.makers = {out.def_path: n for n in self.stages for out in self._load(n).outs}
        for name in names:
            self._visit(name)
        return self.facts

    def _load(self, name: str) -> Any:
        if name not in self.loaded:
            self.loaded[name] = self.stages[name]
        return self.loaded[name]

    def _visit(self, name: str) -> None:
        if name in self.facts:
            return
        stage = self._load(name)
        makers = self.makers or {}
        upstream = {d.def_path: makers[d.def_path] for d in stage.deps if d.def_path in makers}
        for maker in upstream.values():
            self._visit(maker)
        document = self._describe(stage, upstream)
        key = None if missing_deps(document) else DvcCache().key(document)
        locked = self.stages.lockfile_data.get(name)
        self.facts[name] = StageFacts(
            name=name,
            document=document,
            fingerprint=key,
            recipe=recipe_id(document, {p: self.facts[m].recipe for p, m in upstream.items()}),
            upstream=upstream,
            outputs=None if key is None or name in self.anew else self._find(key, locked),
            locked=None if locked is None else _plain(locked),
        )

    def _describe(self, stage: Any, upstream: Mapping[str, str]) -> Document:
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        for dep in stage.deps:
            maker = upstream.get(dep.def_path)
            if maker is None:
                self._hash(dep)
                continue
            hashed = (self.facts[maker].outputs or {}).get(dep.def_path)
            dep.clear()
            if hashed is not None:
                dep.hash_info = HashInfo("md5", hashed["md5"])
                dep.meta = Meta.from_dict(dict(hashed))
        for out in stage.outs:
            out.clear()
        return _plain(to_single_stage_lockfile(stage))

    def _hash(self, dep: Any) -> None:
        """Give an input its hash: that of the same file in another stage, where there is one."""
        from dvc.dependency.param import ParamsDependency

        if isinstance(dep, ParamsDependency):
            values = self._values(dep)
            if dep.params and values.keys() >= set(dep.params):
                dep.fill_values(values)
                return
        elif dep.fs_path in self.hashed and dep.hash_name == "md5":
            dep.hash_info, dep.meta = self.hashed[dep.fs_path]
            return
        dep.save()
        if dep.hash_name == "md5":
            self.hashed[dep.fs_path] = (dep.hash_info, dep.meta)

    def _values(self, dep: Any) -> dict[str, Any]:
        """Return what any stage wants of a params file: DVC reads it anew for each of them."""
        if dep.fs_path not in self.values:
            wanted = {
                param
                for stage in self.loaded.values()
                for other in stage.deps
                if other.fs_path == dep.fs_path
                for param in getattr(other, "params", ())
            }
            everything = type(dep)(dep.stage, dep.def_path, sorted(wanted), dep.repo)
            self.values[dep.fs_path] = everything.read_params()
        return self.values[dep.fs_path]

    def _find(self, key: str, locked: Mapping[str, Any] | None) -> Hashes | None:
        """Return the result that `dvc repro` would end up with, if it need not run anything."""
        if locked is not None and DvcCache().key(_plain(locked)) == key:
            outputs = hashes_of(locked.get("outs", []))
            # a metrics file of a pulled result is in git and need not be in the cache
            if outputs and _is_cached(self.repo.cache.local, _folders_of(outputs)):
                return outputs
        return _newest_result(self.repo, key)


@contextmanager
def _repo(folder: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        opened = Repo(str(folder))
    except DvcException as error:  # its configuration, mostly
        said = _in_one_line(error)
        if "is not a git repository" in said:  # unpacked from an archive
            said += (
                "; without git, run dvc config core.no_scm true at the project's root and "
                "asl-pipe expand --all; or git init"
            )
        raise UserError(f"DVC cannot open {folder}: {said}") from error
    with opened as repo:
        yield repo


@contextmanager
def _stages(suite: Path, names: str, *, with_lock: bool = False) -> Iterator[tuple[Any, Any]]:
    """Open a suite's dvc.yaml; what DVC says against it becomes one line."""
    from dvc.dvcfile import ProjectFile
    from dvc.exceptions import DvcException
    from dvc.stage.loader import StageLoader

    try:
        with _repo(suite) as repo:
            file = ProjectFile(repo, str(suite / "dvc.yaml"))
            # without dvc.lock, long in a large suite, where it is not needed
            lock = file.lockfile_contents if with_lock else None
            yield repo, _ByRun(suite, StageLoader(file, file.contents, lock))
    except DvcException as error:
        raise UserError(
            f"{names} of {suite / 'dvc.yaml'}: {_in_one_line(error)}; see what `dvc status` says"
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _newest_result(repo: Any, key: str) -> Hashes | None:
    folder = Path(repo.stage_cache._get_cache_dir(key))
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        newest = max(entries, key=lambda path: path.stat().st_mtime, default=None)
    except FileNotFoundError:
        return None
    entry = None if newest is None else repo.stage_cache._load_cache(key, newest.name)
    outputs = hashes_of(entry.get("outs", [])) if entry else {}
    return outputs if outputs and _is_cached(repo.cache.local, outputs) else None


def _is_cached(odb: Any, hashes: Hashes) -> bool:
    from dvc_data.hashfile import check, load
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_objects.errors import ObjectFormatError

    try:
        for hashed in hashes.values():
            check(odb, load(odb, HashInfo("md5", hashed["md5"])), check_hash=False)
    except (FileNotFoundError, ObjectFormatError):
        return False
    return True


def _folders_of(hashes: Hashes) -> Hashes:
    folders = {path: h for path, h in hashes.items() if h["md5"].endswith(".dir")}
    return folders or hashes


def _put(repo: Any, place: Path, shown: Path) -> dict[str, Any]:
    """Put what lies at `place` into the cache as if it lay at `shown`; return its hashes."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.transfer import transfer
    from dvc_objects.fs.local import localfs

    for file in place.rglob("*") if place.is_dir() else [place]:
        if file.is_file():
            _flush(file)
    odb = repo.cache.local
    ignore: Any = _IgnoreAs(repo.dvcignore, str(place), str(shown))
    staging, meta, obj = build(odb, str(place), localfs, "md5", ignore=ignore)
    result = transfer(staging, odb, {obj.hash_info}, shallow=False, hardlink=True)
    if result.failed:
        raise OSError(
            f"{counted(len(result.failed), 'file')} of {place} could not be put into {odb.path}"
        )
    hashes = {"md5": obj.hash_info.value, **meta.to_dict()}
    hashes.pop("isdir", None)
    return hashes


class _IgnoreAs:
    """Applies .dvcignore to files as if they lay elsewhere: `.asl` itself is ignored."""

    def __init__(self, ignore: Any, place: str, shown: str) -> None:
        self.ignore, self.place, self.shown = ignore, place, shown

    def walk(
        self, fs: Any, path: str, **options: Any
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        for root, folders, files in fs.walk(path, **options):
            shown = self.shown + root[len(self.place) :]
            folders[:], files[:] = self.ignore(shown, folders, files)
            yield root, folders, files


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Return plain dictionaries and lists, in the same order."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
