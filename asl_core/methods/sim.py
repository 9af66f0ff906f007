"""SIM: from visible patches of one view, predict what a teacher makes of each patch of another.

    student: encoder on the visible patches of view 1 -> Linear -> projector; beside them a mask
             token for each patch of view 2, which knows where it lies seen from view 1 -> predictor
    teacher: encoder -> Linear -> projector on all patches of view 2 -> norm; follows the student by
             an exponential moving average
    L = UniGrad of predictions and targets

Neither encoder has a final norm. Projector and predictor normalise by BatchNorm over all images and
tokens; the patch embedding stays as it was drawn. No loss reaches [cls]: probe the mean of patches.
"""

from typing import cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.unigrad import token_correlation, unigrad_loss
from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.encoder import Encoder, initialise_as_mae
from asl_core.modules.masking import gather_tokens, mask_of
from asl_core.modules.momentum import ema_update, frozen_copy, momentum_at
from asl_core.modules.positions import relative_positions, sincos_positions
from asl_core.precision import at_least_float32
from asl_core.protocol import Draw, Mask, RunLength, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.sim import SimRecipe

_FOLLOWS = ("encoder", "embed", "projector")
"""What the teacher has of the student."""


class SiameseImageModel(nn.Module):
    """SIM.

    Args:
        recipe: Sizes, mask, teacher.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    pos_embed: Tensor

    def __init__(self, recipe: SimRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("sim", views=2, masked=1, boxes=True)
        self.recipe, self.mean, self.std = recipe, mean, std
        self.length = RunLength()
        vit, width = recipe.model, recipe.width
        self.encoder = Encoder(vit)
        self.encoder.pos_embed.requires_grad_(False)
        self.encoder.norm.requires_grad_(False)  # neither run nor trained; exported as it is
        self.encoder.patch_embed.requires_grad_(recipe.train_patch_embed)
        self.embed = nn.Linear(vit.embed_dim, width)
        self.projector = self._blocks(recipe.projector_depth)
        self.predictor = self._blocks(recipe.predictor_depth)
        self.pred = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.relative = nn.Linear(2 * width, width)
        self.register_buffer("pos_embed", sincos_positions(width, vit.grid_size), persistent=False)
        for module in (self.embed, self.projector, self.predictor, self.pred, self.relative):
            module.apply(initialise_as_mae)
        nn.init.normal_(self.mask_token, std=0.02)
        self.teacher = nn.ModuleDict({name: frozen_copy(getattr(self, name)) for name in _FOLLOWS})

    def _blocks(self, depth: int) -> nn.Sequential:
        recipe = self.recipe
        return nn.Sequential(
            *(
                Block(
                    recipe.width, recipe.heads, recipe.model.head_mlp_ratio, qkv_bias=True,
                    norm_layer=BatchNorm,
                )
                for _ in range(depth)
            )
        )  # fmt: skip

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Do the step on both views."""
        return self.step(*self.prepared(batch))

    @not_compiled
    def prepared(self, batch: Views) -> tuple[Tensor, Tensor, Tensor, Mask]:
        """Return both views normalised, the relative positions, and the mask of the first."""
        assert batch.boxes is not None
        assert batch.masks is not None
        first, second = (normalise(view, self.mean, self.std) for view in batch.views)
        relative = relative_positions(batch.boxes, self.recipe.width, self.recipe.model.grid_size)
        return first, second, relative, mask_of(batch.masks[:, 0], self.recipe.num_removed)

    def step(self, first: Tensor, second: Tensor, relative: Tensor, mask: Mask) -> Step:
        """Predict the teacher's features of the second view from the first.

        Shape:
            - first, second: (B, 3, H, W), normalised. relative: (B, N, 2E).
        """
        target = self.targets(second)
        loss = unigrad_loss(
            self.predict(first, relative, mask),
            target,
            token_correlation(target),
            self.recipe.negative_weight,
        )
        # towards 0, all targets have become one
        return Step(loss, {"target_deviation": target.std((0, 1)).mean()})

    def predict(self, first: Tensor, relative: Tensor, mask: Mask) -> Tensor:
        """Return the predictions of all patches of the second view, (B, N, E)."""
        encoder = self.encoder
        tokens = gather_tokens(encoder.embed(first), mask.ids_keep)  # (B, V, D)
        tokens = encoder.prepend_cls(encoder.add_positions(tokens, mask.ids_keep))
        tokens = self.projector(self.embed(encoder.transform(tokens)))  # (B, 1 + V, E)
        visible = tokens[:, 1:] + self.pos_embed[0, 1:][mask.ids_keep]
        asked = self.mask_token + self.relative(relative)  # (B, N, E)
        parts = [tokens[:, :1], visible, asked]
        tokens = torch.cat([part.to(visible.dtype) for part in parts], dim=1)
        return self.pred(self.predictor(tokens))[:, -asked.shape[1] :]

    @torch.no_grad()
    def targets(self, second: Tensor) -> Tensor:
        """Return the teacher's normalised features of all patches, (B, N, E)."""
        encoder = cast(Encoder, self.teacher["encoder"])
        tokens = encoder.prepend_cls(encoder.add_positions(encoder.embed(second)))
        tokens = self.teacher["projector"](self.teacher["embed"](encoder.transform(tokens)))
        patches = at_least_float32(tokens[:, 1:])
        return F.layer_norm(patches, patches.shape[-1:], eps=1e-5)

    def set_run_length(self, length: RunLength) -> None:
        """Take note of the length of the run, which the teacher's momentum is a function of."""
        self.length = length

    def after_step(self, step: int) -> None:
        """Let the teacher follow."""
        momentum = momentum_at(step, self.length.total_steps, self.recipe.teacher_momentum)
        for name in _FOLLOWS:
            ema_update(self.teacher[name], getattr(self, name), momentum)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the student's encoder under timm's names; its final norm is a fresh one."""
        return self.encoder.state_dict()
