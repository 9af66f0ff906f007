"""Which function opens which kind of source."""

from pathlib import Path
from typing import assert_never

from asl_core.data.sources.ade20k import open_ade20k
from asl_core.data.sources.coco import open_coco
from asl_core.data.sources.icons import open_icons
from asl_core.data.sources.imagefolder import open_image_folder
from asl_core.data.sources.parquet import open_parquet
from asl_core.data.sources.scenes import open_scenes
from asl_core.data.sources.source import Source
from asl_core.data.sources.union import join_sources
from asl_core.recipes.datasets import (
    Ade20k,
    Coco,
    Dataset,
    Icons,
    ImageFolder,
    Parquet,
    Scenes,
    Union_,
)


def open_source(recipe: Dataset, data_root: Path) -> Source:
    """Return the source that the recipe names; relative paths are taken from `data_root`.

    Raises:
        InputError: What the recipe names is missing or broken.
    """
    match recipe:
        case Scenes():
            return open_scenes(recipe)
        case Icons():
            return open_icons(recipe)
        case Parquet():
            return open_parquet(recipe, data_root / recipe.path)
        case ImageFolder():
            return open_image_folder(data_root / recipe.path)
        case Coco():
            return open_coco(data_root / recipe.path, recipe.val_joins_training)
        case Ade20k():
            return open_ade20k(data_root / recipe.path)
        case Union_():
            return join_sources(
                {
                    f"{number}-{member.source}": open_source(member, data_root)
                    for number, member in enumerate(recipe.members)
                }
            )
        case _:
            assert_never(recipe)
