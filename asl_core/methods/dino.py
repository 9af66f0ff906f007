"""DINO: a student's crops towards what a teacher makes of two large ones.

teacher: softmax((g_t(x) - c) / temperature) over prototypes, on the two global crops
student: the same on all crops, without centre; cross entropy over all pairs of other crops
c: moving average of the teacher's outputs, over all images; the teacher: of the student
"""

from typing import cast

import torch
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.distillation import cls_distillation, teacher_probabilities
from asl_core.modules.drop_path import draw_drop_path, joined
from asl_core.modules.encoder import Encoder, initialise_as_dino
from asl_core.modules.momentum import ema_update, frozen_copy, momentum_at
from asl_core.modules.prototypes import PrototypeMlp, Prototypes
from asl_core.precision import at_least_float32
from asl_core.protocol import Draw, RunLength, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.dino import DinoRecipe
from asl_core.recipes.normalisation import Rgb

GLOBAL = 2
_FOLLOWS = ("encoder", "head", "prototypes")
"""What the teacher has of the student."""


class SelfDistillation(nn.Module):
    """DINO.

    Args:
        recipe: Sizes, crops, temperatures, schedules.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    center: Tensor

    def __init__(self, recipe: DinoRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("dino", views=GLOBAL, more=True)
        self.recipe, self.mean, self.std = recipe, mean, std
        self.length = RunLength()
        self.encoder = Encoder(recipe.model)
        initialise_as_dino(self.encoder)
        self.head = PrototypeMlp(
            recipe.model.embed_dim, recipe.head_hidden_dim, recipe.head_bottleneck_dim
        )
        self.prototypes = Prototypes(
            recipe.out_dim, recipe.head_bottleneck_dim, fixed_gain=recipe.norm_last_layer
        )
        self.teacher = nn.ModuleDict({name: frozen_copy(getattr(self, name)) for name in _FOLLOWS})
        self.register_buffer("center", torch.zeros(1, recipe.out_dim))

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw what is dropped and do the step."""
        return self.step(*self.prepared(batch, draw))

    @not_compiled
    def prepared(
        self, batch: Views, draw: Draw
    ) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """Return normalised crops by size, what is dropped of each, and the temperature."""
        recipe, depth = self.recipe, self.recipe.model.depth
        rate = recipe.drop_path if self.training else 0.0
        crops: list[Tensor] = []
        kept: list[Tensor | None] = []
        for views in (range(GLOBAL), range(GLOBAL, len(batch.views))):
            if not views:
                continue
            images = torch.cat([normalise(batch.views[v], self.mean, self.std) for v in views])
            keep = [draw_drop_path(batch.indices, draw, depth, rate, v) for v in views]
            crops.append(images)  # (views * B, 3, s, s)
            kept.append(joined(keep))
        temperature = recipe.temperature_at(self.length.epoch(draw.step))
        # filled on the device: a copy from the CPU would wait for it
        return crops, kept, torch.full((), temperature, device=batch.indices.device)

    def step(self, crops: list[Tensor], kept: list[Tensor | None], temperature: Tensor) -> Step:
        """Compare all pairs of crops.

        Shape:
            - crops: (2B, 3, S, S), and (nB, 3, s, s) where there are local ones. kept: for each of
              these, (depth, 2, views * B) or None. temperature: scalar.
        """
        count = len(crops[0]) // GLOBAL  # B
        with torch.no_grad():
            cls = cast(Encoder, self.teacher["encoder"]).encode_crop(crops[0])[:, 0]
            raw = self.teacher["prototypes"](self.teacher["head"](cls))  # (2B, K)
        tokens = [
            self.encoder.encode_crop(images, keep)[:, 0]
            for images, keep in zip(crops, kept, strict=True)
        ]
        student = self.prototypes(self.head(torch.cat(tokens)))  # ((2 + n) B, K)
        probabilities = teacher_probabilities(raw, self.center, temperature)
        loss = cls_distillation(
            student.split(count), probabilities.split(count), self.recipe.student_temp
        )
        # towards 0 every image has the same prototype, towards log K none has any
        entropy = torch.special.entr(probabilities).sum(-1).mean()
        center = at_least_float32(raw).mean(0, keepdim=True)
        return Step(loss, {"teacher_entropy": entropy}, {"center": center})

    def set_run_length(self, length: RunLength) -> None:
        """Take note of the length of the run, which schedules are functions of."""
        self.length = length

    def edit_gradients(self, step: int) -> None:
        """Leave the prototypes alone in the first epochs: AdamW skips what has no gradient."""
        if self.length.epoch(step) < self.recipe.freeze_last_layer:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    def take_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Move the centre."""
        self.center.lerp_(statistics["center"], 1 - self.recipe.center_momentum)

    def after_step(self, step: int) -> None:
        """Let the teacher follow."""
        start, total = self.recipe.teacher_momentum, self.length.total_steps
        momentum = momentum_at(step - 1, total, start)  # the table's entry of the step just done
        for name in _FOLLOWS:
            ema_update(self.teacher[name], getattr(self, name), momentum)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the teacher's encoder under timm's names: what DINO evaluates."""
        return self.teacher["encoder"].state_dict()
