"""MAE: reconstruct removed patches from visible ones (Section 3.1.1, Eq. 1-2)."""

from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import draw_mask
from asl_core.modules.patches import pixel_target
from asl_core.protocol import Draw, Mask, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.normalisation import Rgb


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder.

    Args:
        recipe: Sizes, mask ratio and target.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: MaeRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("mae")
        self.recipe, self.mean, self.std = recipe, mean, std
        self.encoder = Encoder(recipe.model)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(recipe.model)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw a mask and do the step."""
        return self.step(*self.masked(batch, draw))

    @not_compiled
    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the normalised images, (B, 3, H, W), and their mask in this step."""
        vit = self.recipe.model
        mask = draw_mask(batch.indices, draw, vit.num_patches, self.recipe.mask_ratio)
        return normalise(batch.views[0], self.mean, self.std), mask

    def step(self, images: Tensor, mask: Mask) -> Step:
        """Encode the visible patches, predict the removed ones, compare."""
        pred = self.predictions(images, mask)["ori"]
        target = self.target(images, mask)
        loss = reconstruction_loss(pred, target)
        return Step(loss, {"loss_mae": loss})

    def predictions(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return the prediction of the removed patches, (B, R, P), by branch: MAE has one."""
        latent = self.encoder(images, mask.ids_keep)  # (B, 1 + V, D)
        decoded = self.decoder(latent, mask)  # (B, 1 + V + R, E)
        return {"ori": self.decoder.head(decoded[:, latent.shape[1] :])}

    def target(self, images: Tensor, mask: Mask) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        recipe = self.recipe
        return pixel_target(images, recipe.model.patch_size, recipe.norm_pix, mask.ids_removed)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return self.encoder.state_dict()
