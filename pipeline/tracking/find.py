"""The tracker that shows a project's runs, as cluster.yaml names it."""

from pathlib import Path

from pipeline.config.cluster import load_tracker_name
from pipeline.config.named import load_named
from pipeline.config.trackers import TRACKERS
from pipeline.errors import UserError
from pipeline.tracking.port import Tracker, TrackerKind


def find_tracker(root: Path, *, trusting: bool = True) -> Tracker:
    """Return the tracker of a project.

    Args:
        root: Folder that has `.dvc`, beside its cluster.yaml.
        trusting: It takes its own word that a run is shown, and does not ask its store.

    Raises:
        UserError: There is none of that name.
    """
    return find_kind(root).connect(root, trusting)


def find_kind(root: Path) -> TrackerKind:
    """Return which tracker it is.

    Raises:
        UserError: There is none of that name.
    """
    file = root / "cluster.yaml"
    name = load_tracker_name(file)
    try:
        kind = load_named(name, TRACKERS)
    except ValueError as error:
        raise UserError(f"{file}: tracker: {error}") from error
    if not isinstance(kind, TrackerKind):
        raise UserError(
            f"{file}: tracker: {name} returns {type(kind).__name__}, expected a TrackerKind"
        )
    return kind
