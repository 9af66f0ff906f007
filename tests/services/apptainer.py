"""A stand-in for Apptainer, for tests: Debian has no package of it that could be installed.

    python tests/services/apptainer.py FOLDER IMAGE     # makes FOLDER/apptainer and an image

Reads the same command line (`exec`, `--nv`, `--bind=A[:B[:ro]]`, an image, a command) and refuses
what it does not know. It does enter namespaces, by bubblewrap: a process inside sees the image and
what is bound, has the image's PATH, and none of the host's /tmp. As Apptainer does, it stays as
parent, hands signals on, and ends as the process has. What it lacks: .sif files. An image of its is
a text file that names folders of this machine and a PATH.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

VERSION = "apptainer version 0.stand-in"
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_FLAGS = ("--nv", "--writable-tmpfs")
_HIDDEN = ("squeue", "sbatch", "scontrol", "scancel", "sacct", "srun", "sinfo")
"""What an image does not have of the folders that it is made of."""


def make_or_skip(folder: Path, image: Path) -> None:
    """Make both; with CI=true what is missing is installed first, else the test is skipped."""
    import pytest
    from debian import install

    if shutil.which("bwrap") is None:
        if os.environ.get("CI") != "true":
            pytest.skip("no bwrap; apt-get install --no-install-recommends bubblewrap")
        install("bubblewrap")
    make(folder, image)


def make(folder: Path, image: Path) -> None:
    """Make the program, to be put on PATH, and an image that has this Python."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "apptainer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} run "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    python = Path(sys.executable)
    homes = dict.fromkeys((Path(sys.prefix), Path(sys.base_prefix), python.resolve().parents[1]))
    system = [path for path in map(Path, ("/usr", "/bin", "/lib", "/lib64", "/etc", "/opt"))
              if path.exists()]  # fmt: skip
    content = {"folders": [*map(str, (*system, *homes))], "path": f"{python.parent}:/usr/bin:/bin"}
    image.write_text(json.dumps(content) + "\n")


def run(arguments: list[str]) -> int:
    """Do what a command line says and return the exit code, negative for a signal."""
    if arguments == ["--version"]:
        sys.stdout.write(f"{VERSION}\n")
        return 0
    if arguments[:1] != ["exec"]:
        sys.exit(f"apptainer: {arguments[:1]} is not known to the stand-in")
    rest, binds = arguments[1:], []
    while rest[0].startswith("-"):
        option = rest.pop(0)
        if option.startswith("--bind="):
            binds.append(option.removeprefix("--bind="))
        elif option not in _FLAGS:
            sys.exit(f'Error for command "exec": unknown flag: {option}')
    image, *command = rest
    return _enter(json.loads(Path(image).read_text()), binds, command)


def _enter(image: dict, binds: list[str], command: list[str]) -> int:
    bwrap = ["bwrap", "--die-with-parent", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    for folder in image["folders"]:
        bwrap += ["--ro-bind", folder, folder]
    for name in _HIDDEN:
        if Path("/usr/bin", name).exists():
            bwrap += ["--ro-bind", "/dev/null", f"/usr/bin/{name}"]
    for bind in binds:
        source, _, rest = bind.partition(":")
        target, _, mode = rest.partition(":")
        bwrap += ["--ro-bind" if mode == "ro" else "--bind", source, target or source]
    inner = {k: v for k, v in os.environ.items() if not k.startswith("APPTAINERENV_")}
    inner |= {k.removeprefix("APPTAINERENV_"): v for k, v in os.environ.items()
              if k.startswith("APPTAINERENV_")}  # fmt: skip
    inner["PATH"] = image["path"]
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    inner_mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    if inner.get("ASL_OUTSIDE") == "0":
        assert inner_mask == {*HANDED_ON} - {signal.SIGINT}, "signals would end who begins"
    inner_mask |= {signal.SIGUSR1, signal.SIGUSR2}  # bubblewrap's own process would end by them
    bwrap += ["--info-fd", str(writing), "env", "-i", *(f"{k}={v}" for k, v in inner.items())]
    process = subprocess.Popen(
        [*bwrap, *command], close_fds=False,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, inner_mask),
    )  # fmt: skip
    os.close(writing)
    said = b""
    while chunk := os.read(reading, 4096):
        said += chunk
        if said.rstrip().endswith(b"}"):
            break
    if said:  # else it has not come so far
        child = int(json.loads(said)["child-pid"])
        for number in HANDED_ON:
            signal.signal(number, lambda n, _frame: os.kill(child, n))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    return process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "run":
        code = run(sys.argv[2:])
        sys.exit(128 - code if code < 0 else code)
    make(Path(sys.argv[1]), Path(sys.argv[2]))
