"""Codes of patches by the encoder of DALL-E's discrete variational autoencoder.

Four groups of two residual blocks, each group at half the resolution of the last and with twice its
channels; a code stands for 8 x 8 pixels, and is the argmax of the logits.

Source: OpenAI's DALL-E, `dall_e/encoder.py` and `dall_e/utils.py`. There convolutions but the last
are in float16 on a GPU; here all of them are in float32 everywhere.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.engine.devices import float32_products
from asl_core.errors import InputError
from asl_core.precision import full_precision
from asl_core.recipes.tokenized import TOKEN_PIXELS

GROUPS, BLOCKS = 4, 2
"""Groups of blocks, and blocks of a group."""
_CHUNK = 2**27
"""Values of the widest layer that are in memory at once: 512 MiB."""


class ResidualBlock(nn.Module):
    """x + branch(x) / (number of all blocks)^2; the branch has a quarter of the channels.

    Shape:
        - Input: (B, n_in, H, W). Output: (B, n_out, H, W).
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        hidden = n_out // 4
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.convolutions = nn.ModuleList(
            (
                nn.Conv2d(n_in, hidden, 3, padding=1),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.Conv2d(hidden, n_out, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch finds."""
        branch = x
        for convolution in self.convolutions:
            branch = convolution(F.relu(branch))
        return self.shortcut(x) + branch / (GROUPS * BLOCKS) ** 2


class DalleEncoder(nn.Module):
    """A tokenizer: DALL-E's encoder. Nothing of it is trained.

    Args:
        width: Channels of the first group.
        num_codes: Size of the vocabulary, K.
    """

    kind = "dalle"
    patch_pixels = TOKEN_PIXELS["dalle"]

    def __init__(self, width: int, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        widths = [width, *(width * 2**group for group in range(GROUPS))]
        self.stem = nn.Conv2d(3, width, 7, padding=3)
        self.groups = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(n_in if block == 0 else n_out, n_out) for block in range(BLOCKS)
            )
            for n_in, n_out in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], num_codes, 1)
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        """Channels of the first group."""
        return self.stem.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the codes.

        Shape:
            - images: (B, 3, S, S), in [0, 1], S a multiple of 8. Output: (B, K, S / 8, S / 8).
        """
        x = self.stem(0.8 * images + 0.1)  # DALL-E's map_pixels: away from 0 and 1
        for number, group in enumerate(self.groups):
            if number > 0:
                x = F.max_pool2d(x, 2)
            assert isinstance(group, nn.ModuleList)
            for block in group:
                x = block(x)
        return self.head(F.relu(x))

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """Return the code of each 8 x 8 pixels, row by row; of equal logits the lowest.

        Shape:
            - images: (B, 3, S, S), uint8, S a multiple of 8. Output: (B, (S / 8)^2), int64.
        """
        dtype = self.stem.weight.dtype
        chunk = max(1, _CHUNK // (self.width * images.shape[-2] * images.shape[-1]))
        with full_precision(images.device), float32_products("fp32"):
            return torch.cat(
                [self(part.to(dtype) / 255).argmax(1).flatten(1) for part in images.split(chunk)]
            )


def from_published(
    tensors: Mapping[str, object], file: Path, *, width: int, num_codes: int
) -> DalleEncoder:
    """Return the encoder with the weights of a state dict under DALL-E's names.

    Args:
        tensors: The state dict.
        file: Where it is from, for what is said of it.
        width: Channels of the first group that it must have.
        num_codes: Codes that it must have.

    Raises:
        InputError: It is not that encoder; names a tensor.
    """
    with torch.device("meta"):
        encoder = DalleEncoder(width, num_codes)
    wanted = {published_name(name): (name, w.shape) for name, w in encoder.state_dict().items()}
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    remedy = "give the state dict of DALL-E's encoder"
    if missing:
        raise InputError(f"{file}: {missing[0]} is missing; {remedy}")
    if unknown:
        raise InputError(f"{file}: {unknown[0]} is no part of it; {remedy}")
    state: dict[str, Tensor] = {}
    for published, (name, shape) in wanted.items():
        tensor = tensors[published]
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            raise InputError(f"{file}: {published} has no floating-point numbers; {remedy}")
        if tensor.shape != shape:
            raise InputError(
                f"{file}: {published} is {tuple(tensor.shape)}, expected {tuple(shape)} for width "
                f"{width} and num_codes {num_codes}; {remedy}, or set the two"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: {published} is not finite; fetch the file again")
        state[name] = tensor.float()
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False)


def published_name(name: str) -> str:
    """Return DALL-E's name of one of our parameters."""
    for pattern, form in _NAMES:
        if match := re.fullmatch(pattern, name):
            return form.format(*(_counted_from_one(match)), match["kind"][0])  # weight: w, bias: b
    raise KeyError(name)


_NAMES = (
    (r"stem\.(?P<kind>\w+)", "blocks.input.{}"),
    (r"head\.(?P<kind>\w+)", "blocks.output.conv.{}"),
    (
        r"groups\.(\d)\.(\d)\.shortcut\.(?P<kind>\w+)",
        "blocks.group_{}.block_{}.id_path.{}",
    ),
    (
        r"groups\.(\d)\.(\d)\.convolutions\.(\d)\.(?P<kind>\w+)",
        "blocks.group_{}.block_{}.res_path.conv_{}.{}",
    ),
)
"""Our names -> DALL-E's, which count from one."""


def _counted_from_one(match: re.Match[str]) -> Iterator[int]:
    return (int(part) + 1 for part in match.groups() if part.isdigit())
