"""SplitMask: inpaint the codes of one half of the patches from the other half, and vice versa.

    A, B: the patches of an image, split at random
    L = CE(codes of B | A) + CE(codes of A | B) + contrast_weight * NCE(x_a, x_b)

x_a is the mean of all patches that the decoder gives for A, visible and inpainted. What is inferred
beside that is said in `SplitMaskRecipe`, and here:

- A has half of the patches, rounded down, uniformly at random: not in rectangles.
- A patch of the mean is the decoder's output after its norm, where codes are read too.
- NCE is symmetric, the mean of both directions, of vectors of length 1, with gradients to both; the
  negatives of x_a are x_b of the other images of the step, those of x_b are x_a of these.
"""

from dataclasses import replace
from typing import Any

from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.codes import CodeLoss, code_loss
from asl_core.losses.contrastive import symmetric_info_nce
from asl_core.modules.beit_weights import initialise_as_beit
from asl_core.modules.codes import FrozenTokenizer
from asl_core.modules.decoder import Decoder
from asl_core.modules.drop_path import draw_drop_path
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import draw_mask, gather_tokens
from asl_core.protocol import Draw, Mask, Step, Tokenizer, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.splitmask import SplitMaskRecipe


class SplitInpainter(nn.Module):
    """SplitMask.

    Args:
        recipe: Sizes, contrast.
        mean, std: Statistics of the images' channels, in [0, 1].
        tokenizer: Gives the codes; is not trained.
    """

    def __init__(self, recipe: SplitMaskRecipe, mean: Rgb, std: Rgb, tokenizer: Tokenizer) -> None:
        super().__init__()
        recipe.view_plan().require("splitmask", views=2)
        self.recipe, self.mean, self.std = recipe, mean, std
        vit = recipe.model
        self.encoder = Encoder(vit, recipe.encoder_parts)
        initialise_as_beit(self.encoder)
        self.encoder.pos_embed.requires_grad_(False)
        as_wide = replace(vit, decoder_embed_dim=vit.embed_dim, decoder_num_heads=vit.num_heads)
        self.decoder = Decoder(as_wide, depth=recipe.decoder_depth, out_dim=tokenizer.num_codes)
        self.tokenizer = FrozenTokenizer(tokenizer)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Read the codes, draw the halves and what is dropped, and do the step."""
        return self.step(**self.prepared(batch, draw))

    @not_compiled
    def prepared(self, batch: Views, draw: Draw) -> dict[str, Any]:
        """Return the arguments of a step: images, halves, codes, what is dropped in each pass."""
        recipe, (images, seen_by_tokenizer) = self.recipe, batch.views
        rate, depth = recipe.drop_path if self.training else 0.0, recipe.model.depth
        return {
            "images": normalise(images, self.mean, self.std),
            "halves": draw_mask(batch.indices, draw, recipe.model.num_patches, 0.5),
            "codes": self.tokenizer.codes(seen_by_tokenizer),
            "keep": [draw_drop_path(batch.indices, draw, depth, rate, half) for half in range(2)],
        }

    def step(self, images: Tensor, halves: Mask, codes: Tensor, keep: list[Tensor | None]) -> Step:
        """Inpaint each half from the other, and match them.

        Shape:
            - images: (B, 3, H, W), normalised. halves: A is kept, B removed. codes: (B, N), int64.
              keep: (depth, 2, B) of A and of B.
        """
        embedded = self.encoder.embed(images)  # (B, N, D)
        other = Mask(halves.ids_removed, halves.ids_keep)
        (first, x_a), (second, x_b) = (
            self.inpaint(embedded, half, codes, kept)
            for half, kept in zip((halves, other), keep, strict=True)
        )
        loss_codes = first.loss + second.loss
        loss_contrast = symmetric_info_nce(x_a, x_b, self.recipe.temperature)
        terms = {
            "loss_codes": loss_codes,
            "loss_contrast": loss_contrast,
            "code_accuracy": (first.accuracy + second.accuracy) / 2,
        }
        return Step(loss_codes + self.recipe.contrast_weight * loss_contrast, terms)

    def inpaint(
        self, embedded: Tensor, half: Mask, codes: Tensor, keep: Tensor | None
    ) -> tuple[CodeLoss, Tensor]:
        """Predict the codes of the removed half from the kept one; also return the mean, (B, D).

        Shape:
            - embedded: (B, N, D), of which the removed ones are not read. codes: (B, N).
        """
        encoder, decoder = self.encoder, self.decoder
        tokens = encoder.add_positions(gather_tokens(embedded, half.ids_keep), half.ids_keep)
        latent = encoder.norm(encoder.transform(encoder.prepend_cls(tokens), keep))
        decoded = decoder.norm(decoder(latent, half))  # (B, 1 + N, D), the removed ones last
        logits = decoder.pred(decoded[:, latent.shape[1] :])  # (B, R, K)
        return code_loss(logits, codes.gather(1, half.ids_removed)), decoded[:, 1:].mean(1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Spare [cls] weight decay too, as BEiT does."""
        return param_groups_weight_decay(
            self,
            self.recipe.weight_decay,
            no_weight_decay_list=("encoder.cls_token", "encoder.reg_token"),
        )

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights, those of blocks under timm's names."""
        return self.encoder.state_dict()
