"""What a stage run needs of whoever shows runs to people."""

from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Shows runs to people."""

    def follow(self, journal: Path, out: Path) -> None:
        """Begin to show a run while it is made, its artifacts from `out` in the end; do not wait.

        Raises:
            TrackingError: It cannot be begun.
        """
        ...

    def ingest(self, journal: Path, out: Path) -> object:
        """Bring what a journal says, and the artifacts it names under `out`, into the store.

        It may be there only later: nothing that a stage does depends on it.

        Raises:
            TrackingError: The store cannot be reached.
        """
        ...
