"""Weights that a method begins with in place of random ones."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Initialise:
    """Whose weights: those of a file, or of another experiment of the suite.

    They are read once, before the first step; optimiser, schedules and step count begin anew. The
    encoder takes them, and a teacher of the method begins as its copy; what stands beside the
    encoder (decoder, heads) is drawn as without them, but for `whole`.
    """

    path: str | None = None
    """A checkpoint as `asl-pipe import-encoder` reads it, or a folder with encoder.safetensors;
    absolute, or below the suite's folder."""
    sha256: str | None = None
    """Of that file, or of the folder's encoder.safetensors: with `path`, which identifies nothing,
    always."""
    experiment: str | None = None
    """Name of an entry under `experiments`: what its run left in runs/encoder."""
    whole: bool = False
    """With `experiment`, one of the same method and sizes: take all that its run ended with, the
    decoder, the heads, a teacher as it was then."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.experiment is None):
            raise ValueError("name either a path or an experiment")
        if self.experiment is not None:
            if self.sha256 is not None:
                raise ValueError("sha256 goes with a path; DVC knows an experiment's; remove it")
            return
        assert self.path is not None
        if self.whole:
            raise ValueError(
                "whole goes with an experiment: a file has the encoder alone; remove it"
            )
        if not self.path or ".." in PurePosixPath(self.path).parts:
            raise ValueError(
                f"path must be absolute or below the suite's folder, got {self.path!r}; copy or "
                "link the file there"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise ValueError(
                f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}; `sha256sum FILE` "
                "prints it, of a folder that of its encoder.safetensors"
            )
