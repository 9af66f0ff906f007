"""Scratch that somebody deletes under a run: what can be made again is, the rest is said."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from pipeline.errors import NotFinishedError, SupersededError
from pipeline.stages.request import StageRequest

logger = logging.getLogger(__name__)


def restoring_scratch(request: StageRequest[Any], name: str) -> StageRequest[Any]:
    """Return a request whose scratch is made again, where it is missing, before each checkpoint.

    Args:
        request: What the stage is given.
        name: `pretrain@asl`.
    """

    def before_checkpoint() -> None:
        request.before_checkpoint()
        if _restore(request):
            logger.warning(
                "%s: %s was deleted while it ran; its weights and its journal are kept, pictures "
                "and predictions of earlier steps are lost", name, request.work,
            )  # fmt: skip

    return dataclasses.replace(request, before_checkpoint=before_checkpoint)


@contextlib.contextmanager
def scratch_needed(request: StageRequest[Any], name: str) -> Iterator[None]:
    """Say so where what a stage does fails because its scratch was deleted, or was for nothing.

    Raises:
        NotFinishedError: The outputs are lost.
    """
    try:
        yield
    except Exception as error:  # one whose scratch is another's by now leaves it alone
        if isinstance(error, SupersededError) or not _is_missing(request):
            raise
        raise _lost(request, name) from error
    if _is_missing(request):
        raise _lost(request, name)


def _lost(request: StageRequest[Any], name: str) -> NotFinishedError:
    _restore(request)
    return NotFinishedError(
        f"{name}: {request.work} was deleted while it ran; run the same command again to go on "
        "from the newest checkpoint that is left"
    )


def _is_missing(request: StageRequest[Any]) -> bool:
    return not all(folder.is_dir() for folder in request.outputs.values())


def _restore(request: StageRequest[Any]) -> bool:
    """Make folders and journal again; return whether anything was missing."""
    missing = _is_missing(request)
    for folder in request.outputs.values():
        folder.mkdir(parents=True, exist_ok=True)
    return request.journal.restore() or missing
