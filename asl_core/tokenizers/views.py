"""What a tokenizer is fitted to and measured on: views of some training images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from asl_core.data.loaders import TrainingLoader
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.randomness import derive_seed, torch_generator
from asl_core.recipes.tokenizers import Tokenizing
from asl_core.recipes.views import View, ViewPlan


class TokenViews:
    """Batches of random crops, mirrored or not: functions of the seed, the epoch and the image.

    Args:
        dataset: The training split.
        recipe: How many of its images, how large, cropped how.
        purpose: Other purposes, other draws.
        batch_size: Images of a batch; fewer where there are not as many. What fills no whole batch
            is left out, other images in each epoch.
        epochs: How often the images are gone through.
        num_workers: Loader processes; change nothing.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        recipe: Tokenizing,
        purpose: str,
        *,
        batch_size: int,
        epochs: int = 1,
        num_workers: int = 0,
    ) -> None:
        view = View(size=recipe.image_size, scale=(recipe.crop_scale_min, 1.0))
        self.num_images = min(recipe.images, len(dataset))
        self.batch_size = min(batch_size, self.num_images)
        generator = torch_generator(recipe.seed, "images of a tokenizer")
        chosen = torch.randperm(len(dataset), generator=generator)[: self.num_images]
        self._loader = TrainingLoader(
            dataset,
            pretrain_transform(ViewPlan(views=(view,))),
            collate_views,
            seed=derive_seed(recipe.seed, purpose),
            batch_size=self.batch_size,
            epochs=epochs,
            num_workers=num_workers,
            subset=sorted(chosen.tolist()),
        )

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._loader.total_steps

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches, (B, 3, S, S), uint8."""
        for (batch,) in self._loader.iterate(0):
            yield batch.views[0]
