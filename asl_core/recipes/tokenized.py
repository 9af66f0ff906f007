"""What methods share that predict codes of patches, given by a frozen tokenizer.

Source: BEiT (`beit/datasets.py`, `beit/run_beit_pretraining.py`), which CAE and SplitMask follow.
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.pretraining import Pretraining

TOKEN_PIXELS = {"dalle": 8}
"""Side of what one code stands for in a tokenizer's own pixels; absent: that of a patch."""


@dataclass(frozen=True, kw_only=True)
class TokenPretraining(Pretraining):
    """A method whose targets are codes; its dataset, one of `tokenizers`, has a tokenizer."""

    tokenizer: Literal["dalle", "kmeans"] = "dalle"
    """Which kind of tokenizer the dataset must have. kmeans, over normalised patches, can be fitted
    here and is not what the published methods use."""

    @property
    def token_size(self) -> int:
        """Side of the view that the tokenizer reads, in pixels."""
        pixels = TOKEN_PIXELS.get(self.tokenizer, self.model.patch_size)
        return pixels * self.model.grid_size
