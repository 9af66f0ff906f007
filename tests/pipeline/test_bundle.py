"""Runs that are carried to a machine with nothing but torch, and what is taken home from there."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bare_environment import BareMachine

from pipeline.bundles.archive import write_archive
from pipeline.bundles.contents import LAUNCHER
from pipeline.bundles.manifest import RESULTS_DIGEST, RESULTS_FILE, mark_bytes
from pipeline.cli import run_command

ROOT = Path(__file__).parents[2]
PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table1]
datasets: {icons: {source: icons, train: 8, test: 4, image_size: 32}}
experiments:
  asl:
    method: asl
    dataset: icons
    model: {size: vit-demo, embed_dim: 16, depth: 1, num_heads: 2, decoder_depth: 1}
    epochs: 40
    batch_size: 4
    warmup_epochs: 1
    lr: 1.0e-3
    precision: fp32
linprobe:
  asl: {dataset: icons, epochs: 2, batch_size: 4, lr: 1.0, warmup_epochs: 0, augment: false}
analyze:
  asl: {dataset: icons}
"""
RESULTS = "tiny.results.zip"
CHAIN = ("pretrain@asl", "linprobe@asl")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    return BareMachine(tmp_path_factory.mktemp("bare"))


def run_cache(root: Path) -> dict[str, str]:
    """Return DVC's key -> command of every result that is filed."""
    entries = (root / ".dvc/cache/runs").glob("??/*/*")
    return {path.parent.name: yaml.safe_load(path.read_text())["cmd"] for path in entries}


class Home:
    """A project, and a folder on a machine that its bundles are carried to."""

    def __init__(self, root: Path, bare: BareMachine, away: Path) -> None:
        self.root, self.bare, self.away = root, bare, away

    def asl(self, *arguments: str, code: int = 0) -> str:
        """Run a command of asl-pipe in this process and return what it printed."""
        out, err = io.StringIO(), io.StringIO()
        here = contextlib.chdir(self.root)
        with here, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = run_command([*arguments])
        said = out.getvalue() + err.getvalue()
        assert found == code, said
        return said

    def dvc(self, *arguments: str) -> str:
        done = subprocess.run(
            ["dvc", *arguments], cwd=self.root, env=os.environ | {"PYTHONPATH": str(self.root)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def bundle(self, *wanted: str) -> str:
        return self.asl("bundle", *wanted, "-o", str(self.away / "tiny.pyz"))

    def go(self, *options: str, code: int = 0, **stub: Any) -> str:
        """Run the bundle there."""
        process = self.start(*options, **stub)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said

    def start(self, *options: str, **stub: Any) -> subprocess.Popen[str]:
        return self.bare.start(str(self.away / "tiny.pyz"), *options, STUB=json.dumps(stub))

    def forget(self) -> None:
        """Let the bundle be one that has not run."""
        for left in self.away.iterdir():
            if left.suffix == ".work":
                shutil.rmtree(left)
            elif left.suffix == ".zip":
                left.unlink()

    def accept(self, name: str = RESULTS, code: int = 0) -> str:
        return self.asl("accept", str(self.away / name), code=code)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    def key(self, name: str) -> str:
        """Return the key under which a run's result is filed."""
        command = f"asl-pipe run {name.replace('@', ' ')}"
        return next(key for key, made in run_cache(self.root).items() if made == command)

    def metrics(self, stage: str) -> dict[str, Any]:
        return json.loads((self.root / f"runs/{stage}/asl.json").read_text())

    def trace(self) -> str:
        return self.asl("trace", "demo", "asl", "LP")

    def filed(self) -> set[str]:
        """Return the runs that DVC's run-cache has results of."""
        return {command.removeprefix("asl-pipe run ").replace(" ", "@")
                for command in run_cache(self.root).values()}  # fmt: skip

    def state(self) -> dict[str, bytes]:
        """Return everything that filing or adopting a result would change."""
        files = [*(self.root / ".dvc/cache").rglob("*"), *(self.root / "runs").rglob("*")]
        files += [self.root / "dvc.lock", *(self.root / ".asl").glob("accept-*")]
        return {str(path): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def template(
    stub_template: Path, copy_project: Any, repro: Any, bare: BareMachine, tmp_path_factory: Any
) -> Home:
    """Make a project once whose stages add numbers up; its bundle has run."""
    folder = tmp_path_factory.mktemp("bundle")
    home = Home(copy_project(stub_template, folder / "project"), bare, folder / "away")
    home.away.mkdir()
    repro(home.root, "prepare@icons")
    said = home.bundle("linprobe")
    assert "pretrain@asl, linprobe@asl: packed into" in said  # what it needs comes along
    said = home.go()
    assert "pretrain@asl (1 of 2): finished" in said
    assert "linprobe@asl (2 of 2): finished" in said
    return home


@pytest.fixture
def stubs(template: Home, tmp_path: Path) -> Home:
    """Return a copy of that project, and of what its bundle has left."""
    shutil.copytree(template.root, tmp_path / "project")
    shutil.copytree(template.away, tmp_path / "away")
    return Home(tmp_path / "project", template.bare, tmp_path / "away")


def test_a_chain_is_made_there_and_adopted_here(stubs: Home) -> None:
    before = stubs.filed()
    said = stubs.accept()
    assert said.count("filed") == 2
    assert "adopted into dvc.lock: pretrain@asl, linprobe@asl" in said
    assert stubs.filed() - before == set(CHAIN)
    for name in CHAIN:
        assert "up to date" in stubs.dvc("status", name)
    said = stubs.dvc("repro", "linprobe@asl")
    assert "Running stage" not in said.replace("Running stage 'code'", "")
    key = stubs.key("linprobe@asl")
    journal = "".join(
        path.read_text() for path in (stubs.root / "runs/linprobe/asl/journal").glob("*.jsonl")
    )
    assert key in journal  # under its name, which nobody knew there
    assert "p-" not in journal
    assert stubs.metrics("linprobe")["fingerprint"] == key
    accepted = json.loads((stubs.root / f".asl/jobs/{key}/accepted.json").read_text())
    assert accepted["status"] == "finished"
    assert accepted["machine"]["host"]


def test_a_suite_is_bundled_and_accepted_from_the_root(stubs: Home) -> None:
    suite = stubs.root / "suites/mine"
    suite.mkdir(parents=True)
    params = (stubs.root / "params.yaml").read_text()
    (suite / "params.yaml").write_text(params.replace("suite: tiny", "suite: mine"))
    stubs.asl("expand", "mine")
    stubs.dvc("--cd", str(suite), "repro", "-q", "prepare@icons")
    stubs.edit("suites/mine/params.yaml", "epochs: 2,", "epochs: 3,")
    stubs.forget()
    stubs.bundle("pretrain", "--suite", "mine")
    stubs.go()
    assert "adopted into dvc.lock: pretrain@asl" in stubs.accept()
    assert "up to date" in stubs.dvc("--cd", str(suite), "status", "pretrain@asl")
    assert not (stubs.root / "runs/encoder").exists()


def test_accepting_twice_adds_nothing(stubs: Home) -> None:
    stubs.accept()
    before = stubs.state()
    said = stubs.accept()
    assert said.count("filed already") == 2
    assert "adopted" not in said
    assert stubs.state() == before


def test_what_was_made_here_meanwhile_stays(stubs: Home) -> None:
    stubs.dvc("repro", "-q", "pretrain@asl")
    before = stubs.filed()
    said = stubs.accept()
    assert "left out" in said
    assert "has another result already" in said
    assert stubs.filed() - before == {"linprobe@asl"}  # of the same weights


def test_an_evaluation_of_an_encoder_that_is_not_the_one_here_is_refused(stubs: Home) -> None:
    stubs.forget()
    stubs.go(steps=4)
    stubs.dvc("repro", "-q", "pretrain@asl")  # three steps: other weights under the same key
    said = stubs.accept(code=2)
    assert "made from another runs/encoder/asl/encoder.safetensors than is filed here" in said
    assert "linprobe@asl" not in stubs.filed()


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("params.yaml", "epochs: 2,", "epochs: 4,", "experiments.asl.epochs 2 -> 4"),
        ("pipeline/stages/pretrain.py", "SALT = 0", "SALT = 1",
         "code of pipeline.stages.pretrain"),
        ("params.yaml", "  asl: {method", "  mae: {method", "params.yaml has no such run any more"),
    ],
    ids=["parameter", "code", "no such run"],
)  # fmt: skip
def test_a_result_of_something_else_is_refused(
    stubs: Home, path: str, old: str, new: str, said: str
) -> None:
    stubs.edit(path, old, new)
    if "mae" in new:
        stubs.edit("params.yaml", "  asl: {dataset", "  mae: {dataset")
        stubs.asl("expand")
    before = stubs.filed()
    printed = stubs.accept(code=2)
    assert said in printed
    assert "refused" in printed
    assert stubs.filed() == before
    assert not (stubs.root / "runs/encoder").exists()


def test_a_result_of_other_data_is_refused(stubs: Home) -> None:
    stubs.edit("pipeline/stages/prepare.py", "request.key)", "request.key * 2)")
    stubs.dvc("repro", "-q", "prepare@icons")
    assert "made from another data/icons/shard than is filed here" in stubs.accept(code=2)
    assert "pretrain@asl" not in stubs.filed()


def test_a_flipped_byte_is_refused_in_one_line(stubs: Home) -> None:
    archive = stubs.away / RESULTS
    whole, before = archive.read_bytes(), stubs.state()
    with zipfile.ZipFile(archive) as read:
        places = [info.header_offset + 30 + len(info.filename) + 3 for info in read.infolist()
                  if info.compress_size > 10]  # fmt: skip
    assert len(places) > 5
    for place in places[::3]:
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        said = stubs.accept(code=2)
        assert len(said.splitlines()) == 1, said
        assert "nothing was taken" in said
    archive.write_bytes(whole[: len(whole) // 2])
    assert "no whole zip archive" in stubs.accept(code=2)
    assert stubs.state() == before


def forged(archive: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Write an archive anew with other content, digests that fit it included."""
    with zipfile.ZipFile(archive) as read:
        entries = {name: read.read(name) for name in read.namelist()}
    results = json.loads(entries.pop(RESULTS_FILE))
    del entries[RESULTS_DIGEST]
    change(results, entries)
    text = json.dumps(results).encode()
    digest = mark_bytes(text).sha256.encode()
    write_archive(archive, {RESULTS_FILE: text, RESULTS_DIGEST: digest, **entries})


def test_a_record_that_contradicts_itself_is_refused(stubs: Home) -> None:
    whole, before = (stubs.away / RESULTS).read_bytes(), stubs.state()
    extra = mark_bytes(b"x")

    def other_place(results: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["runs/pretrain@asl/elsewhere/x"] = b"x"
        for marks, name in (
            (results["files"], "runs/pretrain@asl/elsewhere/x"),
            (results["runs"][0]["files"], "elsewhere/x"),
        ):
            marks[name] = {"size": extra.size, "sha256": extra.sha256}

    def other_code(results: dict[str, Any], entries: dict[str, bytes]) -> None:
        results["runs"][0]["code"]["pipeline.stages.pretrain"] = "0" * 20

    def other_suite(results: dict[str, Any], entries: dict[str, bytes]) -> None:
        results["folder"] = "../elsewhere"

    def no_document(results: dict[str, Any], entries: dict[str, bytes]) -> None:
        results["runs"][0]["document"] = {}

    def newer(results: dict[str, Any], entries: dict[str, bytes]) -> None:
        results["version"] = 99

    for change, said in (
        (other_place, "elsewhere/x, which is no output of it"),
        (other_code, "pipeline.stages.pretrain that was loaded is not the one that it names"),
        (other_suite, "does not have"),
        (no_document, "refused"),
        (newer, "version 99"),
    ):
        (stubs.away / RESULTS).write_bytes(whole)
        forged(stubs.away / RESULTS, change)
        assert said in stubs.accept(code=2)
        assert stubs.state() == before


def test_a_failed_run_is_told_and_what_needs_it_is_not_begun(stubs: Home) -> None:
    stubs.forget()
    said = stubs.go(code=1, fail=0)
    assert "pretrain@asl (1 of 2): failed: ZeroDivisionError: the stub of rank 0 fails" in said
    assert "linprobe@asl (2 of 2): not begun, pretrain@asl is failed" in said
    before = stubs.filed()
    said = stubs.accept(code=1)
    assert "failed there" in said
    assert "ZeroDivisionError" in said
    assert stubs.filed() == before
    assert "2 finished" in stubs.go()  # again, now that it can
    stubs.accept()


def test_a_stopped_run_goes_on_where_it_stopped(stubs: Home) -> None:
    stubs.forget()
    process = stubs.start(steps=200, step_s=0.05)
    wait_for_step(stubs.away, 12)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert "interrupted" in said
    before = stubs.state()
    said = stubs.accept(code=75)
    assert "not finished" in said
    assert "start the bundle again there" in said
    assert stubs.state() == before
    stubs.go(steps=200)
    resumed = [
        json.loads(line)["step"] for path in journals(stubs.away)
        for line in path.read_text().splitlines() if '"kind": "resume"' in line
    ]  # fmt: skip
    assert resumed[0] == 0
    assert max(resumed[1:]) >= 12
    stubs.accept()
    text = (stubs.root / "runs/encoder/asl/encoder.safetensors").read_text()
    assert text == str(5 + sum(step**2 for step in range(1, 201)))


def test_a_runner_that_is_killed_ends_its_run_too_with_a_checkpoint(stubs: Home) -> None:
    stubs.forget()
    process = stubs.start(steps=400, step_s=0.05)
    wait_for_step(stubs.away, 3)
    process.kill()
    process.wait(timeout=60)
    assert "2 finished" in stubs.go(steps=400)  # waits for the other to end
    assert process.stdout is not None
    process.stdout.close()
    first = {path.parent for path in journals(stubs.away) if path.stem == "attempt-001"}
    assert len(first) == 1


def test_a_length_that_was_chosen_there_is_accepted_under_that_length_alone(stubs: Home) -> None:
    stubs.forget()
    # packed with two epochs: it ends before it has been measured for long, which is enough
    work = {"steps": 60, "step_s": 0.02}
    packed = 2  # STUB_PARAMS
    said = stubs.go("--minutes", "0.5", **work)
    (choice,) = stubs.away.glob("tiny-*.work/length.json")
    epochs = json.loads(choice.read_text())["epochs"]
    assert f"epochs: {epochs} was chosen here" in said
    assert epochs != packed
    before = stubs.filed()
    refused = stubs.accept(code=2)
    assert f"experiments.asl.epochs {epochs} -> {packed}" in refused
    assert stubs.filed() == before
    again = stubs.go(**work)
    assert f"{epochs} epochs each, as chosen before" in again
    assert again.count("finished before") == 2
    assert "is kept; delete" in stubs.go("--minutes", "1", code=2, **work)
    stubs.edit("params.yaml", f"epochs: {packed},", f"epochs: {epochs},")
    assert "adopted into dvc.lock: pretrain@asl, linprobe@asl" in stubs.accept()
    assert stubs.filed() - before == set(CHAIN)
    for name in CHAIN:
        assert "up to date" in stubs.dvc("status", name)
    key = stubs.key("linprobe@asl")
    assert stubs.metrics("linprobe")["fingerprint"] == key


def test_no_length_is_chosen_where_none_fits(stubs: Home) -> None:
    stubs.forget()
    said = stubs.go("--minutes", "0.001", code=2, steps=60, step_s=0.02)
    assert "no epoch fits" in said
    said = stubs.go("--minutes", "1", code=2, fail=0)
    assert "pretrain@asl made too few steps to be measured" in said
    assert not (stubs.away / RESULTS).exists()


def test_a_run_that_lacks_a_package_is_left_out_where_that_is_asked_for(stubs: Home) -> None:
    stubs.forget()
    stubs.edit("pipeline/stages/linprobe.py", "import json\n", "import json\nimport mlflow\n")
    stubs.bundle("linprobe")
    assert "mlflow cannot be imported" in stubs.go(code=2)
    said = stubs.go("--skip-missing", code=75)
    assert "linprobe@asl (2 of 2): not begun, mlflow cannot be imported" in said
    assert "pretrain@asl (1 of 2): finished" in said
    before = stubs.filed()
    stubs.accept(code=75)
    assert stubs.filed() - before == {"pretrain@asl"}


def wait_for_step(away: Path, step: int) -> None:
    for _ in range(4800):  # importing torch takes long on a machine that is busy
        if any(f'"step": {step},' in path.read_text() for path in journals(away)):
            return
        time.sleep(0.05)
    raise AssertionError("it does not get on")


def journals(away: Path) -> list[Path]:
    """Return the journals of the attempts at the first run, the first one first."""
    return sorted(away.glob("tiny-*.work/.asl/jobs/*/journal/attempt-*.jsonl"))


def test_a_damaged_bundle_runs_nothing(stubs: Home) -> None:
    stubs.forget()
    path = stubs.away / "tiny.pyz"
    whole = path.read_bytes()
    place = whole.index(b"icons", whole.index(b"suite/data/icons/shard") + 20)
    path.write_bytes(whole[:place] + b"jcons" + whole[place + 5 :])
    said = stubs.go(code=2)
    assert "copy the bundle once more" in said
    assert not (stubs.away / RESULTS).exists()


def test_an_input_that_is_changed_there_is_put_back(stubs: Home) -> None:
    stubs.forget()
    stubs.go(code=1, fail=0)
    (shard,) = stubs.away.glob("tiny-*.work/suite/data/icons/shard")
    shard.write_text("other")
    assert "2 finished" in stubs.go()


def test_what_cannot_be_bundled_is_said_in_one_line(stub_project: Path, bare: BareMachine) -> None:
    home = Home(stub_project, bare, stub_project)

    def refusal(*arguments: str) -> str:
        said = home.asl("bundle", *arguments, code=2)
        assert len(said.splitlines()) == 1, said
        return said

    assert "run `dvc repro prepare@icons` first" in refusal("pretrain", "asl")
    assert "did you mean" in refusal("pretrain", "als")
    assert "pretrain" in refusal("pretrian")
    assert "asl-pipe bundle STAGE NAME..." in refusal("all", "asl")
    assert not list(stub_project.glob("*.pyz"))


def test_a_package_that_is_missing_there_is_named_as_pip_names_it(bare: BareMachine) -> None:
    script = (
        "import runpy\n"
        f"launcher = runpy.run_path({str(ROOT / LAUNCHER)!r})\n"
        "launcher['_require']([{'packages': ['torch']}])\n"
        "try:\n"
        "    launcher['_require']([{'packages': ['timm', 'sklearn']}])\n"
        "except launcher['Refusal'] as refusal:\n"
        "    print(refusal.code, refusal)\n"
    )
    said = bare.run("-c", script)
    assert said.startswith("2 sklearn cannot be imported by ")
    assert said.endswith("; pip install scikit-learn\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_torch_alone_makes_the_bytes_that_are_made_here(
    site_template: Path, copy_project: Any, call: Any, bare: BareMachine, tmp_path: Path
) -> None:
    root = copy_project(site_template, tmp_path / "project")
    (root / "params.yaml").write_text(PARAMS)
    home = Home(root, bare, tmp_path / "away")
    home.away.mkdir()
    home.dvc("repro", "-q", "prepare@icons")
    absent = [
        "dvc",
        "mlflow",
        "pydantic",
        "typer",
        "matplotlib",
        "psutil",
        "submitit",
        "pycocotools",
    ]
    check = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    assert bare.run("-c", check) == "[]\n"
    home.bundle("pretrain", "--downstream")
    process = bare.start(str(home.away / "tiny.pyz"), "--checkpoint-minutes", "0")
    wait_for_step(home.away, 10)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 75, said
    said = home.go()
    assert "resumed after step" in said
    assert "3 finished" in said
    home.accept()
    made = home.trace()
    assert "from bundle" in made
    assert "not drawn: no matplotlib on the machine" in made
    here = tmp_path / "here"
    shutil.copytree(root, here, ignore=shutil.ignore_patterns("runs", ".asl", "cache", "dvc.lock"))
    done = call("dvc", "repro", "-q", "linprobe@asl", "analyze@asl", cwd=here,
                PYTHONPATH=str(here))  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in (
        "encoder/asl/encoder.safetensors", "pretrain/asl/method.safetensors", "pretrain/asl.json",
        "linprobe/asl/probe.safetensors", "linprobe/asl.json", "linprobe/asl/config.json",
        "analyze/asl.json", "analyze/asl/similarity.json", "analyze/asl/contrastive.json",
    ):  # fmt: skip
        assert sha256(root / "runs" / name) == sha256(here / "runs" / name), name
    assert run_cache(here).items() <= run_cache(root).items()  # `dvc repro` finds them
    assert "up to date" in home.dvc("status", "pretrain@asl", "linprobe@asl", "analyze@asl")
    assert os.listdir(home.root / "runs/analyze/asl/pictures")
