"""Whether a stage's container can be had: looked at here, tried on the nodes."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.container import PYXIS, Container
from pipeline.config.job_resources import JobResources
from pipeline.jobs.container import (
    enter_command,
    environment_inside,
    folders_inside,
    lacking,
)
from pipeline.project import Project, data_root
from pipeline.results.dvc_folders import dvc_folders
from pipeline.schedulers.port import Finding, Level

START_S = 300.0
"""How long the image's Python may take to start, from a network filesystem for the first time."""

PACKAGES = ("torch", "torchvision", "timm", "dvc", "psutil", "pydantic", "submitit")
MARK = "asl-doctor:"
BUILD = "build the image from requirements.lock: docs/start/containers.md"

PROGRAM = f"""
import importlib.metadata, json, sys
found = {{"python": sys.version.split()[0]}}
for name in {PACKAGES!r}:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
try:
    import pipeline.worker.main
except Exception as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
if sys.argv[1:] == ["gpus"]:
    try:
        import torch
        found["cuda"] = torch.cuda.device_count()
    except Exception as error:
        found["cuda"] = str(error)
print({MARK!r} + json.dumps(found))
"""
"""Runs inside, and says what is there."""


def examine_images(requests: Mapping[str, JobResources]) -> Iterator[Finding]:
    """Look at the images that stages name; starts nothing."""
    known: dict[Container, list[str]] = {}
    for stage, request in requests.items():
        if request.container is not None:
            known.setdefault(request.container, []).append(stage)
    for container, stages in known.items():
        what, missing = f"container for {', '.join(stages)}", lacking(container)
        if missing is not None:
            yield Finding(what, Level.FAILURE, missing, BUILD)
            continue
        yield Finding(what, Level.OK, f"{container.image}, {_entered_by(container)}")
        if container.is_fetched and container.runtime != PYXIS:
            yield Finding(
                what, Level.NOTE, f"{container.image} is fetched by each process of each job",
                f"{container.runtime} pull asl.sif {container.image}, and name asl.sif",
            )  # fmt: skip


def _entered_by(container: Container) -> str:
    if container.runtime == PYXIS:
        return "entered by the scheduler (pyxis)"
    here = "" if shutil.which(container.runtime) else ", which is not on PATH here"
    return f"entered by {container.runtime}{here}"


def question(request: JobResources, scratch: Path) -> dict[str, Any]:
    """Return what the probe on a node is to run, and in what environment.

    Args:
        request: What the stage asks for, with a container.
        scratch: The project's `.asl`.
    """
    container, root = request.container, scratch.parent
    assert container is not None
    arguments = ["-P", "-c", PROGRAM, *(["gpus"] if request.gpus else [])]
    environment = environment_inside(
        {}, container.runtime, str(root), request.env.get("PYTHONPATH")
    )
    if container.runtime == PYXIS:  # the probe is inside
        return {"command": [container.python, *arguments], "environment": environment,
                "seconds": START_S}  # fmt: skip
    folders = probe_folders(scratch)
    command = enter_command(container, folders, arguments, gpus=request.gpus > 0)
    return {"command": command, "environment": environment, "seconds": START_S}


def probe_folders(scratch: Path) -> list[Path]:
    """Return the folders that processes of a project's jobs see inside."""
    root = scratch.parent
    data = str(data_root(Project(root, root)).absolute())
    return folders_inside(scratch, data, dvc_folders(root), os.environ)


def judge(answers: Sequence[Mapping[str, Any]], request: JobResources) -> Iterator[Finding]:
    """Judge what was said inside, one answer for each node."""
    for answer in answers:
        what = f"container on {answer['host']}"
        line = next((line for line in reversed(answer["out"].splitlines())
                     if line.startswith(MARK)), None)  # fmt: skip
        if line is None:
            yield Finding(what, Level.FAILURE, _why(answer), _remedy(answer, request))
            return
        found = json.loads(line.removeprefix(MARK))
        yield _packages(what, found)
        if request.gpus:
            yield _cuda(what, found, request)


def _why(answer: Mapping[str, Any]) -> str:
    said = (answer["err"] or answer["out"]).strip().splitlines()
    return said[-1] if said else f"ended with exit code {answer['code']} and said nothing"


def _remedy(answer: Mapping[str, Any], request: JobResources) -> str:
    assert request.container is not None
    if answer["code"] is None:
        return f"module load {request.container.runtime} in setup of cluster.yaml, or correct it"
    return f"run it by hand there: {request.container.runtime} exec {request.container.image} ..."


def _packages(what: str, found: Mapping[str, Any]) -> Finding:
    here = {name: importlib.metadata.version(name) for name in PACKAGES}
    absent = [name for name in PACKAGES if found[name] is None]
    if absent:
        detail = f"python {found['python']} lacks {', '.join(absent)}"
        return Finding(what, Level.FAILURE, detail, BUILD)
    if "error" in found:
        return Finding(what, Level.FAILURE, f"the code does not import: {found['error']}", BUILD)
    shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "dvc", "psutil"))
    other = [f"{name} {found[name]} (here {here[name]})" for name in PACKAGES
             if found[name] != here[name]]  # fmt: skip
    detail = f"starts; python {found['python']}, {shown}"
    if other:
        return Finding(what, Level.WARNING, f"{detail}; differing: {', '.join(other)}", BUILD)
    return Finding(what, Level.OK, f"{detail}: as here")


def _cuda(what: str, found: Mapping[str, Any], request: JobResources) -> Finding:
    count = found.get("cuda")
    if isinstance(count, int) and count > 0:
        return Finding(f"{what}: CUDA", Level.OK, f"torch sees {count}")
    option = "--rocm in container.options for AMD" if request.container else ""
    return Finding(
        f"{what}: CUDA", Level.FAILURE, f"torch sees no GPU inside ({count})",
        f"check the host's driver with nvidia-smi, torch's build in the image; {option}",
    )  # fmt: skip
