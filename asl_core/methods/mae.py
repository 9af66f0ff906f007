"""MAE: reconstruct removed patches from visible ones (Section 3.1.1, Eq. 1-2)."""

from torch import Tensor, nn

from asl_core.data.views import denormalise, normalise
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import Mask, random_mask
from asl_core.modules.patches import pixel_target
from asl_core.modules.reconstruction import reconstruction_pictures
from asl_core.protocol import Draw, Step, Views
from asl_core.randomness import derive_seed, uniform
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.normalisation import Rgb


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder.

    Args:
        recipe: Sizes, mask ratio and target.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    num_views = 1

    def __init__(self, recipe: MaeRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.recipe, self.mean, self.std = recipe, mean, std
        self.encoder = Encoder(recipe.model)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(recipe.model)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Mask, encode, decode, compare."""
        images = normalise(batch.views[0], self.mean, self.std)
        mask = self.draw_mask(batch.indices, draw)
        pred = self.predict(images, mask)
        target = pixel_target(images, self.recipe.model.patch_size, self.recipe.norm_pix)
        loss = reconstruction_loss(pred, target, mask.mask)
        return Step(loss, {"loss_mae": loss})

    def draw_mask(self, indices: Tensor, draw: Draw) -> Mask:
        """Draw which patches are removed; a function of seed, step and sample."""
        seed = derive_seed(draw.seed, "mask", draw.step)
        return random_mask(
            uniform(seed, indices, (self.recipe.model.num_patches,)), self.recipe.mask_ratio
        )

    def predict(self, images: Tensor, mask: Mask) -> Tensor:
        """Return the prediction of every patch, (B, N, P)."""
        latent = self.encoder(images, mask.ids_keep)  # (B, 1 + V, D)
        return self.decoder(latent, mask.ids_restore)

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return self.encoder.state_dict()

    def reconstructions(self, batch: Views, draw: Draw) -> dict[str, Tensor]:
        """Return input, masked input and prediction as pictures, (B, 3, H, W) in [0, 1]."""
        images = normalise(batch.views[0], self.mean, self.std)
        mask = self.draw_mask(batch.indices, draw)
        pictures = reconstruction_pictures(
            images,
            {"prediction": self.predict(images, mask)},
            mask.mask,
            self.recipe.model.patch_size,
            self.recipe.norm_pix,
        )
        return {name: denormalise(x, self.mean, self.std) for name, x in pictures.items()}
