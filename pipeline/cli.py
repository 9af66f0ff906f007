"""The command asl-pipe: mounts the commands, turns errors into one line and an exit code.

Commands import what they need when they run, so that --help answers at once.
"""

import errno
import importlib.metadata
import logging
import sys
import traceback
from typing import Annotated

import typer

from asl_core.engine.journal import redact
from asl_core.errors import InputError, InterruptedRun, TrainingError
from pipeline.commands.accept import accept
from pipeline.commands.bundle import bundle
from pipeline.commands.cancel import cancel
from pipeline.commands.compare import compare
from pipeline.commands.cost import cost
from pipeline.commands.doctor import doctor
from pipeline.commands.embed import embed
from pipeline.commands.expand import expand
from pipeline.commands.export_encoder import export_encoder
from pipeline.commands.gc import gc
from pipeline.commands.import_encoder import import_encoder
from pipeline.commands.init import init
from pipeline.commands.logs import logs
from pipeline.commands.neighbours import neighbours
from pipeline.commands.new import new
from pipeline.commands.pick import pick
from pipeline.commands.plan import plan
from pipeline.commands.rehearse import rehearse
from pipeline.commands.run import run
from pipeline.commands.status import status
from pipeline.commands.submit import submit
from pipeline.commands.sweep import sweep
from pipeline.commands.sync import sync
from pipeline.commands.tables import tables
from pipeline.commands.trace import trace
from pipeline.commands.ui import ui
from pipeline.commands.validate import validate
from pipeline.commands.vouch import vouch
from pipeline.errors import AslPipeError
from pipeline.garbage import collect_rarely, leave_garbage
from pipeline.loading import HERE, import_failure

_ROOM = "earlier results are intact; free some space and run the same command"
OF_THE_MACHINE = {
    errno.ENOSPC: (_ROOM, 1),
    errno.EDQUOT: (_ROOM, 1),
    errno.EROFS: ("earlier results are intact; run the same command on a writable filesystem", 1),
    errno.EIO: ("earlier results are intact; check the disk and run the same command", 1),
    errno.ESTALE: ("the network filesystem has lost it for now; run the same command again", 1),
    errno.EACCES: ("make it readable, and its folder writable, for your user", 2),
    errno.EPERM: ("make it readable, and its folder writable, for your user", 2),
}
"""System errors that say what is wrong with the machine: what to do, and the exit code."""

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_HELP = (
    "ASL: self-supervised pre-training from arbitrary scenarios, and the methods it is "
    "compared with, from data to the paper's tables.\n\n"
    "DVC runs the DAG: `dvc repro` at the root runs the demo, `dvc --cd suites/NAME repro` a "
    "suite. Hyperparameters are in params.yaml, machines in cluster.yaml.\n\n"
    "Examples: asl-pipe validate cifar10-mini; asl-pipe tables --format latex; asl-pipe ui.\n\n"
    "Exit codes: 0 done; 1 a stage failed; 2 the input is wrong; 75 not finished, run it again "
    "later."
)
app = typer.Typer(
    name="asl-pipe",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version, where its code lies and what runs it, and end."""
    if wanted:
        version = importlib.metadata.version("asl-pipe")
        typer.echo(f"asl-pipe {version} from {HERE}, Python {sys.version.split()[0]}")
        raise typer.Exit()


@app.callback(help=_HELP, invoke_without_command=True)
def asl_pipe(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Print the help where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (
    init, new, run, plan, rehearse, submit, status, logs, cancel, bundle, accept, tables, compare,
    sweep, pick, cost, trace, vouch, ui, sync, gc, import_encoder, export_encoder, embed,
    neighbours, expand, validate, doctor,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Run the command line and exit."""
    collect_rarely()
    try:
        code = run_command(sys.argv[1:])
    except Exception:  # unexpected; libraries put addresses with passwords into their errors
        sys.stderr.write(redact(traceback.format_exc()))
        code = _say("unexpected error; please report the traceback above", 1)
    leave_garbage()
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code; expected errors become one line each."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("asl_core", "pipeline"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        code = app(arguments, prog_name="asl-pipe", standalone_mode=False)
    except typer.Exit as error:
        code = error.exit_code
    except typer.TyperException as error:
        return _say(f"{_plain(error.format_message())} (asl-pipe --help)", 2)
    except AslPipeError as error:
        return _say(str(error), error.exit_code)
    except (InputError, TrainingError, InterruptedRun) as error:
        return _say(str(error), _SCIENCE[type(error)])
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if (line := import_failure(error)) is not None:
            return _say(line, 2)
        if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
            return _say(f"{error.object!a:.200} is not UTF-8; rename it, or set LC_ALL=C.UTF-8", 2)
        if not isinstance(error, OSError) or error.errno not in OF_THE_MACHINE:
            raise
        remedy, code = OF_THE_MACHINE[error.errno]
        return _say(f"{error.strerror}: {error.filename or 'while writing'}; {remedy}", code)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into it without a word
        return _say("interrupted; run the same command to resume", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _plain(message: str) -> str:
    """Return what Typer says of an argument without what the validator behind it adds."""
    message = message.replace("Value error, ", "").replace("Input should be ", "expected ")
    return message.partition(", unable to parse")[0].rstrip(".")


_SCIENCE = {InputError: 2, TrainingError: 1, InterruptedRun: 75}


def _say(message: str, code: int) -> int:
    """Print an error, one line for each line of the message."""
    for line in message.splitlines() or [message]:
        typer.echo(f"asl-pipe: {line}", err=True)
    return code
