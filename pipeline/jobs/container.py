"""How a job's process gets into its container, and what it sees there.

`launch_command` is what a job executes, `enter_command` what that becomes on the node.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.config.container import PYXIS, Container
from pipeline.config.files import validate
from pipeline.config.job_resources import JobResources
from pipeline.schedulers.relay import PYTHON_VARIABLE, SOCKET_VARIABLE

PARENT = "pipeline.worker.outside"
"""The module that stays outside, as the parent of the process inside."""

SOCKETS, SOCKET = "/tmp", "socket"
"""Where a socket's own folder is made, and its name; on a disk of the node."""

ROOM_VARIABLES = ("TMPDIR", "HF_HOME", "TORCH_HOME")
"""Name folders that a process writes to or reads from, wherever they are."""

_KEPT = ("PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS",
         "PYTHONFAULTHANDLER")  # fmt: skip
_OF_THE_HOST = ("LD_PRELOAD", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")

_CONTAINER: TypeAdapter[Container] = TypeAdapter(Container)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the process outside is told.

    Attributes:
        container: The image and how to get in.
        gpus: Whether processes need the host's driver.
        scratch: The project's `.asl`.
        data_root: Where relative paths of datasets lead.
        code: What PYTHONPATH inside begins with.
        python_path: What else is on it: PYTHONPATH of cluster.yaml's `env`.
    """

    container: Container
    gpus: bool
    scratch: str
    data_root: str
    code: str
    python_path: str | None = None

    def to_text(self) -> str:
        """Return it as one argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of_text(cls, text: str) -> "Entry":
        """Read what `to_text` has written.

        Raises:
            ValueError: It is of another version.
        """
        raw: dict[str, Any] = json.loads(text)
        try:
            return cls(**{**raw, "container": validate(_CONTAINER, raw["container"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{error}: submit again") from error


def outer_python() -> str:
    """Return the interpreter that runs what is outside of containers, asked in one or not."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def launch_command(
    asked: JobResources, scratch: Path, data_root: str, code: Path, module: str, *arguments: str
) -> tuple[str, ...]:
    """Return what each task of a job executes to run a module of the code.

    Args:
        asked: What the job asks for: in a container, or in none.
        scratch: The project's `.asl`.
        data_root: Where relative paths of datasets lead.
        code: Folder of the code.
        module: Of it.
        arguments: Of the module.
    """
    # -P: not the folder in which the job happens to start, which may be the workspace
    run = ("-P", "-u", "-m")
    container = asked.container
    if container is None:
        return (outer_python(), *run, module, *arguments)
    if container.runtime == PYXIS:  # the scheduler has entered already
        return (container.python, *run, module, *arguments)
    entry = _entry(container, asked, scratch, data_root, code)
    return (outer_python(), *run, PARENT, entry.to_text(), *run, module, *arguments)


def launch_setup(asked: JobResources, scratch: Path, data_root: str, code: Path) -> tuple[str, ...]:
    """Return the lines of shell that `launch_command` needs before it: where the scheduler enters.

    The job's shell, on the node of the first process, starts who answers the processes inside.
    The arguments are those of `launch_command`.
    """
    container = asked.container
    if container is None or container.runtime != PYXIS:
        return ()
    entry = _entry(container, asked, scratch, data_root, code)
    python = shlex.quote(outer_python())
    path = os.pathsep.join(filter(None, (entry.code, entry.python_path)))
    return (
        f"export PYTHONPATH={shlex.quote(path)} PYTHONNOUSERSITE=1 {PYTHON_VARIABLE}={python}",
        # two lines: `export` would hide that mktemp has failed
        f"{SOCKET_VARIABLE}=$(mktemp -d {SOCKETS}/asl-XXXXXXXX)",
        f"export {SOCKET_VARIABLE}=${SOCKET_VARIABLE}/{SOCKET}",
        f'{python} -P -m {PARENT} --listen "${SOCKET_VARIABLE}" {shlex.quote(entry.to_text())} &',
    )


def with_folders(asked: JobResources, folders: Iterable[Path]) -> JobResources:
    """Return what a job asks for with the folders that the scheduler has to mount."""
    container = asked.container
    if container is None or container.runtime != PYXIS:
        return asked
    binds = (*map(str, folders), SOCKETS, *container.binds)
    return dataclasses.replace(asked, container=dataclasses.replace(container, binds=binds))


def _entry(
    container: Container, asked: JobResources, scratch: Path, data_root: str, code: Path
) -> Entry:
    return Entry(
        container=container, gpus=asked.gpus > 0, scratch=str(scratch), data_root=data_root,
        code=str(code), python_path=asked.env.get("PYTHONPATH"),
    )  # fmt: skip


def folders_inside(
    scratch: Path, data_root: str, caches: Iterable[Path], environment: Mapping[str, str]
) -> list[Path]:
    """Return the folders that processes need, each under the name that it has outside.

    Where one is reached through a link, what that leads to too; none that lies in another.

    Args:
        scratch: The project's `.asl`.
        data_root: Where relative paths of datasets lead.
        caches: DVC's.
        environment: Names the folders of `ROOM_VARIABLES`.
    """
    named = (environment.get(name) for name in ROOM_VARIABLES)
    wanted = [scratch.parent, scratch, Path(data_root), *caches, *(Path(n) for n in named if n)]
    there = [path.absolute() for path in wanted if path.exists()]
    every = dict.fromkeys(each for path in there for each in (path, path.resolve()))
    return [path for path in every if not any(other in path.parents for other in every)]


def enter_command(
    container: Container, folders: Iterable[Path], arguments: Sequence[str], *, gpus: bool
) -> list[str]:
    """Return the command that runs the image's Python with arguments.

    Args:
        container: The image, runtime and binds.
        folders: Which exist, and that are to have the same names inside.
        arguments: Of Python.
        gpus: Whether the host's driver is brought along.
    """
    binds = [f"--bind={bind}" for bind in (*map(str, folders), *container.binds)]
    driver = ["--nv"] if gpus and not {"--nv", "--rocm", "--nvccli"} & {*container.options} else []
    command = [container.runtime, "exec", *driver, *binds, *container.options]
    return [*command, container.image, container.python, *arguments]


def environment_inside(
    environment: Mapping[str, str], runtime: str, code: str, python_path: str | None
) -> dict[str, str]:
    """Return the environment for the runtime, which hands it on.

    All of it comes along, for ranks, GPUs and a site's own settings are in it; but for what leads
    to the host's Python packages, and those of the home folder, which the image's must not mix
    with. What the image sets itself would win, so PYTHONPATH is also given under the names that
    win over that.

    Args:
        environment: Of this process.
        runtime: Of the container.
        code: Folder of the code.
        python_path: What else is to be on PYTHONPATH.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _OF_THE_HOST and (not name.startswith("PYTHON") or name in _KEPT)
    }
    own = {
        "PYTHONPATH": os.pathsep.join(filter(None, (code, python_path))),
        "PYTHONNOUSERSITE": "1",
    }
    forced = {f"{runtime.upper()}ENV_{name}": value for name, value in own.items()}
    return {**kept, **own, **forced}


def lacking(container: Container, *, on_node: bool = True) -> str | None:
    """Return what of a container is not there, as far as this machine sees; None: nothing.

    Args:
        container: The image and its binds.
        on_node: This is where it runs; elsewhere binds are left out, which may exist there alone.
    """
    image = Path(container.image)
    if container.is_local and not image.exists():
        return f"container image {image} does not exist; build it, or correct it in cluster.yaml"
    if container.is_local and not os.access(image, os.R_OK):
        return f"container image {image} cannot be read; chmod a+r it"
    for bind in container.binds if on_node else ():
        source = bind.partition(":")[0]
        if not Path(source).exists():
            return f"container binds {source}, which does not exist; correct binds in cluster.yaml"
    return None
