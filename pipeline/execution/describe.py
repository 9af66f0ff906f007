"""What a journal says first: which run this is, from what, where."""

import json
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from asl_core.engine.journal import Journal
from pipeline.config.canonical import curated_params
from pipeline.execution.dataset_facts import dataset_digest
from pipeline.results.port import Identity
from pipeline.stages.request import StageRequest
from pipeline.stages.table import PRETRAIN, REPORT


def describe_run(
    request: StageRequest[object], suite: str, scale: str, identity: Identity, tags: dict[str, str]
) -> None:
    """Write tags, hyperparameters and datasets of a run to its journal.

    Args:
        request: The run.
        suite: Its name.
        scale: Of the suite: reduced or paper.
        identity: Its fingerprint and the digests of its inputs.
        tags: What else is known of it: its code, the tables that show it.
    """
    journal = request.journal
    journal.tags(
        {
            "stage": request.stage,
            "key": request.key,
            "suite": suite,
            "scale": scale,
            "fingerprint": identity.fingerprint,
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "torch": _version("torch"),
            **tags,
            # as dvc.lock has them; those of outputs are known once DVC has the result
            **{f"dvc.input.{path}": md5 for path, md5 in identity.inputs.items()
               if path.startswith(("data/", "runs/"))},
        }
    )  # fmt: skip
    if request.stage != REPORT.name:
        journal.params(curated_params(request.recipe))
    if "encoder" in request.inputs:
        journal.tags({"encoder_fingerprint": _fingerprint(request.inputs["encoder"])})
    if "dataset" in request.inputs:
        folder = request.inputs["dataset"]
        _describe_dataset(journal, folder, identity.inputs.get(f"data/{folder.name}"))


def _describe_dataset(journal: Journal, folder: Path, md5: str | None) -> None:
    name = folder.name
    journal.dataset(name, dataset_digest(folder)[:36], f"data/{name}", "train")
    if md5:
        journal.tags({"dvc.md5": md5})


def _fingerprint(encoder: Path) -> str:
    """Return the fingerprint of the run that made an encoder, from its metrics file."""
    suite, key = encoder.parents[2], encoder.name
    try:
        return json.loads((suite / str(PRETRAIN.metrics_path(key))).read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
