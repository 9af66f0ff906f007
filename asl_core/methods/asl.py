"""ASL: masked autoencoding with two sets of features and their alignment (Section 3.3).

Both designs start from one masked image with one set of visible patches:

    AEE   fea_ori = f(x),    fea_aug = TransformerLayer(fea_ori)
    DLE   fea_ori = f(Dropout(e)),    fea_aug = f(Dropout(e)),    e the linear embedding of x

One decoder turns each into predictions; L = L_MAE + L_SEM (Eq. 11).
"""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.data.views import denormalise, normalise
from asl_core.losses.alignment import alignment_loss, cosine_alignment_loss
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder, LayerNorm, initialise_as_mae
from asl_core.modules.masking import Mask, random_mask
from asl_core.modules.patches import pixel_target
from asl_core.modules.reconstruction import reconstruction_pictures
from asl_core.protocol import Draw, Step, Views
from asl_core.randomness import derive_seed, uniform
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.normalisation import Rgb


class ArbitrarySelfSupervised(nn.Module):
    """Arbitrary self-supervised learning (ASL).

    Args:
        recipe: Sizes, design, losses.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    num_views = 1

    def __init__(self, recipe: AslRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.recipe, self.mean, self.std = recipe, mean, std
        vit = recipe.model
        self.encoder = Encoder(vit)
        self.encoder.pos_embed.requires_grad_(False)
        if recipe.design == "aee":
            self.extra_layer = Block(
                vit.embed_dim, vit.num_heads, vit.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm
            )
            self.extra_layer.apply(initialise_as_mae)
        self.decoder = Decoder(vit)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Mask, make both sets of features, decode both, reconstruct and align."""
        images = normalise(batch.views[0], self.mean, self.std)
        mask = self.draw_mask(batch.indices, draw)
        fea_ori, fea_aug = self.features(images, mask, batch.indices, draw)
        pred_ori, pred_aug = self.predict(fea_ori, fea_aug, mask)
        target = pixel_target(images, self.recipe.model.patch_size, self.recipe.norm_pix)
        mae_ori = reconstruction_loss(pred_ori, target, mask.mask)
        mae_aug = reconstruction_loss(pred_aug, target, mask.mask)
        loss_mae = {
            "both_mean": (mae_ori + mae_aug) / 2,
            "both_sum": mae_ori + mae_aug,
            "ori": mae_ori,
        }[self.recipe.mae_on]
        align = {"l1": alignment_loss, "cosine": cosine_alignment_loss}[self.recipe.sem_type]
        loss_sem = align(pred_ori, pred_aug, mask.mask)
        loss = loss_mae + self.recipe.sem_weight * loss_sem
        terms = {
            "loss_mae": loss_mae,
            "loss_mae_ori": mae_ori,
            "loss_mae_aug": mae_aug,
            "loss_sem": loss_sem,
            # towards 0, the second branch has degenerated to the first
            "branch_distance": _relative_distance(fea_ori, fea_aug),
        }
        return Step(loss, terms)

    def features(
        self, images: Tensor, mask: Mask, indices: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Return fea_ori and fea_aug, each (B, 1 + V, D), from the same visible patches."""
        embedded = self.encoder.embed(images)  # (B, N, D)
        if self.recipe.design == "aee":
            fea_ori = self.encoder.encode(embedded, mask.ids_keep)
            return fea_ori, self.extra_layer(fea_ori)
        # one pass over both draws: twice the batch, not twice the kernels
        noisy = torch.cat([self._dropout(embedded, indices, draw, k) for k in (0, 1)])
        fea_ori, fea_aug = self.encoder.encode(noisy, mask.ids_keep.repeat(2, 1)).chunk(2)
        return fea_ori, fea_aug

    def predict(self, fea_ori: Tensor, fea_aug: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Decode both sets of features with the one decoder, as one batch; each (B, N, P)."""
        both = self.decoder(torch.cat([fea_ori, fea_aug]), mask.ids_restore.repeat(2, 1))
        pred_ori, pred_aug = both.chunk(2)
        return pred_ori, pred_aug

    def draw_mask(self, indices: Tensor, draw: Draw) -> Mask:
        """Draw which patches are removed; a function of seed, step and sample."""
        seed = derive_seed(draw.seed, "mask", draw.step)
        return random_mask(
            uniform(seed, indices, (self.recipe.model.num_patches,)), self.recipe.mask_ratio
        )

    def _dropout(self, embedded: Tensor, indices: Tensor, draw: Draw, branch: int) -> Tensor:
        """Drop single values of the linear embedding, rescaling the rest by 1 / (1 - rate)."""
        rate = self.recipe.dle_rate
        if rate == 0 or not self.training:
            return embedded
        seed = derive_seed(draw.seed, "dle", draw.step, branch)
        keep = uniform(seed, indices, tuple(embedded.shape[1:])) >= rate  # (B, N, D)
        return embedded * keep / (1 - rate)

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names; the extra layer is not exported.

        Table 2 gives ASL the parameters of a plain ViT-B.
        """
        return self.encoder.state_dict()

    def reconstructions(self, batch: Views, draw: Draw) -> dict[str, Tensor]:
        """Return input, masked input and both predictions, (B, 3, H, W) in [0, 1]."""
        images = normalise(batch.views[0], self.mean, self.std)
        mask = self.draw_mask(batch.indices, draw)
        fea_ori, fea_aug = self.features(images, mask, batch.indices, draw)
        pred_ori, pred_aug = self.predict(fea_ori, fea_aug, mask)
        pictures = reconstruction_pictures(
            images,
            {"prediction (original)": pred_ori, "prediction (augmented)": pred_aug},
            mask.mask,
            self.recipe.model.patch_size,
            self.recipe.norm_pix,
        )
        return {name: denormalise(x, self.mean, self.std) for name, x in pictures.items()}


def _relative_distance(fea_ori: Tensor, fea_aug: Tensor) -> Tensor:
    """Return |fea_aug - fea_ori| / |fea_ori| over the batch, without gradient."""
    a, b = fea_ori.detach().float(), fea_aug.detach().float()
    return (b - a).norm() / a.norm().clamp_min(1e-12)
