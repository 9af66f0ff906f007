"""iBOT: DINO on [cls], and on the masked patches of each global crop.

    L = cls_weight * L_cls + patch_weight * L_patch

L_cls is DINO's; L_patch compares a masked patch of the student with the same patch of the teacher,
who sees the crop whole. Patches and [cls] share the head's MLP and, by default, the prototypes;
each has a centre of its own.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.distillation import (
    cls_distillation,
    patch_distillation,
    teacher_probabilities,
)
from asl_core.modules.drop_path import draw_drop_path, joined
from asl_core.modules.encoder import Encoder, initialise_as_dino
from asl_core.modules.momentum import ema_update, frozen_copy, momentum_at
from asl_core.modules.prototypes import PrototypeMlp, Prototypes
from asl_core.precision import at_least_float32
from asl_core.protocol import Draw, RunLength, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.ibot import IbotRecipe
from asl_core.recipes.normalisation import Rgb

GLOBAL = 2


class OnlineTokenizer(nn.Module):
    """iBOT.

    Args:
        recipe: Sizes, crops, masks, temperatures, schedules.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    center: Tensor
    patch_center: Tensor

    def __init__(self, recipe: IbotRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("ibot", views=GLOBAL, more=True, masked=GLOBAL)
        self.recipe, self.mean, self.std = recipe, mean, std
        self.length = RunLength()
        width, hidden, bottleneck = (
            recipe.model.embed_dim, recipe.head_hidden_dim, recipe.head_bottleneck_dim,
        )  # fmt: skip
        fixed = recipe.norm_last_layer
        self.encoder = Encoder(recipe.model)
        initialise_as_dino(self.encoder)
        self.hidden_embed = nn.Parameter(torch.zeros(1, width))
        self.head = PrototypeMlp(width, hidden, bottleneck)
        self.prototypes = Prototypes(recipe.out_dim, bottleneck, fixed_gain=fixed)
        self.patch_prototypes = (
            None
            if recipe.shared_head
            else Prototypes(recipe.patch_prototypes, bottleneck, fixed_gain=fixed)
        )
        follows = ["encoder", "head", "prototypes"]
        if not recipe.shared_head_teacher:
            follows.append("patch_prototypes")
        self.teacher = nn.ModuleDict({name: frozen_copy(getattr(self, name)) for name in follows})
        self.register_buffer("center", torch.zeros(1, recipe.out_dim))
        self.register_buffer("patch_center", torch.zeros(1, 1, recipe.patch_prototypes))

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw what is dropped and do the step."""
        return self.step(**self.prepared(batch, draw))

    @not_compiled
    def prepared(self, batch: Views, draw: Draw) -> dict[str, Any]:
        """Return the arguments of a step: crops by size, masks, what is dropped, temperatures."""
        assert batch.masks is not None
        recipe, count = self.recipe, len(batch.views)
        rate = recipe.drop_path if self.training else 0.0
        images = [normalise(view, self.mean, self.std) for view in batch.views]
        kept = [
            draw_drop_path(batch.indices, draw, recipe.model.depth, rate, v) for v in range(count)
        ]
        epoch, device = self.length.epoch(draw.step), batch.indices.device
        temperatures = (recipe.temperature_at(epoch), recipe.patch_temperature_at(epoch))
        return {
            "crops": torch.cat(images[:GLOBAL]),
            "removed": torch.cat(batch.masks.unbind(1)),  # (2B, N), view by view
            "keep": joined(kept[:GLOBAL]),
            "small": torch.cat(images[GLOBAL:]) if count > GLOBAL else None,
            "small_keep": joined(kept[GLOBAL:]),
            # filled on the device: a copy from the CPU would wait for it
            "temperatures": torch.stack([torch.full((), t, device=device) for t in temperatures]),
        }

    def step(
        self,
        crops: Tensor,
        removed: Tensor,
        keep: Tensor | None,
        small: Tensor | None,
        small_keep: Tensor | None,
        temperatures: Tensor,
    ) -> Step:
        """Compare all pairs of crops, and masked patches.

        Shape:
            - crops: (2B, 3, S, S). removed: (2B, N), bool. keep: (depth, 2, 2B). small:
              (nB, 3, s, s). temperatures: (2,), of [cls] and of patches.
        """
        recipe, count = self.recipe, len(crops) // GLOBAL
        with torch.no_grad():
            encoder = cast(Encoder, self.teacher["encoder"])
            seen = self.teacher["head"](encoder.encode_crop(crops))
            raw = self.teacher["prototypes"](seen[:, 0])  # (2B, K)
            raw_patches = self._teacher_patches()(seen[:, 1:])  # (2B, N, K')
        hidden = (removed, self.hidden_embed)
        tokens = self.head(self.encoder.encode_crop(crops, keep, hidden))  # (2B, 1 + N, C)
        logits = self.prototypes(tokens[:, 0])
        if small is not None:
            local = self.head(self.encoder.encode_crop(small, small_keep)[:, 0])
            logits = torch.cat([logits, self.prototypes(local)])
        patches = (self.patch_prototypes or self.prototypes)(tokens[:, 1:])

        wanted = teacher_probabilities(raw, self.center, temperatures[0])
        loss_cls = cls_distillation(logits.split(count), wanted.split(count), recipe.student_temp)
        patch_wanted = teacher_probabilities(raw_patches, self.patch_center, temperatures[1])
        loss_patch = patch_distillation(patches, patch_wanted, removed, recipe.student_temp)
        loss = recipe.cls_weight * loss_cls + recipe.patch_weight * loss_patch
        terms = {
            "loss_cls": loss_cls,
            "loss_patch": loss_patch,
            # towards 0 every image has the same prototype, towards log K none has any
            "teacher_entropy": torch.special.entr(wanted).sum(-1).mean(),
        }
        statistics = {
            "center": at_least_float32(raw).mean(0, keepdim=True),
            "patch_center": at_least_float32(raw_patches).mean((0, 1), keepdim=True),
        }
        return Step(loss, terms, statistics)

    def _teacher_patches(self) -> nn.Module:
        name = "prototypes" if self.recipe.shared_head_teacher else "patch_prototypes"
        return self.teacher[name]

    def set_run_length(self, length: RunLength) -> None:
        """Take note of the length of the run, which schedules are functions of."""
        self.length = length

    def edit_gradients(self, step: int) -> None:
        """Leave the prototypes alone in the first epochs: AdamW skips what has no gradient."""
        if self.length.epoch(step) < self.recipe.freeze_last_layer:
            for layer in (self.prototypes, self.patch_prototypes):
                for parameter in () if layer is None else layer.parameters():
                    parameter.grad = None

    def take_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Move the centres."""
        for name, mean in statistics.items():
            getattr(self, name).lerp_(mean, 1 - self.recipe.center_momentum)

    def after_step(self, step: int) -> None:
        """Let the teacher follow."""
        start, total = self.recipe.teacher_momentum, self.length.total_steps
        momentum = momentum_at(step - 1, total, start)  # the table's entry of the step just done
        for name, module in self.teacher.items():
            ema_update(module, getattr(self, name), momentum)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the teacher's encoder under timm's names: what iBOT evaluates."""
        return self.teacher["encoder"].state_dict()
