import torch

from asl_core.losses.alignment import alignment_loss, cosine_alignment_loss
from asl_core.losses.reconstruction import reconstruction_loss


def predictions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    b = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    return a, b


def test_reconstruction_loss_is_the_mean_of_the_mean_square_of_each_patch() -> None:
    pred, target = predictions()
    by_hand = [
        sum((pred[i, j, k] - target[i, j, k]) ** 2 for k in range(7)) / 7
        for i in range(2)
        for j in range(5)
    ]
    torch.testing.assert_close(reconstruction_loss(pred, target), sum(by_hand) / 10)


def test_alignment_is_twice_plain_l1_with_its_gradient() -> None:
    a, b = predictions()
    loss = alignment_loss(a, b)
    gradients = torch.autograd.grad(loss, (a, b))
    plain = (a - b).abs().mean()
    torch.testing.assert_close(loss, 2 * plain)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, (a, b)), strict=True):
        assert torch.equal(ours, theirs)


def test_alignment_by_sum_is_the_number_of_values_times_the_mean() -> None:
    a, b = predictions()
    torch.testing.assert_close(alignment_loss(a, b, "sum"), 7 * alignment_loss(a, b))


def test_cosine_alignment_has_the_gradient_of_one_minus_cosine() -> None:
    a, b = predictions(1)
    loss = cosine_alignment_loss(a, b)
    gradients = torch.autograd.grad(loss, (a, b))
    plain = (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
    torch.testing.assert_close(loss, 2 * plain)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_equal_predictions_are_aligned() -> None:
    a, _ = predictions()
    assert alignment_loss(a, a) == 0
    torch.testing.assert_close(cosine_alignment_loss(a, a), torch.tensor(0.0))


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    a, b = (x.detach().bfloat16() for x in predictions())
    for loss in (reconstruction_loss, alignment_loss, cosine_alignment_loss):
        assert loss(a, b).dtype == torch.float32
        torch.testing.assert_close(loss(a, b), loss(a.float(), b.float()))
