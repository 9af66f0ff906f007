"""The command line: what it says, how it ends, what it loads."""

import errno
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from asl_core.errors import InputError, InterruptedRun, TrainingError
from pipeline import cli
from pipeline.commands.run import committed_by
from pipeline.errors import NotFinishedError, UserError

ROOT = Path(__file__).parents[2]
SUITES = ", ".join(sorted(path.name for path in (ROOT / "suites").iterdir()))
COMMANDS = (
    "run", "tables", "ui", "sync", "validate", "import-encoder", "export-encoder", "embed",
    "neighbours", "doctor",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "mlflow", "dvc", "submitit", "sklearn", "matplotlib",
         "pydantic", "ruamel", "numpy")  # fmt: skip


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, pipeline.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert "Exit codes" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command([command, "--help"]) == 0
    assert f"Example: asl-pipe {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate", "cifar10-min"], "unknown suite 'cifar10-min'; did you mean 'cifar10-mini'?"),
        (["tables", "nothing"], f"unknown suite or table 'nothing' (valid: demo, {SUITES}, "),
        (["run", "pretrian", "asl"], "unknown stage 'pretrian'; did you mean 'pretrain'?"),
        (["run", "pretrain", "als"], "'als'; did you mean 'asl'?"),
        (["run", "prepare", "scene"], "'scene'; did you mean 'scenes'?"),
        (["tables", "--format", "pdf"], "pdf"),
        (["run"], "STAGE"),
        (["export-encoder", "als"], "'als'; did you mean 'asl'?"),
        (["export-encoder", "asl", "--format", "keras"], "keras"),
        (["import-encoder", "nowhere.pth"], "nowhere.pth is not a file"),
        (["import-encoder", "x.pth", "--num-heads", "0"], "--num-heads"),
        (["frobnicate"], "frobnicate"),
        (["tabels"], "Did you mean 'tables'?"),
        (["tables", "--format", "pdf"], "'--format': 'pdf' is not one of 'text', 'md'"),
        (["ui", "--port", "x"], "Invalid value for '--port': expected a valid integer (asl"),
        (["ui", "--port", "70000"], "'--port': expected less than or equal to 65535"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.run_command(arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("folder", "said"), [("/", "not inside a project"), (str(ROOT / "suites"), "no params.yaml")]
)
def test_a_folder_that_is_no_suite_is_named(
    folder: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert cli.run_command(["validate"]) == 2
    assert said in capsys.readouterr().err


def test_validate_counts_what_a_suite_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "suites/cifar10-mini")
    assert cli.run_command(["validate"]) == 0
    assert capsys.readouterr().out.startswith(
        "cifar10-mini: valid; 1 prepare, 0 tokenize, 3 pretrain"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("u"), 2),
        (InputError("i"), 2),
        (TrainingError("t"), 1),
        (InterruptedRun("k"), 75),
        (NotFinishedError("n"), 75),
        (OSError(errno.ENOSPC, "No space left on device", "checkpoint"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "data/train.parquet"), 2),
        (KeyboardInterrupt(), 130),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_is_one_line_with_its_exit_code(
    error: BaseException,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise error

    app = typer.Typer()
    app.command()(fail)
    monkeypatch.setattr(cli, "app", app)
    assert cli.run_command([]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_system_error_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    app = typer.Typer()
    app.command()(fail)
    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(FileNotFoundError):
        cli.run_command([])


def test_what_nobody_foresaw_is_shown_without_passwords_and_asked_to_be_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("cannot reach http://me:hunter22@host:5000/")

    monkeypatch.setattr(cli, "run_command", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "RuntimeError" in said
    assert "hunter22" not in said
    assert said.splitlines()[-1] == (
        "asl-pipe: unexpected error; please report the traceback above"
    )


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_for_reading_and_not_an_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("Usage: asl-pipe")
    assert all(command in said.out for command in COMMANDS)


def test_the_short_option_helps_with_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["plan", "-h"]) == 0
    assert "Example: asl-pipe plan" in capsys.readouterr().out


def test_the_version_comes_with_the_place_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--version"]) == 0
    version = importlib.metadata.version("asl-pipe")
    assert capsys.readouterr().out.startswith(f"asl-pipe {version} from {ROOT}, Python 3.")


def test_a_shell_is_told_how_a_command_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline"], capture_output=True, text=True, check=False,
        env={**os.environ, "_ASL_PIPE_COMPLETE": "complete_bash", "COMP_WORDS": "asl-pipe im",
             "COMP_CWORD": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["import-encoder"]


def test_the_printed_git_command_stages_the_lock_and_every_number(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    for name in ("params.yaml", "dvc.lock", "runs/linprobe/asl.json", "runs/knn/mae.vouched.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "runs/linprobe/asl").mkdir()
    (tmp_path / "runs/linprobe/asl/weights").touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(committed_by(tmp_path), cwd=tmp_path, shell=True, check=True)
    staged = ["git", "diff", "--cached", "--name-only"]
    said = subprocess.run(staged, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.split() == [
        "dvc.lock", "params.yaml", "runs/knn/mae.vouched.json", "runs/linprobe/asl.json",
    ]  # fmt: skip
