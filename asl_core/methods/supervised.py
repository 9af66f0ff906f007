"""The supervised baseline: classify mixed images, DeiT's recipe."""

from typing import Any

import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.modules.drop_path import draw_drop_path
from asl_core.modules.encoder import Encoder, initialise_as_dino
from asl_core.precision import at_least_float32
from asl_core.protocol import Draw, Step, Views
from asl_core.randomness import derive_seed, not_compiled, seeded_globals
from asl_core.recipes.mixing import mixes
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.supervised import SupervisedRecipe


class SupervisedEncoder(nn.Module):
    """An encoder and a classifier on it.

    Args:
        recipe: Sizes, augmentation, pooling.
        mean, std: Statistics of the images' channels, in [0, 1].
        num_classes: Of the dataset.
    """

    def __init__(
        self, recipe: SupervisedRecipe, mean: Rgb, std: Rgb, num_classes: int = 1000
    ) -> None:
        super().__init__()
        recipe.view_plan().require("supervised", labels=True)
        self.recipe, self.mean, self.std = recipe, mean, std
        self.encoder = Encoder(recipe.model)
        initialise_as_dino(self.encoder)
        self.head = nn.Linear(recipe.model.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.mixup = None
        if mixes(recipe):
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing, num_classes=num_classes,
            )  # fmt: skip

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Mix and do the step."""
        return self.step(*self.prepared(batch, draw))

    @not_compiled
    def prepared(self, batch: Views, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return mixed images, what they are to be classified as, and what is dropped."""
        assert batch.labels is not None
        images, labels = normalise(batch.views[0], self.mean, self.std), batch.labels
        indices = batch.indices
        if self.mixup is not None and self.training:
            # timm pairs the first image with the last: neighbours are put there, so that who is
            # mixed with whom does not depend on how many processes share the batch
            order = [*range(0, len(labels), 2), *range(len(labels) - 1, 0, -2)]
            indices = indices[order]
            with seeded_globals(derive_seed(draw.seed, "mixup", draw.step)):
                images, labels = self.mixup(images[order], labels[order])
        rate = self.recipe.drop_path if self.training else 0.0
        keep = draw_drop_path(indices, draw, self.recipe.model.depth, rate, view=0)
        return images, labels, keep

    def step(self, images: Tensor, targets: Tensor, keep: Tensor | None) -> Step:
        """Classify.

        Shape:
            - images: (B, 3, H, W), normalised. targets: classes, (B,), or shares of them, (B, K).
              keep: (depth, 2, B).
        """
        logits = at_least_float32(self.logits(images, keep))
        smoothing = 0.0 if targets.ndim == 2 else self.recipe.label_smoothing  # mixed: smoothed
        return Step(F.cross_entropy(logits, targets, label_smoothing=smoothing))

    def logits(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Classify normalised images: (B, 3, H, W) to (B, K)."""
        tokens = self.encoder.before_norm(images, keep)  # (B, 1 + N, D)
        pooled = tokens[:, 0] if self.recipe.pooling == "cls" else tokens[:, 1:].mean(1)
        return self.head(self.encoder.norm(pooled))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Spare [cls] and the positions weight decay too, as DeiT does by timm's names of them."""
        spared = ("encoder.cls_token", "encoder.reg_token", "encoder.pos_embed")
        return param_groups_weight_decay(
            self, self.recipe.weight_decay, no_weight_decay_list=spared
        )

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return self.encoder.state_dict()
