"""Sample pictures of the stage runs, as data URIs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.stages.table import MEASURED
from pipeline.tables.collect import Suite
from pipeline.tables.replicates import Replicates

PICTURE_WIDTH = 1200  # pixels, the width of the page; wider pictures are scaled down
PICTURES_PER_STAGE = 4  # names of pictures a stage may show; each for every row of the suite


@dataclass(frozen=True)
class Picture:
    """One sample picture of one experiment."""

    experiment: str
    uri: str
    width: int
    height: int
    """Of the image as embedded, in pixels."""

    @property
    def basis(self) -> int:
        """Pixels of the page that it needs at least, so that its labels can be read."""
        return min(self.width, max(380, round(0.7 * self.width)))


def pictures(suite: Suite, groups: Sequence[Replicates]) -> dict[tuple[str, str], list[Picture]]:
    """Return (stage, file name) -> the rows' pictures of that name, as data URIs.

    Of replicates the first that has the picture shows it: the others differ by the seed alone.
    """
    found: dict[tuple[str, str], list[Picture]] = {}
    for stage in (each.name for each in MEASURED):
        folders = [
            [(key, suite.run_folder(stage, key) / "pictures") for key in group.keys
             if (stage, key) in suite.results]
            for group in groups
        ]  # fmt: skip
        names = {path.name for group in folders for _, folder in group
                 for path in folder.glob("*.png")}  # fmt: skip
        for name in sorted(names)[:PICTURES_PER_STAGE]:
            firsts = (
                next(((key, path / name) for key, path in group if (path / name).is_file()), None)
                for group in folders
            )
            found[stage, name] = [embed_picture(path, key) for key, path in filter(None, firsts)]
    return found


def embed_picture(path: Path, experiment: str) -> Picture:
    """Return a PNG as a data URI, scaled down to PICTURE_WIDTH."""
    with Image.open(path) as image:
        width, height = image.size
        content = path.read_bytes()
        if width > PICTURE_WIDTH:
            width, height = PICTURE_WIDTH, round(height * PICTURE_WIDTH / width)
            small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            buffer = BytesIO()
            small.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return Picture(experiment, uri, width, height)
