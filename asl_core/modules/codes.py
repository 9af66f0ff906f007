"""A tokenizer beside the method that learns from its codes."""

import torch
from torch import Tensor

from asl_core.protocol import Tokenizer


class FrozenTokenizer:
    """Holds a tokenizer: no part of its method, so neither trained nor saved with it.

    The dataset has it; what a checkpoint, or another process, would get is there already.

    Args:
        tokenizer: Gives the codes; it is moved to where images are.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Return the code of each patch, row by row: (B, 3, S, S) uint8 to (B, N) int64."""
        return self._tokenizer.to(images.device).codes(images)
