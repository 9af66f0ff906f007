"""MoCo v3: find an image of one view among what a teacher makes of the other views of all images.

    student: encoder -> [cls] -> projector -> predictor    q1, q2 of both views
    teacher: encoder -> [cls] -> projector                 k1, k2; follows the student by an
             exponential moving average
    L = InfoNCE(q1, k2) + InfoNCE(q2, k1)

Keys are those of the step, of all processes; there is no queue. The patch embedding stays as it was
drawn.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.contrastive import info_nce
from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.encoder import Encoder, initialise_as_moco
from asl_core.modules.momentum import ema_update, frozen_copy, momentum_at
from asl_core.protocol import Draw, RunLength, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.normalisation import Rgb

_FOLLOWS = ("encoder", "projector")
"""What the teacher has of the student."""


class MomentumContrast(nn.Module):
    """MoCo v3.

    Args:
        recipe: Sizes, contrast, teacher.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: MocoV3Recipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("mocov3", views=2)
        self.recipe, self.mean, self.std = recipe, mean, std
        self.length = RunLength()
        hidden, width = recipe.projector_hidden, recipe.projector_dim
        self.encoder = Encoder(recipe.model)
        initialise_as_moco(self.encoder)
        self.encoder.pos_embed.requires_grad_(False)
        self.encoder.patch_embed.requires_grad_(recipe.train_patch_embed)
        self.projector = _mlp(recipe.model.embed_dim, hidden, hidden, width)
        self.predictor = _mlp(width, hidden, width)
        self.teacher = nn.ModuleDict({name: frozen_copy(getattr(self, name)) for name in _FOLLOWS})

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Do the step on both views."""
        return self.step(*self.prepared(batch))

    @not_compiled
    def prepared(self, batch: Views) -> tuple[Tensor, Tensor]:
        """Return both views normalised, (B, 3, H, W) each."""
        first, second = (normalise(view, self.mean, self.std) for view in batch.views)
        return first, second

    def step(self, first: Tensor, second: Tensor) -> Step:
        """Compare each view with the teacher's keys of the other.

        Shape:
            - first, second: (B, 3, H, W), normalised.
        """
        images, temperature = torch.cat([first, second]), self.recipe.temperature
        query_1, query_2 = self.queries(images)
        key_1, key_2 = self.keys(images)
        loss = info_nce(query_1, key_2, temperature) + info_nce(query_2, key_1, temperature)
        return Step(loss)

    def queries(self, images: Tensor) -> list[Tensor]:
        """Return what is asked for by each view: (2B, 3, H, W), view by view, to (B, C) each."""
        views = self.encoder(images)[:, 0].chunk(2)  # (B, D) each
        # one view after the other: BatchNorm is over the images of one
        return [self.predictor(self.projector(cls)) for cls in views]

    @torch.no_grad()
    def keys(self, images: Tensor) -> list[Tensor]:
        """Return what the teacher makes of each view: (2B, 3, H, W), view by view, to (B, C)."""
        views = self.teacher["encoder"](images)[:, 0].chunk(2)  # (B, D) each
        return [self.teacher["projector"](cls) for cls in views]

    def set_run_length(self, length: RunLength) -> None:
        """Take note of the length of the run, which the teacher's momentum is a function of."""
        self.length = length

    def after_step(self, step: int) -> None:
        """Let the teacher follow.

        The original does so in a step's forward pass, before its keys, with the momentum of so many
        steps done: what lies between is nothing. In its first step the teacher is the student.
        """
        momentum = momentum_at(step, self.length.total_steps, self.recipe.teacher_momentum)
        for name in _FOLLOWS:
            ema_update(self.teacher[name], getattr(self, name), momentum)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Let all that is trained decay: biases, norms and [cls] too, as the original does."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": self.recipe.weight_decay}]

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the student's encoder under timm's names: what MoCo v3 evaluates."""
        return self.encoder.state_dict()


def _mlp(*widths: int) -> nn.Sequential:
    """Return Linears without bias and BatchNorms, ReLU between, no gain after the last.

    The Linears as torch makes them: the original builds these after it has initialised the encoder.

    Source: MoCo v3, `builder.py`.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out, bias=False), BatchNorm(width_out), nn.ReLU()]
    layers += [nn.Linear(*widths[-2:], bias=False), BatchNorm(widths[-1], affine=False)]
    return nn.Sequential(*layers)
