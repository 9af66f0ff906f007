"""ccMIM: hide what attention finds important, and let both halves of an image find each other.

    s = softmax(attention of [cls] to the patches, summed over blocks) / softmax(u)
    visible: the patches of smallest s;    removed: the others
    L = L_MAE + 0.1 * InfoNCE(projector([cls] of the visible), projector([cls] of the removed))

The second half is a constant in the loss: its keys are gathered from all processes without
gradient. It therefore runs without one, as does the pass that finds the attention.
"""

from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.contrastive import info_nce
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.attention import block_with_weights
from asl_core.modules.batch_norm import BatchNorm
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder, initialise_as_mae
from asl_core.modules.masking import random_mask
from asl_core.modules.patches import pixel_target
from asl_core.protocol import Draw, Mask, Step, Views
from asl_core.randomness import derive_seed, not_compiled, uniform
from asl_core.recipes.ccmim import CcMimRecipe
from asl_core.recipes.normalisation import Rgb


class ContextContrastiveAutoencoder(nn.Module):
    """ccMIM.

    Args:
        recipe: Sizes, mask, contrast.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: CcMimRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("ccmim")
        self.recipe, self.mean, self.std = recipe, mean, std
        self.encoder = Encoder(recipe.model)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(recipe.model)
        width = recipe.model.embed_dim
        hidden = recipe.projector_hidden or width
        self.projector = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, recipe.projector_dim, bias=False),
            BatchNorm(recipe.projector_dim, affine=False),
        ).apply(initialise_as_mae)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Find what to hide and do the step."""
        return self.step(*self.masked(batch, draw))

    @not_compiled
    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the normalised images, (B, 3, H, W), and their mask in this step."""
        images = normalise(batch.views[0], self.mean, self.std)
        seed = derive_seed(draw.seed, "mask", draw.step)
        noise = uniform(seed, batch.indices, (self.recipe.model.num_patches,))
        return images, self.split(images, noise)

    @torch.no_grad()
    def split(self, images: Tensor, noise: Tensor) -> Mask:
        """Hide the patches that attention and chance choose.

        Shape:
            - images: (B, 3, H, W), normalised. noise: (B, N), uniform in [0, 1).
        """
        if self.recipe.mask == "attention":
            # what stays visible is small here: little attended to, or lucky
            noise = self.attention(images).softmax(1) / noise.softmax(1)  # (B, N)
        return random_mask(noise, self.recipe.mask_ratio)

    def attention(self, images: Tensor) -> Tensor:
        """Return how much [cls] attends to each patch, summed over blocks: (B, N)."""
        encoder = self.encoder
        tokens = encoder.prepend_cls(encoder.add_positions(encoder.embed(images)))  # (B, 1 + N, D)
        tokens, first = encoder.insert_registers(tokens), 1 + encoder.vit.registers
        total: Tensor | float = 0.0
        for block in encoder.blocks:
            tokens, weights = block_with_weights(cast(Block, block), tokens)
            weights = weights.mean(1)  # (B, T, T): heads averaged; rows attend to columns
            to_cls = self.recipe.attention == "to_cls"
            total = total + (weights[:, first:, 0] if to_cls else weights[:, 0, first:])
        return cast(Tensor, total)

    def step(self, images: Tensor, mask: Mask) -> Step:
        """Reconstruct what is removed (Eq. 2), and compare [cls] of both halves."""
        latent = self.encoder(images, mask.ids_keep)  # (B, 1 + V, D)
        pred = self.predict(latent, mask)  # (B, R, P)
        loss_mae = reconstruction_loss(pred, self.target(images, mask))
        queries = self.projector(latent[:, 0])  # (B, C)
        with torch.no_grad():
            keys = self.projector(self.encoder(images, mask.ids_removed)[:, 0])
        loss_contrast = info_nce(queries, keys, self.recipe.temperature)
        loss = loss_mae + self.recipe.contrast_weight * loss_contrast
        return Step(loss, {"loss_mae": loss_mae, "loss_contrast": loss_contrast})

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

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return self.encoder.state_dict()
