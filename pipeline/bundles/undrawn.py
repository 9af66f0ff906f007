"""Stands in for matplotlib on a machine that has none: pictures that say they were not drawn.

Pictures are for people and no stage reads them; what a run measures, stores and hands on is the
same with and without. So a stage draws as ever, and what it draws comes to nothing but a file
with one line of text.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

WHY = "no matplotlib on the machine"
_TEXT = "not drawn: matplotlib was not installed where this run was made"


def replace_if_missing() -> str | None:
    """Put this in matplotlib's place where that is not installed; say why there are no pictures."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    package = ModuleType("matplotlib")
    package.__path__ = []  # a package
    nothing = _Nothing()
    package.use = lambda *_, **__: None  # type: ignore[attr-defined]
    modules = {
        "pyplot": {"subplots": _subplots, "close": nothing, "figure": lambda *_, **__: _Figure()},
        "figure": {"Figure": _Figure},
        "axes": {"Axes": _Axes},
    }
    sys.modules["matplotlib"] = package
    for name, content in modules.items():
        module = ModuleType(f"matplotlib.{name}")
        module.__dict__.update(content)
        setattr(package, name, module)
        sys.modules[f"matplotlib.{name}"] = module
    return WHY


class _Nothing:
    """Takes whatever is asked of it and does nothing."""

    def __call__(self, *_: object, **__: object) -> "_Nothing":
        return self

    def __getattr__(self, name: str) -> "_Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Axes(_Nothing):
    def get_xlim(self) -> tuple[float, float]:
        return (0.0, 1.0)

    get_ylim = get_xlim


class _Figure(_Nothing):
    def savefig(self, path: Path, **_: object) -> None:
        """Write a picture that says why it is none."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (420, 40), "white")
        ImageDraw.Draw(image).text((10, 14), _TEXT, fill="black")
        image.save(path, format="PNG")


def _subplots(rows: int = 1, columns: int = 1, *, squeeze: bool = True, **_: object) -> Any:
    """Return a figure and its axes in the shape in which matplotlib has them."""
    import numpy as np

    axes = np.empty((rows, columns), dtype=object)
    for index in np.ndindex(axes.shape):
        axes[index] = _Axes()
    if not squeeze:
        return _Figure(), axes
    return _Figure(), axes.item() if axes.size == 1 else axes.squeeze()
