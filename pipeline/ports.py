"""What actions need of the world outside, without naming who provides it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on, at one moment.

    Attributes:
        fingerprint: Changes when the command, a tracked parameter, an input or the code does.
        inputs: Path of each input, as dvc.yaml has it, to its content's md5.
    """

    fingerprint: str
    inputs: Mapping[str, str]


class ResultCache(Protocol):
    """Knows the identity of results."""

    def identify(self, suite: Path, name: str) -> Identity:
        """Return the identity that the stage `name` (`pretrain@asl`) of a suite has now."""
        ...


class CodeHistory(Protocol):
    """Knows which code is running."""

    def tags(self, root: Path) -> dict[str, str]:
        """Return the commit, whether the tree differs from it, and a digest of the difference."""
        ...


class Tracker(Protocol):
    """Shows runs to people."""

    def ingest(self, journal: Path, out: Path) -> object:
        """Bring what a journal says, and the artifacts it names under `out`, into the store.

        It may be there only later: nothing that a stage does depends on it.

        Raises:
            TrackingError: The store cannot be reached.
        """
        ...
