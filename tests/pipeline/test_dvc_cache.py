"""The fingerprint is the key under which DVC itself files a result."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.results import dvc_command
from pipeline.results.code import refresh_identities
from pipeline.results.documents import code_of, differences
from pipeline.results.dvc_cache import DvcCache
from pipeline.results.port import Filing, StageFacts

Call = Callable[..., subprocess.CompletedProcess[str]]

DVC_YAML = """
stages:
  make:
    foreach: ${things}
    do:
      cmd: mkdir -p out && cp source.txt out/${key}.txt && echo '{}' > out/${key}.json
      params: [scale, "things.${key}"]
      deps: [source.txt, science]
      outs: ["out/${key}.txt"]
      metrics: [{"out/${key}.json": {cache: false}}]
"""
PARAMS = "scale: reduced\nthings: {a: {epochs: 2, lr: 1.0e-3}, b: {epochs: 3}}\n"


@pytest.fixture
def project(dvc_project: Path) -> Path:
    (dvc_project / "dvc.yaml").write_text(DVC_YAML)
    (dvc_project / "params.yaml").write_text(PARAMS)
    (dvc_project / "source.txt").write_text("pixels")
    (dvc_project / "science").mkdir()
    (dvc_project / "science/method.py").write_text("x = 1\n")
    suite = dvc_project / "suites/other"
    suite.mkdir(parents=True)
    (suite / "params.yaml").write_text(PARAMS)
    (suite / "source.txt").write_text("pixels")
    (suite / "dvc.yaml").symlink_to("../../dvc.yaml")
    (suite / "science").symlink_to("../../science")
    return dvc_project


def test_the_fingerprint_names_the_folder_of_the_run_cache(project: Path, call) -> None:
    before = DvcCache().identify(project, "make@a")
    done = call("dvc", "repro", "make@a", cwd=project)
    assert done.returncode == 0, done.stderr
    entries = [path.name for path in (project / ".dvc/cache/runs").glob("??/*")]
    assert entries == [before.fingerprint]
    assert DvcCache().identify(project, "make@a") == before
    assert set(before.inputs) == {"source.txt", "science"}


def test_the_fingerprint_follows_params_inputs_and_code_and_nothing_else(project: Path) -> None:
    cache = DvcCache()
    before = cache.identify(project, "make@a").fingerprint
    (project / "params.yaml").write_text(PARAMS.replace("epochs: 3", "epochs: 4") + "# note\n")
    assert cache.identify(project, "make@a").fingerprint == before
    for path, text in (
        ("params.yaml", PARAMS.replace("1.0e-3", "2.0e-3")),
        ("source.txt", "other pixels"),
        ("science/method.py", "x = 2\n"),
    ):
        kept = (project / path).read_text()
        (project / path).write_text(text)
        assert cache.identify(project, "make@a").fingerprint != before, path
        (project / path).write_text(PARAMS if path == "params.yaml" else kept)
    assert cache.identify(project, "make@a").fingerprint == before


def test_two_suites_give_one_run_the_same_fingerprint(project: Path) -> None:
    cache = DvcCache()
    root = cache.identify(project, "make@a").fingerprint
    assert cache.identify(project / "suites/other", "make@a").fingerprint == root


@pytest.mark.parametrize("name", ["make@c", "mak@a"])
def test_a_stage_that_dvc_does_not_have_is_a_user_error(project: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        DvcCache().identify(project, name)


def test_an_input_that_is_missing_is_a_user_error(project: Path) -> None:
    (project / "source.txt").unlink()
    with pytest.raises(UserError, match=r"source\.txt"):
        DvcCache().identify(project, "make@a")


# From here on: results that are filed from outside, held to what DVC writes itself.

CHAIN = """
stages:
  prepare:
    foreach: ${things}
    do:
      cmd: produce prepare ${key}
      params: ["things.${key}"]
      deps: [science, code/report.txt]
      outs: ["data/${key}"]
  train:
    foreach: ${things}
    do:
      cmd: produce train ${key}
      params: [scale, "things.${key}"]
      deps: [science, code/report.txt, "data/${key}"]
      outs: ["runs/${key}"]
      metrics: [{"runs/${key}.json": {cache: false}}]
"""
PRODUCE = """#!/bin/sh
set -e
case $1 in
  prepare) mkdir -p data/$2/deep; echo $2 > data/$2/shard; echo one > data/$2/deep/one ;;
  train)
    mkdir -p runs/$2/journal; cat data/$2/shard > runs/$2/weights; echo x > runs/$2/journal/a.jsonl
    touch runs/$2/scratch.tmp; echo '{"acc1": 1.0}' > runs/$2.json ;;
esac
"""


class Chain:
    """A project of two stages in a row, and the outputs that its program makes."""

    def __init__(self, root: Path, programs: Path, call: Call) -> None:
        self.root, self.call, self.programs = root, call, programs
        self.cache = DvcCache()

    def dvc(self, *arguments: str) -> str:
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        done = self.call("dvc", *arguments, cwd=self.root, PATH=path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def facts(self, name: str) -> StageFacts:
        return self.cache.survey(self.root, [name])[name]

    def filing(self, name: str, outputs: dict[str, Path], scratch: Path) -> Filing:
        facts = self.facts(name)
        inputs = scratch / "in"
        wanted = {d["path"]: d for d in facts.document["deps"] if d["path"] in facts.upstream}
        self.cache.link(self.root, wanted, inputs)
        return Filing(
            root=self.root, suite=self.root, document=facts.document, outputs=outputs,
            code=self.root, inputs=inputs, params=self.root / "params.yaml", scratch=scratch,
        )  # fmt: skip

    def entries(self) -> dict[str, bytes]:
        """Return the run-cache: path -> content."""
        runs = self.root / ".dvc/cache/runs"
        return {str(p.relative_to(runs)): p.read_bytes() for p in runs.glob("??/*/*")}

    def objects(self) -> dict[str, tuple[int, int]]:
        """Return the cache's files: name -> (size, mode)."""
        files = self.root / ".dvc/cache/files/md5"
        stats = {str(p.relative_to(files)): p.stat() for p in files.glob("??/*")}
        return {name: (stat.st_size, stat.st_mode) for name, stat in stats.items()}


@pytest.fixture
def chain(dvc_project: Path, tmp_path: Path, call: Call) -> Chain:
    (dvc_project / "dvc.yaml").write_text(CHAIN)
    (dvc_project / "params.yaml").write_text(
        "scale: reduced\nthings: {a: {lr: 1.0e-3, epochs: 2, augment: {scale: [0.2, 1]}}}\n"
    )
    (dvc_project / ".dvcignore").write_text("*.tmp\n.asl\n")
    refresh_identities(dvc_project)  # of the installed code: the project holds none
    (dvc_project / "science").mkdir()
    (dvc_project / "science/method.py").write_text("x = 1\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "produce").write_text(PRODUCE)
    (programs / "produce").chmod(0o755)
    return Chain(dvc_project, programs, call)


def keep_outputs(chain: Chain, tmp_path: Path) -> dict[str, Path]:
    """Copy what the second stage made to where a job would have it, and forget that DVC has it."""
    made = chain.root / ".asl/jobs/f/out"
    shutil.copytree(chain.root / "runs/a", made)
    made.joinpath("other.tmp").write_text("not a result")
    metrics = chain.root / ".asl/jobs/f/metrics.json"
    shutil.copy(chain.root / "runs/a.json", metrics)
    for file in (*made.rglob("*"), metrics):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return {"runs/a": made, "runs/a.json": metrics}


@pytest.mark.parametrize("way", ["direct", "commands"])
def test_a_filed_result_is_what_dvc_itself_would_have_written(
    chain: Chain, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.dvc("repro")
    entries, objects, lock = chain.entries(), chain.objects(), (chain.root / "dvc.lock").read_text()
    assert len(entries) == 2
    made = keep_outputs(chain, tmp_path)
    shutil.rmtree(chain.root / ".dvc/cache")
    shutil.rmtree(chain.root / "runs")
    (chain.root / "dvc.lock").unlink()
    chain.dvc("repro", "prepare@a")
    facts = chain.facts("train@a")
    assert facts.outputs is None
    if way == "commands":
        monkeypatch.setattr(DvcCache, "_write_entry", lambda *_: DvcCache.gone)
    hashes = chain.cache.file(chain.filing("train@a", made, tmp_path / "scratch"))
    assert chain.entries() == entries
    code, md5 = code_of(facts.document)  # kept beside, to be compared with later code
    assert chain.cache.read(chain.root, md5) == (chain.root / code).read_text()
    own = f"{md5[:2]}/{md5[2:]}"
    assert {k: v for k, v in chain.objects().items() if k != own} == objects
    assert chain.cache.find(chain.root, str(facts.fingerprint)) == hashes
    assert not (chain.root / "runs").exists()
    said = chain.dvc("repro")
    assert "Stage 'train@a' is cached - skipping run" in said
    assert (chain.root / "dvc.lock").read_text() == lock
    assert "up to date" in chain.dvc("status")


def test_a_survey_knows_a_stage_by_the_result_of_what_it_needs(chain: Chain) -> None:
    before = chain.facts("train@a")
    assert (before.fingerprint, before.outputs, before.locked) == (None, None, None)
    assert before.upstream == {"data/a": "prepare@a"}
    assert [dep for dep in before.document["deps"] if "md5" not in dep] == [
        {"path": "data/a", "hash": "md5"}
    ]
    chain.dvc("repro")
    after = chain.facts("train@a")
    assert after.fingerprint == chain.cache.identify(chain.root, "train@a").fingerprint
    assert after.recipe == before.recipe
    assert after.outputs is not None
    assert set(after.outputs) == {"runs/a", "runs/a.json"}
    assert differences(after.document, after.locked or {}) == []
    # the workspace is not asked: what is there may be missing, edited, or of yesterday
    shutil.rmtree(chain.root / "data")
    assert chain.facts("train@a") == after


def test_a_survey_follows_code_and_params_down_the_chain(chain: Chain) -> None:
    chain.dvc("repro")
    before = chain.facts("train@a")
    (chain.root / "science/method.py").write_text("x = 2\n")
    changed = chain.facts("train@a")
    assert changed.fingerprint is None  # prepare@a has to run again
    assert changed.recipe != before.recipe
    assert differences(before.document, changed.document) == ["data/a", "science"]
    (chain.root / "science/method.py").write_text("x = 1\n")
    assert chain.facts("train@a") == before


def test_a_result_known_from_the_lock_file_alone_is_one(chain: Chain) -> None:
    chain.dvc("repro")
    shutil.rmtree(chain.root / ".dvc/cache/runs")  # as after `dvc pull`
    assert chain.facts("train@a").outputs is not None


def test_a_result_of_which_the_cache_lost_a_file_is_none(chain: Chain) -> None:
    chain.dvc("repro")
    outputs = chain.facts("train@a").outputs
    assert outputs is not None
    assert chain.cache.holds(chain.root, outputs)
    for file in (chain.root / ".dvc/cache/files/md5").glob("??/*"):
        if not file.name.endswith(".dir") and file.read_bytes() == b"x\n":
            file.unlink()
    assert not chain.cache.holds(chain.root, outputs)
    assert chain.facts("train@a").outputs is None


def test_inputs_are_laid_out_from_the_cache_and_not_copied(chain: Chain, tmp_path: Path) -> None:
    chain.dvc("config", "cache.type", "hardlink")
    chain.dvc("repro", "prepare@a")
    outputs = chain.facts("prepare@a").outputs
    assert outputs is not None
    (chain.root / "data/a/shard").unlink()
    target = chain.root / ".asl/jobs/f/in"
    chain.cache.link(chain.root, outputs, target)
    assert (target / "data/a/deep/one").read_text() == "one\n"
    assert (target / "data/a/shard").stat().st_nlink > 1
    with pytest.raises(UserError, match="no longer in DVC's cache"):
        chain.cache.link(chain.root, {"data/b": {"md5": "0" * 32}}, target)


def test_what_dvc_does_not_track_can_be_put_into_its_cache(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "encoder.safetensors").write_text("weights")
    hashes = chain.cache.add(chain.root, {"encoders/mae": folder})
    (folder / "encoder.safetensors").unlink()
    chain.cache.link(chain.root, hashes, tmp_path / "in")
    assert (tmp_path / "in/encoders/mae/encoder.safetensors").read_text() == "weights"


def test_a_full_disk_while_filing_leaves_no_entry(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dvc_objects.fs.generic as generic

    chain.dvc("repro")
    made = keep_outputs(chain, tmp_path)
    filing = chain.filing("train@a", made, tmp_path / "scratch")
    shutil.rmtree(chain.root / ".dvc/cache/runs")
    shutil.rmtree(chain.root / ".dvc/cache/files")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generic, "_try_links", refuse)
    monkeypatch.setattr(generic, "copy", refuse)
    with pytest.raises(OSError, match=r"could not be put|No space"):
        chain.cache.file(filing)
    assert chain.entries() == {}


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: Unable to acquire lock. Most likely another DVC process is running",
        "ERROR: '/p/runs/a' is busy, it is being blocked by:\n  (PID 7): dvc repro",
    ],
)
def test_another_dvc_command_is_waited_for(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(255, said), (255, said), (0, "done")]

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        code, text = answers.pop(0)
        return subprocess.CompletedProcess(command, code, stdout=text, stderr=text * bool(code))

    monkeypatch.setattr(dvc_command.subprocess, "run", run)
    monkeypatch.setattr(dvc_command, "LOCK_PAUSE_S", 0.0)
    assert dvc_command._dvc(tmp_path, "repro") == "done"
    answers += [(255, said), (255, "ERROR: failed to reproduce 'a'")]
    with pytest.raises(OSError, match="failed to reproduce"):
        dvc_command._dvc(tmp_path, "repro")
    monkeypatch.setattr(dvc_command, "LOCK_S", -1.0)
    answers.append((255, said))
    with pytest.raises(OSError, match=r"acquire lock|is busy"):
        dvc_command._dvc(tmp_path, "repro")


def test_a_dvc_command_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_command, "TIMEOUT_S", 0.01)
    with pytest.raises(OSError, match="took more than"):
        dvc_command._dvc(tmp_path, "version")
