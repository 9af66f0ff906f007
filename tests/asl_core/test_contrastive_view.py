"""Eq. 5-8 against their definitions, written out in float64."""

import math

import pytest
import torch
from torch import Tensor

from asl_core.analysis.contrastive_view import (
    contrast_patches,
    contrastive_loss,
    maximum_likelihood_variance,
    pearson,
    spearman,
    squared_distances,
)

PATCHES, VALUES = 7, 5


def patches(seed: int, count: int = PATCHES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, VALUES, generator=generator, dtype=torch.float64)


def literal_eq8(pred: Tensor, target: Tensor, temperature: float) -> list[float]:
    """Eq. 8 as it is printed, value by value."""
    losses = []
    for i in range(len(pred)):
        terms = []
        for b in range(len(target)):
            distance = sum((pred[i, k] - target[b, k]).item() ** 2 for k in range(VALUES))
            terms.append(math.exp(-distance / temperature))
        losses.append(-math.log(terms[i] / sum(terms)))
    return losses


def gaussian_nll(pred: Tensor, target: Tensor, variance: float) -> Tensor:
    """Eq. 5: (..., P) broadcast against (..., P), to (...)."""
    return -torch.distributions.Normal(pred, math.sqrt(variance)).log_prob(target).sum(-1)


def test_no_variance_makes_the_targets_likelier_than_the_mean_squared_error() -> None:
    pred, target = patches(0), patches(1)
    best = maximum_likelihood_variance(pred, target)
    assert best == pytest.approx((pred - target).square().mean().item())
    least = gaussian_nll(pred, target, best).sum()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert gaussian_nll(pred, target, factor * best).sum() > least


@pytest.mark.parametrize("temperature", [0.5, 3.0, 40.0])
def test_eq8_equals_a_double_loop(temperature: float) -> None:
    pred, target = patches(0), patches(1)
    expected = torch.tensor(literal_eq8(pred, target, temperature), dtype=torch.float64)
    losses = contrast_patches(pred, target, [temperature]).losses[0]
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)


def test_eq6_with_eq7_is_eq8_less_log_n_at_twice_the_variance() -> None:
    pred, target, variance = patches(0), patches(1), 0.6
    eq8 = contrast_patches(pred, target, [2 * variance]).losses[0]
    eq7 = gaussian_nll(pred[:, None], target, variance).neg().exp().mean(1).log()
    eq6 = gaussian_nll(pred, target, variance) + eq7
    torch.testing.assert_close(eq6, eq8 - math.log(PATCHES))


def test_eq8_is_the_cross_entropy_of_a_classifier_whose_classes_are_the_patches() -> None:
    pred, target = patches(0), patches(1)
    distance = torch.cdist(pred, target).square()
    expected = torch.nn.functional.cross_entropy(
        -distance / 2.5, torch.arange(PATCHES), reduction="none"
    )
    torch.testing.assert_close(contrastive_loss(distance, torch.arange(PATCHES), 2.5), expected)


def test_a_mean_in_place_of_the_norm_is_the_temperature_divided_by_p() -> None:
    pred, target = patches(0), patches(1)
    distance = squared_distances(pred, target)
    own = torch.arange(PATCHES)
    torch.testing.assert_close(
        contrastive_loss(distance / VALUES, own, 1.5 / VALUES), contrastive_loss(distance, own, 1.5)
    )


def test_a_hot_eq8_is_log_n_and_a_cold_one_nothing_where_the_patch_is_retrieved() -> None:
    target = patches(1)
    pred = target + 0.01 * patches(0)
    pred[0] = target[3]  # nearest to another patch
    hot, cold = contrast_patches(pred, target, [1e12, 1e-3]).losses
    torch.testing.assert_close(hot, torch.full_like(hot, math.log(PATCHES)))
    torch.testing.assert_close(cold[1:], torch.zeros_like(cold[1:]))
    distance = (target[3] - target[0]).square().sum()
    assert cold[0].item() == pytest.approx(distance.item() / 1e-3)


def test_predictions_that_are_all_the_same_make_both_losses_one() -> None:
    target = patches(1)
    pred = patches(0, 1).expand(PATCHES, -1)
    mse = (pred - target).square().mean(dim=-1)
    contrast = contrast_patches(pred, target, [0.9])
    assert pearson(mse, contrast.losses[0]) == pytest.approx(1)
    assert spearman(mse, contrast.losses[0]) == pytest.approx(1)
    assert contrast.retrieved.sum() == 1  # the one that it is nearest to


def test_retrieval_counted_by_hand() -> None:
    target = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
    pred = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 3.0], [5.0, 1.0]])
    # nearest: itself, patch 0, itself, patch 1
    assert contrast_patches(pred, target, []).retrieved.tolist() == [1, 0, 1, 0]


def test_among_equal_patches_the_nearest_is_a_guess() -> None:
    blank = torch.zeros(3, 2)
    target = torch.cat([blank, torch.tensor([[5.0, 5.0]])])
    pred = torch.tensor([[0.1, 0.0], [0.0, 0.2], [5.0, 4.0], [4.0, 5.0]])
    retrieved = contrast_patches(pred, target, []).retrieved
    torch.testing.assert_close(retrieved, torch.tensor([1 / 3, 1 / 3, 0, 1], dtype=torch.float64))


@pytest.mark.parametrize("max_distances", [1, 2 * PATCHES, 3 * PATCHES + 1, 10**6])
def test_the_size_of_the_blocks_changes_nothing(max_distances: int) -> None:
    pred, target = patches(0), patches(1)
    whole = contrast_patches(pred, target, [0.5, 8.0])
    parts = contrast_patches(pred, target, [0.5, 8.0], max_distances)
    torch.testing.assert_close(parts.losses, whole.losses)
    assert torch.equal(parts.retrieved, whole.retrieved)


def test_distances_equal_their_definition() -> None:
    pred, target = patches(0, 3), patches(1, 4)
    expected = (pred[:, None] - target[None]).square().sum(dim=-1)
    torch.testing.assert_close(squared_distances(pred, target), expected)


def test_correlations_of_lines_powers_and_constants() -> None:
    x = torch.tensor([3.0, -1.0, 7.0, 2.0])
    assert pearson(x, 2 * x + 5) == pytest.approx(1)
    assert pearson(x, -x) == pytest.approx(-1)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert pearson(x, x.exp()) < 0.95
    assert math.isnan(pearson(x, torch.full((4,), 0.1)))


def test_equal_values_share_their_mean_rank() -> None:
    # ranks 0.5, 2, 0.5, 3 and 0, 1, 2, 3: deviations (-1, .5, -1, 1.5), (-1.5, -.5, .5, 1.5)
    x, y = torch.tensor([1.0, 4.0, 1.0, 6.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (1.5 - 0.25 - 0.5 + 2.25) / math.sqrt((1 + 0.25 + 1 + 2.25) * 5)
    assert spearman(x, y) == pytest.approx(expected)
