"""Shows a stage run when it has ended, and waits until it is shown."""

from pathlib import Path

from pipeline.tracking.port import Tracker


class ForegroundTracker:
    """Brings a run by itself.

    Args:
        tracker: Who shows it.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def follow(self, journal: Path, out: Path) -> None:
        """Show nothing yet: the run would wait for it."""

    def ingest(self, journal: Path, out: Path) -> None:
        """Bring a run up to its journal.

        Raises:
            TrackingError: The store cannot be reached or refuses, or the journal is not readable.
        """
        self._tracker.ingest(journal, out)
