"""Which function opens which kind of source; a source is one file and one row here.

Only the file of the source that is opened is imported.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asl_core.data.sources.source import Source
from asl_core.recipes.datasets import Dataset, FromDisk

Opener = Callable[[Any, Path], Source]
"""From a recipe and the folder from which its relative paths are taken.

Raises InputError: what the recipe names is missing or broken.
"""

DYNAMIC_IMPORTS: dict[str, str | tuple[str, ...]] = {
    "scenes": "asl_core.data.sources.scenes:open_scenes",
    "icons": "asl_core.data.sources.icons:open_icons",
    "parquet": "asl_core.data.sources.parquet:open_parquet",
    "imagefolder": "asl_core.data.sources.imagefolder:open_image_folder",
    "coco": "asl_core.data.sources.coco:open_coco",
    "ade20k": "asl_core.data.sources.ade20k:open_ade20k",
    "images": "asl_core.data.sources.images:open_images",
    "webdataset": "asl_core.data.sources.webdataset:open_webdataset",
    "huggingface": "asl_core.data.sources.huggingface:open_hugging_face",
    "union": (
        "asl_core.data.sources.union:open_union",
        "asl_core.data.sources.scenes",
        "asl_core.data.sources.icons",
        "asl_core.data.sources.parquet",
        "asl_core.data.sources.imagefolder",
        "asl_core.data.sources.coco",
        "asl_core.data.sources.ade20k",
        "asl_core.data.sources.images",
        "asl_core.data.sources.webdataset",
        "asl_core.data.sources.huggingface",
    ),
}
"""`source` of a recipe -> its opener, then the modules that it may open in turn.

A literal: the identity of a prepared dataset is found by reading it.
"""


def open_source(recipe: Dataset, data_root: Path) -> Source:
    """Return the source that the recipe names; relative paths are taken from `data_root`.

    Raises:
        InputError: What the recipe names is missing or broken.
    """
    if isinstance(recipe, FromDisk):
        recipe = dataclasses.replace(recipe, path=str(recipe.folder(data_root).absolute()))
    return find_opener(recipe.source)(recipe, data_root)


def find_opener(source: str) -> Opener:
    """Import the file of a source and return the function that opens it."""
    entry = DYNAMIC_IMPORTS[source]
    module, _, name = (entry if isinstance(entry, str) else entry[0]).partition(":")
    return getattr(importlib.import_module(module), name)
