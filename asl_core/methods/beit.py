"""BEiT: predict the codes of hidden patches, which a tokenizer gives, from the whole sequence.

    L = mean over all hidden patches of CE(Linear(LN(x)), code)

A learned token takes the place of a hidden patch's embedding. Positions are relative, one table
for all blocks; the encoder's final norm is the LN, so that it is trained and exported.
"""

from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from asl_core.data.views import normalise
from asl_core.distributed import mean_over_processes, world_size
from asl_core.losses.codes import code_loss
from asl_core.modules.beit_weights import initialise_as_beit, trunc_normal
from asl_core.modules.codes import FrozenTokenizer
from asl_core.modules.drop_path import draw_drop_path
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import gather_tokens
from asl_core.protocol import Draw, Step, Tokenizer, Views
from asl_core.randomness import not_compiled
from asl_core.recipes.beit import BeitRecipe
from asl_core.recipes.normalisation import Rgb


class MaskedCodeModel(nn.Module):
    """BEiT.

    Args:
        recipe: Sizes, mask.
        mean, std: Statistics of the images' channels, in [0, 1].
        tokenizer: Gives the codes; is not trained.
    """

    def __init__(self, recipe: BeitRecipe, mean: Rgb, std: Rgb, tokenizer: Tokenizer) -> None:
        super().__init__()
        recipe.view_plan().require("beit", views=2, masked=1)
        self.recipe, self.mean, self.std = recipe, mean, std
        width = recipe.model.embed_dim
        self.encoder = Encoder(recipe.model, recipe.encoder_parts)
        initialise_as_beit(self.encoder)
        self.mask_token = nn.Parameter(trunc_normal(torch.empty(1, width)))
        self.head = nn.Linear(width, tokenizer.num_codes)
        initialise_as_beit(self.head)
        self.tokenizer = FrozenTokenizer(tokenizer)

    def forward(self, batch: Views, draw: Draw) -> Step:
        """Read the codes, draw what is dropped, and do the step."""
        return self.step(**self.prepared(batch, draw))

    @not_compiled
    def prepared(self, batch: Views, draw: Draw) -> dict[str, Any]:
        """Return the arguments of a step: images, what is hidden, codes, what is dropped."""
        assert batch.masks is not None
        recipe, (images, seen_by_tokenizer) = self.recipe, batch.views
        rate = recipe.drop_path if self.training else 0.0
        removed = batch.masks[:, 0]  # (B, N)
        return {
            "images": normalise(images, self.mean, self.std),
            "removed": removed,
            # without any the loss is 0, not 0 / 0
            "count": mean_over_processes(removed.sum().float()).clamp_min(1 / world_size()),
            "codes": self.tokenizer.codes(seen_by_tokenizer),
            "keep": draw_drop_path(batch.indices, draw, recipe.model.depth, rate, view=0),
        }

    def step(
        self, images: Tensor, removed: Tensor, count: Tensor, codes: Tensor, keep: Tensor | None
    ) -> Step:
        """Predict the codes of the hidden patches.

        Shape:
            - images: (B, 3, H, W), normalised. removed: (B, N), bool. count: scalar, how many
              that are in a process. codes: (B, N), int64. keep: (depth, 2, B).
        """
        tokens = self.encoder.encode_crop(images, keep, (removed, self.mask_token))  # (B, 1 + N, D)
        # the hidden ones first, as many places in each image as may be hidden: R
        ids = torch.argsort(removed.to(torch.uint8), dim=1, descending=True, stable=True)
        ids = ids[:, : self.recipe.num_removed]  # (B, R)
        logits = self.head(gather_tokens(tokens[:, 1:], ids))  # (B, R, K)
        loss, accuracy = code_loss(logits, codes.gather(1, ids), removed.gather(1, ids), count)
        return Step(loss, {"code_accuracy": accuracy})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Spare [cls] weight decay too, as BEiT does; the mask token and the table have theirs."""
        return param_groups_weight_decay(
            self, self.recipe.weight_decay, no_weight_decay_list=("encoder.cls_token",)
        )

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the encoder's weights, those of blocks under timm's names."""
        return self.encoder.state_dict()
