"""R-MAE: reconstruct removed patches, and in them the maps of regions.

    pixels:  encoder on the visible patches -> MAE's decoder -> pixels of the removed patches
    regions: each region's map in the visible patches -> region encoder -> one vector
             encoder on the visible patches -> a decoder of its own -> features of the removed ones
             vector + features -> region decoder -> the region's map in the removed patches
    L = L_MAE + region_weight * L_reg

Image and maps have the same patches removed. Encoders are trained by both losses; what is exported
is the image's.
"""

from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.losses.regions import region_loss
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import draw_mask
from asl_core.modules.patches import pixel_target
from asl_core.modules.regions import RegionDecoder, RegionEncoder, region_patches
from asl_core.protocol import Draw, Mask, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.rmae import RmaeRecipe


class RegionMaskedAutoencoder(nn.Module):
    """R-MAE.

    Source: official `pretrain/module/rmae.py`, `RegionQueryRMAE`.

    Args:
        recipe: Sizes, mask ratio and target; of the regions their number, weight and widths.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: RmaeRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("rmae", regions=True)
        self.recipe, self.mean, self.std = recipe, mean, std
        vit, width, heads = recipe.model, recipe.region_dim, recipe.region_num_heads
        self.encoder = Encoder(vit)
        self.encoder.pos_embed.requires_grad_(False)
        self.decoder = Decoder(vit)
        self.pixel_decoder = Decoder(recipe.pixel_decoder, out_dim=width)
        self.region_encoder = RegionEncoder(
            vit, width=width, num_heads=heads, depth=recipe.region_encoder_depth
        )
        self.region_decoder = RegionDecoder(width=width, num_heads=heads, out_dim=vit.patch_size**2)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw a mask and do the step."""
        assert batch.regions is not None
        return self.step(*self.masked(batch, draw), batch.regions)

    @not_compiled
    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the normalised images, (B, 3, H, W), and their mask in this step."""
        vit = self.recipe.model
        mask = draw_mask(batch.indices, draw, vit.num_patches, self.recipe.mask_ratio)
        return normalise(batch.views[0], self.mean, self.std), mask

    def step(self, images: Tensor, mask: Mask, regions: Tensor) -> Step:
        """Encode the visible patches; predict pixels and regions in the removed ones; compare.

        Shape:
            - images: (B, 3, S, S), normalised. regions: (B, R, S, S), bool.
        """
        latent = self.encoder(images, mask.ids_keep)  # (B, 1 + V, D)
        loss_mae = reconstruction_loss(self._pixels(latent, mask), self.target(images, mask))
        size = self.recipe.model.patch_size
        visible = region_patches(regions, size, mask.ids_keep).to(images.dtype)  # (B, R, V, P)
        removed = region_patches(regions, size, mask.ids_removed)  # (B, R, N - V, P)
        loss_regions = region_loss(self.region_logits(latent, mask, visible), removed)
        loss = loss_mae + self.recipe.region_weight * loss_regions
        return Step(loss, {"loss_mae": loss_mae, "loss_regions": loss_regions})

    def region_logits(self, latent: Tensor, mask: Mask, visible: Tensor) -> Tensor:
        """Return each region's map in the removed patches.

        Shape:
            - latent: (B, 1 + V, D). visible: (B, R, V, P). Output: (B, R, N - V, P), logits.
        """
        queries = self.region_encoder(visible, mask.ids_keep)  # (B, R, D')
        memory = self.pixel_decoder(latent, mask)[:, latent.shape[1] :]  # (B, N - V, D')
        # its final norm, and the Linear with which the original's region decoder begins
        return self.region_decoder(queries, self.pixel_decoder.head(memory))

    def predictions(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return the prediction of the removed patches, (B, R, P), by branch: MAE's."""
        return {"ori": self._pixels(self.encoder(images, mask.ids_keep), mask)}

    def _pixels(self, latent: Tensor, mask: Mask) -> Tensor:
        return self.decoder.head(self.decoder(latent, mask)[:, latent.shape[1] :])

    def target(self, images: Tensor, mask: Mask) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        recipe = self.recipe
        return pixel_target(images, recipe.model.patch_size, recipe.norm_pix, mask.ids_removed)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names."""
        return self.encoder.state_dict()
