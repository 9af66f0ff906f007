"""CAE: represent hidden patches by regression from visible ones, then predict their codes.

    encoder:   [cls] and the visible patches
    regressor: a mask token for each hidden patch asks the visible ones, and the others, for its
               representation h
    decoder:   h and its position -> codes; hidden patches among themselves
    teacher:   the encoder as it was a step ago, on [cls] and the hidden patches
    L = CE(codes) + align_weight * mean((h - teacher)^2)

Two things are as in the official code, though they may not be meant: the MLP of a regressor's block
adds to the output of a norm (see `RegressorBlock`), and the teacher is updated after it was asked,
before the optimiser's step, so that it lags one step behind. It is asked with stochastic depth of
its own, as the official code leaves it in training mode.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.codes import code_loss
from asl_core.modules.beit_weights import initialise_as_cae, trunc_normal
from asl_core.modules.codes import FrozenTokenizer
from asl_core.modules.context_regressor import RegressorBlock
from asl_core.modules.drop_path import draw_drop_path
from asl_core.modules.encoder import (
    Encoder,
    LayerNorm,
    build_block,
    initialise_as_mae,
    run_blocks,
)
from asl_core.modules.masking import gather_tokens, mask_of
from asl_core.modules.momentum import ema_update, frozen_copy
from asl_core.precision import at_least_float32
from asl_core.protocol import Draw, Mask, Step, Tokenizer, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.normalisation import Rgb


class ContextAutoencoder(nn.Module):
    """CAE.

    Args:
        recipe: Sizes, mask, weight of the alignment.
        mean, std: Statistics of the images' channels, in [0, 1].
        tokenizer: Gives the codes; is not trained.
    """

    def __init__(self, recipe: CaeRecipe, mean: Rgb, std: Rgb, tokenizer: Tokenizer) -> None:
        super().__init__()
        recipe.view_plan().require("cae", views=2, masked=1)
        self.recipe, self.mean, self.std = recipe, mean, std
        vit, parts = recipe.model, recipe.encoder_parts
        width = vit.embed_dim
        self.encoder = Encoder(vit, parts)
        initialise_as_cae(self.encoder)
        self.encoder.pos_embed.requires_grad_(False)
        self.mask_token = nn.Parameter(trunc_normal(torch.empty(1, 1, width)))
        self.regressor = nn.ModuleList(
            RegressorBlock(width, vit.num_heads, vit.head_mlp_ratio, recipe.layer_scale)
            for _ in range(recipe.regressor_depth)
        )
        self.regressor_norm = LayerNorm(width)
        self.decoder = nn.ModuleList(
            build_block(width, vit.num_heads, vit.head_mlp_ratio, parts)
            for _ in range(recipe.decoder_depth)
        )
        self.decoder_norm = LayerNorm(width)
        self.head = nn.Linear(width, tokenizer.num_codes)
        for module in (self.regressor, self.decoder, self.head):
            module.apply(initialise_as_mae)
        self.teacher = frozen_copy(self.encoder)
        self.tokenizer = FrozenTokenizer(tokenizer)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Read the codes, draw what is dropped, and do the step."""
        return self.step(**self.prepared(batch, draw))

    @not_compiled
    def prepared(self, batch: Views, draw: Draw) -> dict[str, Any]:
        """Return the arguments of a step: images, mask, codes, what is dropped in each part."""
        assert batch.masks is not None
        recipe, (images, seen_by_tokenizer) = self.recipe, batch.views
        rate = recipe.drop_path if self.training else 0.0
        depths = (
            recipe.model.depth, recipe.model.depth, recipe.regressor_depth, recipe.decoder_depth,
        )  # fmt: skip
        return {
            "images": normalise(images, self.mean, self.std),
            "mask": mask_of(batch.masks[:, 0], recipe.num_removed),
            "codes": self.tokenizer.codes(seen_by_tokenizer),
            "keep": [
                draw_drop_path(batch.indices, draw, depth, rate, part)
                for part, depth in enumerate(depths)
            ],
        }

    def step(self, images: Tensor, mask: Mask, codes: Tensor, keep: list[Tensor | None]) -> Step:
        """Regress the representations of the hidden patches and predict their codes.

        Shape:
            - images: (B, 3, H, W), normalised. codes: (B, N), int64. keep: (depth, 2, B) of the
              encoder, the teacher, the regressor and the decoder.
        """
        visible = _encode(self.encoder, images, mask.ids_keep, keep[0])  # (B, V, D)
        with torch.no_grad():
            teacher = cast(Encoder, self.teacher)
            target = _encode(teacher, images, mask.ids_removed, keep[1])  # (B, R, D)
        latent, logits = self.predict(visible, mask, keep[2], keep[3])
        codes_of_hidden = codes.gather(1, mask.ids_removed)
        loss_codes, accuracy = code_loss(logits, codes_of_hidden)
        distance = at_least_float32(latent) - at_least_float32(target)
        loss_align = distance.square().mean()
        loss = loss_codes + self.recipe.align_weight * loss_align
        terms = {"loss_codes": loss_codes, "loss_align": loss_align, "code_accuracy": accuracy}
        return Step(loss, terms)

    def predict(
        self, visible: Tensor, mask: Mask, keep: Tensor | None, decoder_keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return representations of the hidden patches, (B, R, D), and logits, (B, R, K)."""
        positions = self.encoder.pos_embed[0, 1:]  # (N, D)
        visible_places, places = positions[mask.ids_keep], positions[mask.ids_removed]
        asked = self.mask_token.expand(places.shape)  # (B, R, D)
        for i, block in enumerate(self.regressor):
            kept = None if keep is None else keep[i]
            asked = block(asked, visible, places, visible_places, kept)
        latent = self.regressor_norm(asked)
        decoded = run_blocks(self.decoder, latent + places, decoder_keep)
        return latent, self.head(self.decoder_norm(decoded))

    def before_step(self, step: int) -> None:
        """Let the teacher become what the encoder is before the optimiser changes it."""
        ema_update(self.teacher, self.encoder, self.recipe.teacher_momentum)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights, those of blocks under timm's names."""
        return self.encoder.state_dict()


def _encode(encoder: Encoder, images: Tensor, ids: Tensor, keep: Tensor | None) -> Tensor:
    """Encode [cls] and some patches of images, and leave [cls] out: (B, R) ids to (B, R, D)."""
    tokens = encoder.add_positions(gather_tokens(encoder.embed(images), ids), ids)
    return encoder.norm(encoder.transform(encoder.prepend_cls(tokens), keep))[:, 1:]
