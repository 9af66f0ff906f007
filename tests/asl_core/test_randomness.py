import random

import numpy as np
import torch

from asl_core.randomness import (
    derive_seed,
    numpy_generator,
    seeded_globals,
    torch_generator,
    uniform,
)


def splitmix_reference(seed: int, sample: int, position: int) -> float:
    """The same counter hash in Python's unbounded integers."""
    wrap = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((sample * golden + seed) & wrap)
    return (mix((key + position * golden) & wrap) >> 40) / 2**24


def test_uniform_equals_unsigned_reference() -> None:
    drawn = uniform(derive_seed(3, "mask", 5), torch.tensor([0, 7, 123456]), (2, 4))
    for i, sample in enumerate([0, 7, 123456]):
        expected = [splitmix_reference(derive_seed(3, "mask", 5), sample, p) for p in range(8)]
        assert drawn[i].flatten().tolist() == expected


def test_draw_of_a_sample_does_not_depend_on_its_batch() -> None:
    together = uniform(11, torch.tensor([4, 9, 2]), (5,))
    alone = uniform(11, torch.tensor([9]), (5,))
    assert torch.equal(together[1:2], alone)


def test_uniform_is_uniform_and_uncorrelated() -> None:
    x = uniform(1, torch.arange(2000), (50,)).double()
    assert abs(x.mean().item() - 0.5) < 0.003
    assert abs(x.var().item() - 1 / 12) < 0.002
    neighbours = torch.corrcoef(torch.stack([x[:-1].flatten(), x[1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.01
    assert x.min() >= 0
    assert x.max() < 1


def test_purposes_and_counters_give_distinct_seeds() -> None:
    seeds = {derive_seed(s, p, c) for s in range(5) for p in ("a", "b") for c in range(50)}
    assert len(seeds) == 500
    assert derive_seed(1, "a", 23) != derive_seed(1, "a", 2, 3)


def test_generators_repeat() -> None:
    assert torch.equal(
        torch.rand(3, generator=torch_generator(0, "x", 1)),
        torch.rand(3, generator=torch_generator(0, "x", 1)),
    )
    assert numpy_generator(0, "x").random() == numpy_generator(0, "x").random()


def test_seeded_globals_restores_all_three_generators() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded_globals(99):
        inside = random.random(), np.random.rand(), torch.rand(1)
    with seeded_globals(99):
        again = random.random(), np.random.rand(), torch.rand(1)
    assert inside == again
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
