"""What each encoder of a suite makes of the same test images, from the analyses' files.

Reads only. Experiments that were analysed on other images stand apart: only rows of the same
images can be compared.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.rounding import fixed
from pipeline.tables.collect import Suite
from pipeline.tables.figures.pictures import Picture, embed_picture
from pipeline.tables.replicates import Replicates

FOLDER, DATA, PLANE = "same_images", "same_images.json", "umap.png"
COLOUR_MAP = "viridis"
"""Of attention: its lightness grows evenly, so that it reads in grey and with any colour vision."""
MOST_BY_HEAD = 4
"""Images that are shown head by head."""


@dataclass(frozen=True)
class Tile:
    """One small picture.

    Attributes:
        uri: The picture itself.
        label: Name of the image's class; empty where it has none.
        note: What else is written below.
        differs: Whether its class is another than that of the image it is near to.
    """

    uri: str
    label: str = ""
    note: str = ""
    differs: bool = False

    @property
    def exact(self) -> bool:
        """Whether its pixels are those of a small image or map, to be shown as squares."""
        return self.uri.startswith("data:image/png")


@dataclass(frozen=True)
class Attention:
    """Maps of attention, and how often the even share the end of their colour scale stands for."""

    top: str
    rows: Sequence[Sequence[Tile]]


@dataclass(frozen=True)
class Seen:
    """What one encoder makes of the images.

    Attributes:
        experiment: Whose encoder.
        inputs: What it takes: pixels and patches.
        patches: Colours of the patches, an image a tile; empty where there are none.
        shares: Of the variance, of the components behind the colours.
        attention: Of [cls], mean over the heads: one row.
        heads: The same by head, a row each, for the first images.
        neighbours: By image.
        plane: UMAP of the test images.
        left_out: Kind of picture -> why there is none.
    """

    experiment: str
    inputs: str
    patches: Sequence[Tile] = ()
    shares: str = ""
    attention: Attention | None = None
    heads: Attention | None = None
    neighbours: Sequence[Sequence[Tile]] = ()
    plane: Picture | None = None
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class SameImages:
    """Images, and all encoders that were shown them.

    Attributes:
        dataset: Their dataset's name.
        total: Number of its test images.
        compared: Among how many neighbours were sought.
        pooling: How an image became one vector.
        pictured: The images.
        rows: By experiment, in the order of the tables.
    """

    dataset: str
    total: int
    compared: int
    pooling: str
    pictured: Sequence[Tile]
    rows: list[Seen]


def read_same_images(suite: Suite, groups: Sequence[Replicates]) -> list[SameImages]:
    """Return the images of a suite's analyses, those of the most encoders first.

    Of replicates the first that has them shows them: the others differ by the seed alone.

    Raises:
        UserError: A file is damaged.
    """
    found: dict[tuple[object, ...], SameImages] = {}
    for group in groups:
        folders = (
            (key, suite.run_folder("analyze", key) / FOLDER)
            for key in group.keys if ("analyze", key) in suite.results
        )  # fmt: skip
        key, folder = next(((k, f) for k, f in folders if (f / DATA).is_file()), ("", None))
        if folder is None:
            continue
        try:
            content = json.loads((folder / DATA).read_text(encoding="utf-8"))
            indices = tuple(image["index"] for image in content["pictured"])
            compared = content["compared"]
            same = (content["dataset"]["digest"], indices, compared["images"], compared["pooling"])
            if same not in found:
                found[same] = _images(content)
            found[same].rows.append(_seen(key, content, folder))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{folder / DATA} is damaged ({error!r}); delete it and run its stage"
            ) from error
    return sorted(found.values(), key=lambda images: -len(images.rows))


def _images(content: Mapping[str, Any]) -> SameImages:
    return SameImages(
        dataset=str(content["dataset"]["name"]),
        total=int(content["dataset"]["images"]),
        compared=int(content["compared"]["images"]),
        pooling=str(content["compared"]["pooling"]),
        pictured=[_tile(image) for image in content["pictured"]],
        rows=[],
    )


def _seen(key: str, content: Mapping[str, Any], folder: Path) -> Seen:
    encoder, patches = content["encoder"], content.get("patches")
    attention, plane = content.get("attention"), folder / PLANE
    pictured = [image["label"] for image in content["pictured"]]
    return Seen(
        key,
        f"{int(encoder['image_size'])} px, patches of {int(encoder['patch_size'])}",
        patches=[Tile(_checked(uri)) for uri in patches["tiles"]] if patches else (),
        shares=_shares(patches) if patches else "",
        attention=_maps([attention["mean"]["tiles"]], attention["mean"]["top"])
        if attention else None,
        heads=_maps(
            zip(*attention["heads"]["tiles"][:MOST_BY_HEAD], strict=True), attention["heads"]["top"]
        ) if attention else None,
        neighbours=[
            [_neighbour(image, label) for image in found]
            for found, label in zip(content["neighbours"], pictured, strict=True)
        ] if "neighbours" in content else (),
        plane=embed_picture(plane, key) if plane.is_file() else None,
        left_out={str(kind): str(reason) for kind, reason in content["left_out"].items()},
    )  # fmt: skip


def _shares(patches: Mapping[str, Any]) -> str:
    shares = ", ".join(fixed(100 * share, 0) for share in patches["explained"]) or "0"
    return f"{shares} % of the variance" + (" of the foreground" if patches["foreground"] else "")


def _maps(rows: Any, top: float) -> Attention:
    """Give maps of grey levels their colours."""
    return Attention(fixed(top, 1), [[Tile(_coloured(uri)) for uri in row] for row in rows])


def _tile(image: Mapping[str, Any]) -> Tile:
    return Tile(_checked(image["image"]), str(image["label"] or ""))


def _neighbour(image: Mapping[str, Any], label: str | None) -> Tile:
    own = image["label"]
    differs = None not in (own, label) and own != label
    return Tile(_checked(image["image"]), str(own or ""), fixed(image["cosine"], 3), differs)


def _checked(uri: str) -> str:
    """Refuse what is no picture of its own: a page loads nothing from anywhere."""
    if not uri.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")):
        raise ValueError(f"{uri[:40]!r} is no picture")
    return uri


def _coloured(uri: str) -> str:
    content = base64.b64decode(_checked(uri).partition(",")[2])
    with Image.open(BytesIO(content)) as image:
        levels = np.asarray(image.convert("L"))
    colours = matplotlib.colormaps[COLOUR_MAP](levels, bytes=True)[..., :3]
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_stops() -> list[str]:
    """Return colours along the scale of attention, from its lower to its upper end."""
    colours = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, 6), bytes=True)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in colours]
