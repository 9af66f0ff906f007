"""Lets what a tracker calls current follow the suites' dvc.lock."""

from pathlib import Path

from pipeline.errors import NotFinishedError, TrackingError
from pipeline.tracking.find import find_kind
from pipeline.tracking.locked import current_results


def follow_locks(root: Path, *, trusting: bool = False) -> None:
    """Show as current what dvc.lock names, and nothing else.

    Args:
        root: Folder that has `.dvc`.
        trusting: Where nothing has changed since the last time the store is not asked.

    Raises:
        NotFinishedError: The store cannot be reached; what is current there stays until the next
            time.
    """
    kind = find_kind(root)
    if kind.follow is None:
        return
    try:
        kind.follow(root, current_results(root), trusting)
    except TrackingError as error:
        raise NotFinishedError(
            f"{error}; what {kind.title} shows as current may be out of date; "
            "run asl-pipe sync again"
        ) from error
