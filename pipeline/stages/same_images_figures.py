"""Pictures of what an encoder makes of test images, each readable by itself."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from asl_core.analysis.projection import APART, unit_square
from pipeline.stages.encoder_view import EncoderView, Shown, attention_top
from pipeline.stages.pictures import save_figure

TILE, GAP = 112, 6  # pixels of an image in a sheet, and between two
INCH = 110  # pixels of an inch: as `save_figure` writes
TEXT = 9  # points
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart with any colour vision; without their yellow, which white drowns."""
MARKERS = "osD^vP*"
MOST_CLASSES = 14
"""More cannot be told apart; the others are grey."""
_LONGEST_NAME = 16


def draw(folder: Path, view: EncoderView) -> Iterator[Path]:
    """Draw what there is, and yield the path of each picture."""
    if view.colours is not None:
        yield _draw_colours(folder / "patch_pca.png", view)
    if view.attention is not None:
        yield _draw_attention(folder / "attention.png", view)
    if view.nearest is not None:
        yield _draw_neighbours(folder / "neighbours.png", view)
    if view.plane is not None:
        yield _draw_plane(folder / "umap.png", view)


def _draw_colours(path: Path, view: EncoderView) -> Path:
    colours = view.colours
    assert colours is not None
    side = round(colours.colours.shape[1] ** 0.5)
    tiles = colours.colours.unflatten(1, (side, side)).numpy()
    figure, axis = _sheet(
        [[shown.pixels for shown in view.pictured], [(255 * tile).astype("u1") for tile in tiles]],
        ["image", "PCA"],
        [_name(shown) for shown in view.pictured],
    )
    shares = ", ".join(f"{100 * share:.0f}" for share in colours.explained) or "no"
    what = "foreground patches" if colours.foreground is not None else "patches"
    axis.set_xlabel(
        f"first components of all {what} as red, green, blue: {shares} % of the variance",
        fontsize=TEXT,
    )
    save_figure(figure, path)
    return path


def _draw_attention(path: Path, view: EncoderView) -> Path:
    assert view.attention is not None
    attention = view.attention  # (B, heads, G, G)
    rows = [attention.mean(dim=1), *attention.unbind(dim=1)]  # each (B, G, G)
    blank = np.full((TILE, TILE, 3), 255, np.uint8)
    pictured = [shown.pixels for shown in view.pictured]
    images = [pictured, *([blank] * len(pictured) for _ in rows)]
    labels = ["image", "mean", *(f"head {number}" for number in range(1, len(rows)))]
    figure, axis = _sheet(images, labels, [_name(shown) for shown in view.pictured], bar=True)
    canvas = np.full((_length(len(images)), _length(len(pictured))), np.nan, np.float32)
    for i, maps in enumerate(rows, start=1):
        for j, one in enumerate(maps.numpy()):
            _put(canvas, i, j, _enlarged(one))
    shown = axis.imshow(canvas, cmap="viridis", vmin=0, vmax=attention_top(attention))
    bar = figure.colorbar(shown, ax=axis, extend="max", fraction=0.03, pad=0.02)
    bar.set_label("attention, 1: the same to every patch", fontsize=TEXT)
    axis.set_xlabel("attention of [cls] to the patches in the last block", fontsize=TEXT)
    save_figure(figure, path)
    return path


def _draw_neighbours(path: Path, view: EncoderView) -> Path:
    nearest = view.nearest
    assert nearest is not None
    rows = [
        [shown.pixels, *(each.pixels for each in found)]
        for shown, found in zip(view.pictured, view.neighbours, strict=True)
    ]
    labelled = any(view.labels)
    room = (2 if labelled else 1) * 16  # below each image, for its text
    columns = ["image", *(str(number) for number in range(1, len(rows[0])))]
    figure, axis = _sheet(rows, ["" for _ in rows], columns, below=room)
    for i, (shown, found) in enumerate(zip(view.pictured, view.neighbours, strict=True)):
        _write_below(axis, i, 0, room, _name(shown))
        for j, (each, cosine) in enumerate(zip(found, nearest.cosines[i].tolist(), strict=True), 1):
            other = shown.label is not None and each.label is not None and each.label != shown.label
            name = f"\N{NOT EQUAL TO} {_name(each)}" if other else _name(each)
            _write_below(axis, i, j, room, "\n".join(filter(None, (name, f"{cosine:.3f}"))))
            if other:
                _frame(axis, i, j, room)
    what = f"nearest of {len(view.compared) - 1} other test images, with the cosine"
    frames = "; framed and \N{NOT EQUAL TO}: of another class" if labelled else ""
    axis.set_xlabel(what + frames, fontsize=TEXT)
    save_figure(figure, path)
    return path


def _draw_plane(path: Path, view: EncoderView) -> Path:
    assert view.plane is not None
    plane = unit_square(view.plane)
    counts = Counter(label for label in view.labels if label is not None)
    named = [name for name, _ in counts.most_common(MOST_CLASSES)]
    columns = 3 if max(map(len, named), default=0) > 6 else 5
    lines = -(-(len(named) + 1) // columns) if named else 0  # of the legend, below
    figure, axis = plt.subplots(figsize=(4.4, 4.4 + 0.2 * lines))
    grey = np.array([label not in named for label in view.labels])
    if grey.any():
        others = len(counts) - len(named)
        label = f"{others} other classes" if others else "no class" if named else None
        axis.scatter(*plane[grey].T, s=8, c="#9a9a9a", linewidths=0, label=label)
    for place, name in enumerate(sorted(named)):
        of_class = np.array([label == name for label in view.labels])
        axis.scatter(
            *plane[of_class].T, s=16, alpha=0.85, linewidths=0, label=_short(name),
            c=COLOURS[place % len(COLOURS)], marker=MARKERS[(place + place // len(COLOURS)) % 7],
        )  # fmt: skip
    for place, shown in view.scattered.items():
        (x, y), half = plane[place], APART / 2
        axis.imshow(shown.pixels, extent=(x - half, x + half, y - half, y + half), zorder=3)
    axis.set_xlim(-0.06, 1.06)
    axis.set_ylim(-0.06, 1.06)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(f"UMAP of {len(plane)} test images", fontsize=TEXT)
    if named:
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=columns, fontsize=TEXT,
            frameon=False, handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
    save_figure(figure, path)
    return path


# --- sheets: images in rows and columns, drawn as one


def _sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], labels: Sequence[str], columns: Sequence[str],
    *, below: int = 0, bar: bool = False,
) -> tuple[Figure, Axes]:  # fmt: skip
    """Draw images in rows and columns with their names, `below` pixels free under each."""
    height, width = _length(len(rows), below), _length(len(rows[0]))
    canvas = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            _put(canvas, i, j, _enlarged(pixels), below)
    margin = 100 if any(labels) else 40
    size = ((width + margin + (90 if bar else 0)) / INCH, (height + 60) / INCH)
    figure, axis = plt.subplots(figsize=size)
    axis.imshow(canvas, interpolation="nearest")
    centres = [_start(j) + TILE / 2 for j in range(len(columns))]
    axis.set_xticks(centres, columns, fontsize=TEXT)
    axis.set_yticks(
        [_start(i, below) + TILE / 2 for i in range(len(labels))], labels, fontsize=TEXT
    )
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.set_frame_on(False)
    return figure, axis


def _start(place: int, below: int = 0) -> int:
    return place * (TILE + GAP + below)


def _length(count: int, below: int = 0) -> int:
    return _start(count, below) - GAP


def _put(
    canvas: NDArray[np.generic], row: int, column: int, tile: NDArray[np.generic], below: int = 0
) -> None:
    top, left = _start(row, below), _start(column)
    canvas[top : top + TILE, left : left + TILE] = tile


def _enlarged(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Bring a square to `TILE` by its nearest pixels; a large one by means of blocks first."""
    side = len(pixels)
    if side >= 2 * TILE:
        block = side // TILE
        whole = pixels[: side // block * block, : side // block * block]
        shape = (side // block, block, side // block, block, *pixels.shape[2:])
        pixels = whole.reshape(shape).mean(axis=(1, 3)).astype(pixels.dtype)
    chosen = np.arange(TILE) * len(pixels) // TILE
    return pixels[chosen][:, chosen]


def _write_below(axis: Axes, row: int, column: int, below: int, text: str) -> None:
    x, y = _start(column) + TILE / 2, _start(row, below) + TILE + 2
    axis.text(x, y, text, ha="center", va="top", fontsize=TEXT - 1, linespacing=1.0)


def _frame(axis: Axes, row: int, column: int, below: int) -> None:
    left, top = _start(column) - 0.5, _start(row, below) - 0.5
    right, bottom = left + TILE, top + TILE
    axis.plot(
        [left, right, right, left, left], [top, top, bottom, bottom, top], "--", c="#d55e00", lw=2,
        clip_on=False,
    )  # fmt: skip


def _name(shown: Shown) -> str:
    return "" if shown.label is None else _short(shown.label)


def _short(name: str) -> str:
    cut = f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    return name if len(name) <= _LONGEST_NAME else cut
