"""manifest.json: what a packed dataset holds. Written last, so that its presence means complete."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asl_core.errors import InputError

FILE_NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a packed dataset holds.

    Attributes:
        name: Name of the dataset in the project.
        source: The recipe it was packed from, as a mapping; paths as the recipe gives them.
        licence: Terms of the images.
        classes: Names of image labels; None: no labels.
        thing_classes: Names of instances' classes; None: no instances.
        semantic_classes: Names of the classes of semantic maps; None: no maps.
        mean: Of R, G, B in [0, 1], for normalisation.
        std: Likewise.
        counts: Number of images by split.
        annotated: Of these, images with annotations; the others serve pre-training only.
        digests: SHA-256 by split over images, labels and annotations in their order, whatever
            the shards' sizes.
        rejected: By split, [name, reason] of each image that could not be used.
        notes: What a reader of the results should know.
        format: Version of the layout on disk.
    """

    name: str
    source: dict[str, Any]
    licence: str
    classes: tuple[str, ...] | None
    thing_classes: tuple[str, ...] | None
    semantic_classes: tuple[str, ...] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: dict[str, int]
    annotated: dict[str, int]
    digests: dict[str, str]
    rejected: dict[str, list[tuple[str, str]]]
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the file through a sibling, so that it is there whole or not at all."""
        sibling = folder / f".{FILE_NAME}.part"
        # a name that is no valid text becomes JSON's escapes, which read back as the same name
        with sibling.open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(dataclasses.asdict(self), file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        sibling.replace(folder / FILE_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a packed dataset.

    Raises:
        InputError: There is none, it is damaged, or another version wrote it.
    """
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the dataset's prepare stage") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); prepare the dataset again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}; prepare the dataset again")
    for key in ("classes", "thing_classes", "semantic_classes", "mean", "std", "notes"):
        content[key] = None if content[key] is None else tuple(content[key])
    return Manifest(**content)
