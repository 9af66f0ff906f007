"""ASL: masked autoencoding with two sets of features and their alignment (Section 3.3).

Both designs start from one masked image with one set of visible patches:

    AEE   fea_ori = f(x),    fea_aug = TransformerLayer(fea_ori)
    DLE   fea_ori = f(Dropout(e)),    fea_aug = f(Dropout(e)),    e the linear embedding of x

One decoder turns each into predictions; L = L_MAE + L_SEM (Eq. 11).

Both branches travel stacked along the batch, fea_ori first: one pass of the decoder, not two.
What the paper leaves open is a field of `AslRecipe`, with the reason for its default.
"""

import contextlib

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.losses.alignment import alignment_loss, cosine_alignment_loss, random_sign_loss
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.modules.asl_draws import drawn_dropout, drawn_signs, weight_at
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder, LayerNorm, initialise_as_mae
from asl_core.modules.masking import draw_mask, gather_tokens
from asl_core.modules.patches import pixel_target
from asl_core.modules.post_norm import PostNormLayer
from asl_core.precision import at_least_float32, full_precision
from asl_core.protocol import Draw, Mask, RunLength, Step, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.normalisation import Rgb


class ArbitrarySelfSupervised(nn.Module):
    """Arbitrary self-supervised learning (ASL).

    Args:
        recipe: Sizes, design, losses.
        mean, std: Statistics of the images' channels, in [0, 1].
    """

    def __init__(self, recipe: AslRecipe, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        recipe.view_plan().require("asl")
        self.recipe, self.mean, self.std = recipe, mean, std
        self.length, self.steps_done = RunLength(), 0
        vit, ratio = recipe.model, recipe.model.head_mlp_ratio
        self.encoder = Encoder(vit)
        self.encoder.pos_embed.requires_grad_(False)
        if recipe.design == "aee":
            layers: list[nn.Module] = [
                PostNormLayer(vit.embed_dim, vit.num_heads, ratio)
                if recipe.aee_layer == "vaswani"
                else Block(vit.embed_dim, vit.num_heads, ratio, True, norm_layer=LayerNorm)
                for _ in range(recipe.aee_depth)
            ]
            if recipe.aee_norm:
                layers.append(LayerNorm(vit.embed_dim))
            self.extra_layer = nn.Sequential(*layers).apply(initialise_as_mae)
        self.decoder = Decoder(vit)
        self.decoder_aug = None if recipe.share_decoder else Decoder(vit)

    def set_run_length(self, length: RunLength) -> None:
        """Take note of how many steps an epoch has: the alignment's weight may grow over some."""
        self.length = length

    def after_step(self, step: int) -> None:
        """Take note of the steps done: who looks on between them gives a draw of no step."""
        self.steps_done = step

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Draw a mask and what else is random, and do the step."""
        images, mask = self.masked(batch, draw)
        noise = self.draw_dropout(batch.indices, mask, draw) if self.training else None
        signs = self.draw_signs(batch.indices, draw)
        return self.step(images, mask, noise, signs, self.weight_in(draw, images.device))

    @not_compiled
    def masked(self, batch: Views, draw: Draw) -> tuple[Tensor, Mask]:
        """Return the normalised images, (B, 3, H, W), and their mask in this step."""
        vit = self.recipe.model
        mask = draw_mask(batch.indices, draw, vit.num_patches, self.recipe.mask_ratio)
        return normalise(batch.views[0], self.mean, self.std), mask

    def step(
        self,
        images: Tensor,
        mask: Mask,
        noise: Tensor | None = None,
        signs: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Step:
        """Make both sets of features, decode both, reconstruct (Eq. 2) and align (Eq. 9-10).

        `noise` is of `draw_dropout`, `signs` of `draw_signs`, `weight` of `weight_in`; without them
        nothing is dropped, signs are the alignment's own, and the weight is the recipe's.
        """
        recipe = self.recipe
        features = self.features(images, mask, noise)  # (2B, 1 + V, D)
        decoded = self.decode(features, mask)  # (2B, 1 + V + R, E)
        removed = slice(features.shape[1], None)
        aligned = removed if recipe.sem_patches == "masked" else slice(1, None)
        # the head runs on the tokens that a loss reads, no others
        predicted = aligned if recipe.sem_space == "pixel" else removed
        pred = self.head(decoded[:, predicted])  # (2B, R or N, P)

        target = self.target(images, mask)  # (B, R, P)
        pred_ori, pred_aug = pred[:, -target.shape[1] :].chunk(2)
        mae_ori = reconstruction_loss(pred_ori, target)
        mae_aug = reconstruction_loss(pred_aug, target)
        loss_mae = {
            "both_mean": (mae_ori + mae_aug) / 2,
            "both_sum": mae_ori + mae_aug,
            "ori": mae_ori,
            "aug": mae_aug,
        }[recipe.mae_on]

        in_space = pred if recipe.sem_space == "pixel" else self.decoder.norm(decoded[:, aligned])
        # without a weight the alignment is only watched
        loss_sem = self.align(in_space if recipe.sem_weight > 0 else in_space.detach(), signs)
        terms = {
            "loss_mae": loss_mae,
            "loss_mae_ori": mae_ori,
            "loss_mae_aug": mae_aug,
            "loss_sem": loss_sem,
            # towards 0, the second branch has degenerated to the first
            "branch_distance": _relative_distance(features),
        }
        if recipe.cls_align != "off":
            terms["loss_cls"] = self.align(self._cls(features, decoded))
            loss_sem = loss_sem + terms["loss_cls"]
        if recipe.sem_weight == 0:
            return Step(loss_mae, terms)
        if weight is None:
            return Step(loss_mae + recipe.sem_weight * loss_sem, terms)
        return Step(loss_mae + weight * loss_sem, {**terms, "sem_weight": weight})

    def features(self, images: Tensor, mask: Mask, noise: Tensor | None = None) -> Tensor:
        """Return fea_ori and fea_aug, stacked (2B, 1 + V, D), from the same visible patches."""
        encoder, recipe = self.encoder, self.recipe
        embedded = gather_tokens(encoder.embed(images), mask.ids_keep)  # (B, V, D)
        if recipe.design == "aee":
            tokens = encoder.prepend_cls(encoder.add_positions(embedded, mask.ids_keep))
            hidden = encoder.transform(tokens)  # (B, 1 + V, D)
            with self.not_shared(hidden):
                hidden = at_least_float32(hidden)
                fea_ori = encoder.norm(hidden)
                if recipe.aee_pos == "post_norm":
                    fea_aug = self.augment(fea_ori, noise)
                else:
                    fea_aug = encoder.norm(self.augment(hidden, noise))
                return torch.cat([fea_ori, fea_aug])
        scale = 1.0 if noise is None else noise
        both, ids_keep = embedded.repeat(2, 1, 1), mask.twice().ids_keep  # (2B, V, D)
        if recipe.dle_where == "pre_pos":
            both = encoder.add_positions(both * scale, ids_keep)
        else:
            both = encoder.add_positions(both, ids_keep) * scale
        return encoder.norm(encoder.transform(encoder.prepend_cls(both)))

    def augment(self, tokens: Tensor, noise: Tensor | None) -> Tensor:
        """Run the layers that make fea_aug, their dropout drawn: (B, 1 + V, D) to the same."""
        if self.recipe.aee_layer == "block":
            return self.extra_layer(tokens)
        for number, layer in enumerate(self.extra_layer):
            tokens = layer(tokens, None if noise is None else noise[number])
        return tokens

    def not_shared(self, tokens: Tensor) -> contextlib.AbstractContextManager[object]:
        """Compute as `sem_precision` says what the branches do not share."""
        recipe = self.recipe
        if recipe.sem_precision == "full" and recipe.sem_weight > 0:
            return full_precision(tokens.device)
        return contextlib.nullcontext()

    def decode(self, features: Tensor, mask: Mask) -> Tensor:
        """Run both sets of features through the decoder: (2B, 1 + V, D) to (2B, 1 + V + R, E)."""
        with self.not_shared(features):
            if self.decoder_aug is None:
                return self.decoder(features, mask.twice())
            fea_ori, fea_aug = features.chunk(2)
            return torch.cat([self.decoder(fea_ori, mask), self.decoder_aug(fea_aug, mask)])

    def head(self, decoded: Tensor) -> Tensor:
        """Predict the pixels of both branches' tokens: (2B, T, E) to (2B, T, P)."""
        with self.not_shared(decoded):
            if self.decoder_aug is None:
                return self.decoder.head(decoded)
            ori, aug = decoded.chunk(2)
            return torch.cat([self.decoder.head(ori), self.decoder_aug.head(aug)])

    def align(self, both: Tensor, signs: Tensor | None = None) -> Tensor:
        """Return the alignment loss of the two halves of a stack, (2B, T, P)."""
        recipe, (ori, aug) = self.recipe, both.chunk(2)
        if recipe.sem_type == "cosine":
            return cosine_alignment_loss(ori, aug)
        if signs is not None:
            return random_sign_loss(ori, aug, signs, recipe.sem_reduction)
        return alignment_loss(ori, aug, recipe.sem_reduction)

    def _cls(self, features: Tensor, decoded: Tensor) -> Tensor:
        """Return the [cls] token of both branches in the space that `cls_align` names."""
        if self.recipe.cls_align == "encoder":
            return features[:, :1]  # (2B, 1, D)
        if self.recipe.cls_align == "decoder_norm":
            return self.decoder.norm(decoded[:, :1])  # (2B, 1, E)
        return self.head(decoded[:, :1])  # (2B, 1, P)

    def target(self, images: Tensor, mask: Mask) -> Tensor:
        """Return what the removed patches should be predicted as, (B, R, P)."""
        recipe = self.recipe
        return pixel_target(images, recipe.model.patch_size, recipe.norm_pix, mask.ids_removed)

    @not_compiled
    def draw_dropout(self, indices: Tensor, mask: Mask, draw: Draw) -> Tensor | None:
        """Draw what values are multiplied with, 0 or 1 / (1 - rate); None: nothing is dropped."""
        return drawn_dropout(self.recipe, indices, mask, draw)

    @not_compiled
    def draw_signs(self, indices: Tensor, draw: Draw) -> Tensor | None:
        """Draw a sign for each aligned value, (B, T, P); None: they are the alignment's own."""
        return drawn_signs(self.recipe, indices, draw)

    @not_compiled
    def weight_in(self, draw: Draw, device: torch.device) -> Tensor | None:
        """Return the alignment's weight in this step; None: it never changes.

        A tensor, for each number would be compiled anew.
        """
        if self.recipe.sem_warmup_epochs == 0:
            return None
        # after a resume none of this process's is done yet
        step = max(draw.step, self.steps_done)
        return torch.full((), weight_at(self.recipe, step, self.length), device=device)

    def predictions(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """Return the predictions of the removed patches by both branches, each (B, R, P).

        Without dropout: the two of DLE are then equal.
        """
        features = self.features(images, mask)
        pred = self.head(self.decode(features, mask)[:, features.shape[1] :])
        pred_ori, pred_aug = pred.chunk(2)
        return {"ori": pred_ori, "aug": pred_aug}

    def branch_predictions(self, batch: Views, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return what both branches predict in a step, with its mask and the dropout of DLE.

        Shape:
            - Outputs: pred_ori, pred_aug, of the removed patches, (B, R, P).
        """
        images, mask = self.masked(batch, draw)
        features = self.features(images, mask, self.draw_dropout(batch.indices, mask, draw))
        pred = self.head(self.decode(features, mask)[:, features.shape[1] :])
        pred_ori, pred_aug = pred.chunk(2)
        return pred_ori, pred_aug

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights under timm's names; the extra layer is not exported.

        Table 2 gives ASL the parameters of a plain ViT-B.
        """
        return self.encoder.state_dict()


def _relative_distance(features: Tensor) -> Tensor:
    """Return |fea_aug - fea_ori| / |fea_ori| over the batch, without gradient."""
    fea_ori, fea_aug = at_least_float32(features.detach()).chunk(2)
    return (fea_aug - fea_ori).norm() / fea_ori.norm().clamp_min(1e-12)
