"""What others need of whoever shows runs to people, and what a stage run needs of it.

A tracker is a `TrackerKind`, named by cluster.yaml: see `pipeline.config.trackers`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import TrackingError


class StoreRefusedError(TrackingError):
    """Raised when the store cannot be reached or refuses: other runs would fare no better."""


@dataclass(frozen=True)
class CurrentResult:
    """A stage's result that counts now.

    Attributes:
        fingerprint: Of the run that made it.
        metrics: Its numbers by name; None where they are not known (yet).
        ahead: dvc.lock does not have it yet.
    """

    fingerprint: str
    metrics: Mapping[str, float] | None
    ahead: bool = False


@dataclass(frozen=True)
class SuiteResults:
    """What counts in a suite now.

    Attributes:
        suite: Its name, as `params.yaml` says.
        experiments: Of each experiment by stage: its pre-training, and what was measured of that
            very encoder.
        named: Fingerprints of all results that dvc.lock has, those of earlier encoders too.
    """

    suite: str
    experiments: Mapping[str, Mapping[str, CurrentResult]]
    named: frozenset[str]


class Tracker(Protocol):
    """Shows runs to people. What it has to remember of a run it keeps in the run's folder."""

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    def ingest(self, journal: Path, out: Path) -> object:
        """Bring a run up to what its journal says; a second call adds nothing.

        Args:
            journal: The run's journal, `.asl/jobs/<fingerprint>/journal`; it may be growing.
            out: Folder with the artifacts that the journal names; they may be missing for a while.

        Raises:
            StoreRefusedError: The store cannot be reached, or refuses whatever it is sent.
            TrackingError: The journal is not readable, or the store refuses this run.
        """
        ...

    def is_shown(self, job_folder: Path) -> bool:
        """Say whether a run has ended and nothing would be lost with its journal and its files.

        Is asked often, of all runs: reads no journal and asks no server.
        """
        ...

    def page_of(self, fingerprint: str) -> str | None:
        """Return the address of the page on which a run is, None where it has none."""
        ...


@dataclass(frozen=True)
class TrackerKind:
    """A tracker that cluster.yaml can name.

    Attributes:
        title: What people call it.
        connect: Returns it, given the folder that has `.dvc`, and whether it takes its own word
            that a run is shown; if not, it asks its store, and what was deleted there is made
            again.
        serve: For `asl-pipe ui`: shows its pages on the runs of the project, given the same folder,
            a port of this machine and who prints a line, until a signal to stop; None where it has
            no pages of its own.
        follow: Shows as current what these results of the suites are and nothing else, given the
            same folder; last, whether the store need not be asked where nothing has changed since.
            Raises TrackingError as long as that cannot be done. None where nothing is current.
    """

    title: str
    connect: Callable[[Path, bool], Tracker]
    serve: Callable[[Path, int, Callable[[str], None]], None] | None = None
    follow: Callable[[Path, Sequence[SuiteResults], bool], None] | None = None


class Presenter(Protocol):
    """What a stage run needs: it is shown, while it is made or afterwards."""

    def follow(self, journal: Path, out: Path) -> None:
        """Begin to show a run while it is made, its artifacts from `out` in the end; do not wait.

        Raises:
            TrackingError: It cannot be begun.
        """
        ...

    def ingest(self, journal: Path, out: Path) -> object:
        """Bring what a journal says, and the artifacts it names under `out`, to people.

        It may be there only later: nothing that a stage does depends on it.

        Raises:
            TrackingError: The store cannot be reached.
        """
        ...
