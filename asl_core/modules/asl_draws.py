"""What of an ASL step depends on its number: dropout, random signs, the alignment's weight."""

import torch
from torch import Tensor

from asl_core.protocol import Draw, Mask, RunLength
from asl_core.randomness import derive_seed, uniform
from asl_core.recipes.asl import AslRecipe


def drawn_dropout(recipe: AslRecipe, indices: Tensor, mask: Mask, draw: Draw) -> Tensor | None:
    """Draw what values are multiplied with: 0 or 1 / (1 - rate).

    Of DLE the visible embeddings; of the layers of Vaswani et al. the outputs of their two parts.
    A function of seed, step, sample, and of branch, or of layer and part. None where nothing is
    dropped.

    Shape:
        - indices: (B,). Output of DLE: (2B, V, D), (2B, V, 1) for whole patches; of AEE:
          (layers, 2, B, 1 + V, D).
    """
    visible, width = mask.ids_keep.shape[1], recipe.model.embed_dim
    if recipe.design == "dle":
        if recipe.dle_rate == 0:
            return None
        shape = (visible, width if recipe.dle_unit == "value" else 1)
        rates = [recipe.dle_rate if recipe.dle_both else 0.0, recipe.dle_rate]
        seeds = [derive_seed(draw.seed, "dle", draw.step, branch) for branch in (0, 1)]
        kept = [_kept(s, indices, shape, rate) for s, rate in zip(seeds, rates, strict=True)]
        return torch.cat(kept)
    if recipe.aee_layer == "block" or recipe.aee_dropout == 0:
        return None
    places = [(layer, part) for layer in range(recipe.aee_depth) for part in (0, 1)]
    seeds = [derive_seed(draw.seed, "aee", draw.step, *place) for place in places]
    shape = (1 + visible, width)
    kept = [_kept(seed, indices, shape, recipe.aee_dropout) for seed in seeds]
    return torch.stack(kept).unflatten(0, (-1, 2))


def drawn_signs(recipe: AslRecipe, indices: Tensor, draw: Draw) -> Tensor | None:
    """Draw a sign for each aligned value, a function of seed, step and sample.

    None where the signs are the alignment's own.

    Shape:
        - indices: (B,). Output: (B, T, P), 1 or -1; P is the width of the space.
    """
    if recipe.sem_sign == "alignment":
        return None
    vit = recipe.model
    removed = vit.num_patches - recipe.num_visible
    tokens = removed if recipe.sem_patches == "masked" else vit.num_patches
    width = 3 * vit.patch_size**2 if recipe.sem_space == "pixel" else vit.decoder_embed_dim
    seed = derive_seed(draw.seed, "sem_sign", draw.step)
    return (uniform(seed, indices, (tokens, width)) >= 0.5) * 2.0 - 1.0


def weight_at(recipe: AslRecipe, step: int, length: RunLength) -> float:
    """Return the alignment's weight in the step after `step` steps."""
    warmup_steps = recipe.sem_warmup_epochs * length.steps_per_epoch
    return recipe.sem_weight if step >= warmup_steps else recipe.sem_weight * step / warmup_steps


def _kept(seed: int, indices: Tensor, shape: tuple[int, ...], rate: float) -> Tensor:
    """Return 0 or 1 / (1 - rate) for each sample and position, (B, *shape)."""
    return (uniform(seed, indices, shape) >= rate) / (1 - rate)
