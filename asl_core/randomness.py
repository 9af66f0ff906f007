"""Random numbers as functions of (seed, purpose, counters), never of a hidden state.

Whatever is drawn depends on what it is drawn for: a step, an epoch, a sample. The number of
loader workers, a resume at any step or another split of the batch over processes therefore
changes nothing. `uniform` is a counter-based generator in plain tensor arithmetic: the same
bits on a CPU and on a GPU.
"""

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def not_compiled(function: Function) -> Function:
    """Keep torch.compile out of a function that draws.

    Seeds are hashes of the step: compiled, they would be compiled again for every step.
    """
    return torch.compiler.disable(function)  # type: ignore[return-value]


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a 63-bit seed for one purpose; distinct arguments give independent seeds."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for one purpose."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, purpose, *counters)))


def seed_globals(seed: int, *, devices: bool = False) -> None:
    """Seed the generators that library code draws from: Python's, NumPy's, torch's on the CPU.

    Args:
        seed: From `derive_seed`.
        devices: Those of the GPUs, too.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU), and restore them afterwards.

    Library code (torchvision's transforms, timm's mixup and RandAugment) draws from the global
    generators; inside this block its draws are a function of `seed`.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    seed_globals(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def uniform(seed: int, sample_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw uniform numbers in [0, 1) that depend on the seed, the sample and the position only.

    The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) over the counter
    `sample * golden + position * weyl + seed`, its upper 24 bits read as a float32.

    Args:
        seed: From `derive_seed`, with the purpose and the step in it.
        sample_ids: Identity of each sample, int64; also sets the device.
        shape: Shape of the draw for one sample.

    Shape:
        - sample_ids: (B,). Output: (B, *shape), float32.
    """
    # Two rounds, the sample first: a plain sum of counters would let (sample, position) pairs
    # collide along a line.
    key = _mix(sample_ids.to(torch.int64) * _GOLDEN + seed)  # (B,)
    position = torch.arange(math.prod(shape), device=sample_ids.device)  # (prod,)
    bits = _mix(key[:, None] + position[None, :] * _GOLDEN)  # (B, prod)
    return (((bits >> 40) & 0xFFFFFF).to(torch.float32) / 2**24).reshape(-1, *shape)


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64 (which wraps like uint64)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's int64 shift is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
