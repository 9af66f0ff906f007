"""CMAE: reconstruct what is masked, and find the image in a teacher's view of it.

student: encoder on the visible patches -> pixel decoder, and feature decoder -> mean over all
         patches -> projector -> predictor
teacher: encoder without its final norm on all patches of a shifted view -> mean over the
         patches -> projector; both follow the student's by an exponential moving average
L = L_MAE + InfoNCE(student, teacher)
"""

from typing import Any

import torch
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.contrastive import info_nce
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import block_grid_mask, draw_mask
from asl_core.modules.momentum import ema_update, frozen_copy
from asl_core.modules.patches import pixel_target
from asl_core.protocol import Draw, Mask, Step, Views
from asl_core.randomness import derive_seed, not_compiled, uniform
from asl_core.recipes.cmae import CmaeRecipe
from asl_core.recipes.normalisation import Rgb

_EPS = 1e-6
"""Of the projectors' BatchNorm, as released; torch's own default is 1e-5."""


class ContrastiveMaskedAutoencoder(nn.Module):
    """CMAE.

    Args:
        recipe: Sizes, mask, contrast, teacher.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: CmaeRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("cmae", views=2)
        self.recipe, self.mean, self.std = recipe, mean, std
        vit, hidden, width = recipe.model, recipe.projector_hidden, recipe.projector_dim
        self.encoder = Encoder(vit)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(vit)
        self.feature_decoder = Decoder(
            vit, depth=recipe.feature_decoder_depth, out_dim=vit.embed_dim
        )
        self.projector = _mlp(vit.embed_dim, hidden, width)
        self.predictor = _mlp(width, hidden, width)
        self.teacher_encoder = frozen_copy(self.encoder)
        self.teacher_encoder.norm = nn.Identity()
        self.teacher_projector = frozen_copy(self.projector)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw a mask and do the step."""
        images, mask = self.masked(batch, draw)
        return self.step(images, self.seen_by_teacher(batch), mask)

    @not_compiled
    def seen_by_teacher(self, batch: Views) -> Tensor:
        """Return the teacher's normalised images, (B, 3, H, W)."""
        return normalise(batch.views[1], self.mean, self.std)

    @not_compiled
    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the student's normalised images, (B, 3, H, W), and their mask in this step."""
        recipe, vit = self.recipe, self.recipe.model
        images = normalise(batch.views[0], self.mean, self.std)
        if recipe.mask == "random":
            return images, draw_mask(batch.indices, draw, vit.num_patches, recipe.mask_ratio)
        seed = derive_seed(draw.seed, "mask", draw.step)
        noise = uniform(seed, batch.indices, (vit.num_patches // 4,))
        return images, block_grid_mask(noise, recipe.mask_ratio, vit.grid_size)

    def step(self, images: Tensor, targets: Tensor, mask: Mask) -> Step:
        """Reconstruct (Eq. 2) and compare.

        Shape:
            - images, targets: (B, 3, H, W), normalised: the student's and the teacher's view.
        """
        latent = self.encoder(images, mask.ids_keep)  # (B, 1 + V, D)
        loss_mae = reconstruction_loss(self.predict(latent, mask), self.target(images, mask))
        features = self.feature_decoder.head(self.feature_decoder(latent, mask)[:, 1:])  # (B, N, D)
        queries = self.predictor(self.projector(features.mean(1)))  # (B, C)
        loss_contrast = info_nce(queries, self.keys(targets), self.recipe.temperature)
        loss = loss_mae + self.recipe.contrast_weight * loss_contrast
        return Step(loss, {"loss_mae": loss_mae, "loss_contrast": loss_contrast})

    @torch.no_grad()
    def keys(self, targets: Tensor) -> Tensor:
        """Return what the teacher makes of its views: (B, 3, H, W) to (B, C)."""
        # the teacher's final norm is none; [cls] takes part in attention, not in the mean
        tokens = self.teacher_encoder(targets)[:, 1:]  # (B, N, D)
        return self.teacher_projector(tokens.mean(1))

    def predict(self, latent: Tensor, mask: Mask) -> Tensor:
        """Decode the removed patches: (B, 1 + V, D) to (B, R, P)."""
        return self.decoder.head(self.decoder(latent, mask)[:, latent.shape[1] :])

    def predictions(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return the prediction of the removed patches, (B, R, P), by branch: there is one."""
        return {"ori": self.predict(self.encoder(images, mask.ids_keep), mask)}

    def target(self, images: Tensor, mask: Mask) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        recipe = self.recipe
        return pixel_target(images, recipe.model.patch_size, recipe.norm_pix, mask.ids_removed)

    def after_step(self, step: int) -> None:
        """Let the teacher follow."""
        momentum = self.recipe.teacher_momentum
        ema_update(self.teacher_encoder, self.encoder, momentum)
        ema_update(self.teacher_projector, self.projector, momentum)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Spare biases, LayerNorms, [cls] and mask tokens weight decay; BatchNorm has its share."""
        spared, others = [], []
        gains = {id(m.weight) for m in self.modules() if isinstance(m, BatchNorm)}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            token = name.endswith(("cls_token", "reg_token", "mask_token"))
            one_dimensional = parameter.ndim <= 1 and id(parameter) not in gains
            (spared if token or one_dimensional else others).append(parameter)
        return [
            {"params": spared, "weight_decay": 0.0},
            {"params": others, "weight_decay": self.recipe.weight_decay},
        ]

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the student's encoder under timm's names."""
        return self.encoder.state_dict()


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, hidden),
        BatchNorm(hidden, eps=_EPS),
        nn.ReLU(),
        nn.Linear(hidden, width_out, bias=False),
    )
