"""How a tokenizer uses its codes on training images of a dataset."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import pick_device
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.tokenizers import Tokenizing
from asl_core.tokenizers.kmeans import PatchClusters, normalised_patches
from asl_core.tokenizers.store import StoredTokenizer
from asl_core.tokenizers.views import TokenViews

_IMAGES = 16
"""Of a batch."""


@torch.no_grad()
def measure_codes(
    tokenizer: StoredTokenizer, recipe: Tokenizing, dataset: PackedDataset, resources: Resources
) -> dict[str, float]:
    """Return how many codes are used, how evenly, and how well they stand for the patches.

    Of crops drawn for this alone: `codes_used`; `commonest_code_share`; `code_perplexity`, exp of
    the entropy of the codes; `quantisation_error`, the mean squared difference of normalised pixels
    and their centre's (about 1 without any code), nan for a tokenizer without centres;
    `measured_patches`.
    """
    device = pick_device(resources)
    tokenizer.to(device)
    counts = torch.zeros(tokenizer.num_codes, dtype=torch.int64)
    errors: list[float] = []
    views = TokenViews(
        dataset,
        recipe,
        "measurement of a tokenizer",
        batch_size=_IMAGES,
        num_workers=resources.num_workers,
    )
    with tqdm(views, desc="codes", unit="batch", disable=None) as batches:
        for batch in batches:
            images = batch.to(device)
            codes = tokenizer.codes(images)
            counts += torch.bincount(codes.cpu().flatten(), minlength=tokenizer.num_codes)
            errors.append(_error(tokenizer, images, codes))
    total = int(counts.sum())
    shares = counts[counts > 0].double() / total
    return {
        "codes_used": int((counts > 0).sum()),
        "commonest_code_share": shares.max().item(),
        "code_perplexity": math.exp(-(shares * shares.log()).sum().item()),
        "quantisation_error": math.fsum(errors) / len(errors),
        "measured_patches": total,
    }


def _error(tokenizer: StoredTokenizer, images: Tensor, codes: Tensor) -> float:
    """Return the mean squared difference of a batch's patches and their centres."""
    if not isinstance(tokenizer, PatchClusters):
        return math.nan
    patches = normalised_patches(images, tokenizer.patch_pixels)
    return (patches - tokenizer.centres[codes]).double().square().mean().item()
