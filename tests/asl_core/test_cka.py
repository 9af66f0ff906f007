import pytest
import torch
from torch import Tensor

from asl_core.analysis.cka import (
    cka_across_positions,
    unbiased_cka,
    unbiased_hsic,
)


def gaussian(images: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, width, generator=generator, dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(gaussian(width, width, seed=9))[0]


def test_a_rotation_a_scale_and_an_offset_leave_the_features_equal() -> None:
    x = gaussian(20, 6)
    assert unbiased_cka(x, 3 * x @ rotation(6) + 5).item() == pytest.approx(1)


def test_unbiased_hsic_equals_the_written_formula() -> None:
    x, y, count = gaussian(9, 5), gaussian(9, 7, seed=1), 9
    k, m = x @ x.T, y @ y.T
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    one = torch.ones(count, dtype=torch.float64)
    expected = (
        torch.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((count - 1) * (count - 2))
        - 2 / (count - 2) * (one @ k @ m @ one)
    ) / (count * (count - 3))
    torch.testing.assert_close(unbiased_hsic(x, y), expected)


def test_cka_of_independent_features_is_near_zero() -> None:
    values = [
        unbiased_cka(gaussian(40, 60, seed=2 * seed), gaussian(40, 60, seed=2 * seed + 1)).item()
        for seed in range(20)
    ]
    assert abs(sum(values) / 20) < 0.02


def test_positions_that_share_one_code_have_cka_one_and_independent_ones_none() -> None:
    code = gaussian(50, 8)
    shared = torch.stack([code @ rotation(8) + p for p in range(4)], dim=1)  # (M, N, D)
    pairs = torch.tensor([[0, 1], [2, 3], [1, 3]])
    assert cka_across_positions(shared, pairs).item() == pytest.approx(1)
    apart = torch.stack([gaussian(50, 8, seed=p) for p in range(4)], dim=1)
    assert abs(cka_across_positions(apart, pairs).item()) < 0.1


def test_pairs_of_positions_are_averaged() -> None:
    tokens = torch.stack([gaussian(30, 3), gaussian(30, 3), gaussian(30, 3, seed=1)], dim=1)
    both = cka_across_positions(tokens, torch.tensor([[0, 1], [0, 2]]))
    single = unbiased_cka(tokens[:, 0], tokens[:, 2])
    torch.testing.assert_close(both, (1 + single) / 2)
