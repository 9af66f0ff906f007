"""What `asl-pipe embed` and `asl-pipe neighbours` hand over to what loads torch. Standard library.

They are commands and no stage of the DAG; the stage that writes embeddings is `embed`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_core.recipes.embedding import LAST, Pooling
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.optimisation import Resources


@dataclass(frozen=True)
class EncoderPlace:
    """Where an encoder is.

    Attributes:
        name: As it was asked for.
        path: Its folder, or a checkpoint file of another project.
        key: Fingerprint of the run that trained it; None where nobody knows.
        normalisation: Name of the constants that it was trained with; None where nobody knows.
    """

    name: str
    path: Path
    key: str | None = None
    normalisation: str | None = None


@dataclass(frozen=True)
class EmbeddingJob:
    """One file of embeddings to be made.

    Attributes:
        encoder: What encodes.
        images: Folders and files.
        datasets: Folders of packed datasets, in place of these.
        out: The file to write.
        version: Of asl-pipe, for what the file says of itself.
        mean: Normalisation.
        std: Likewise.
        pooling: cls, mean, cls+mean.
        layer: Which block, counted from the last, -1.
        patch_tokens: Whether patches are written too.
        image_size: Side of the input; None: the encoder's own.
        precision: Of the encoder.
        batch_size: Images that are encoded together.
        workers: Threads that read and decode.
        resources: Device, threads.
        force: Start anew, and replace a file that is there.
    """

    encoder: EncoderPlace
    images: tuple[Path, ...]
    datasets: tuple[Path, ...]
    out: Path
    version: str
    mean: Rgb
    std: Rgb
    pooling: Pooling = "cls"
    layer: int = LAST
    patch_tokens: bool = False
    image_size: int | None = None
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 1
    resources: Resources = field(default_factory=Resources)
    force: bool = False


@dataclass(frozen=True)
class Embedded:
    """What was made.

    Attributes:
        rows: Images in the file.
        dimension: Length of an image's vector.
        rejected: Images that could not be read, [name, reason].
        notes: What was left out of the folders, a sentence each.
        resumed: Images that an earlier start had embedded.
        seconds: This start took.
        already: Nothing was to do: the file is the one that was asked for.
    """

    rows: int
    dimension: int
    rejected: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    resumed: int = 0
    seconds: float = 0.0
    already: bool = False


@dataclass(frozen=True)
class NeighboursJob:
    """Neighbours to be found.

    Attributes:
        file: Embeddings.
        queries: Names of its rows, or files.
        count: How many neighbours of each.
        encoder: For new files; None: the one that the file names.
        images: Where the file's images are now; None: where it says.
        resources: Device.
    """

    file: Path
    queries: tuple[str, ...]
    count: int
    encoder: EncoderPlace | None
    images: Path | None
    resources: Resources


@dataclass(frozen=True)
class Neighbour:
    """An image on a page.

    Attributes:
        name: Of its row, or of the file.
        cosine: To the query; 1 for the query itself.
        thumbnail: data: URI of a JPEG; None where the image is gone.
        missing: Why there is none.
        same: The file has the content of the query's.
    """

    name: str
    cosine: float
    thumbnail: str | None
    missing: str = ""
    same: bool = False


@dataclass(frozen=True)
class Neighbourhood:
    """A query and what is nearest to it, the nearest first."""

    query: Neighbour
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        neighbourhoods: One for each query.
        about: What the file says of itself.
        rows: Images in the file.
        notes: What is gone, a line each.
    """

    neighbourhoods: tuple[Neighbourhood, ...]
    about: dict[str, Any]
    rows: int
    notes: tuple[str, ...]
