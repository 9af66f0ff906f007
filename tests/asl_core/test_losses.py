import torch

from asl_core.losses.alignment import alignment_loss, cosine_alignment_loss
from asl_core.losses.reconstruction import reconstruction_loss


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    b = torch.randn(2, 5, 7, generator=generator, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]]).bool()
    return a, b, mask


def test_reconstruction_loss_is_the_mean_over_removed_patches() -> None:
    pred, target, mask = tensors()
    by_hand = [
        sum((pred[i, j, k] - target[i, j, k]) ** 2 for k in range(7)) / 7
        for i in range(2)
        for j in range(5)
        if mask[i, j]
    ]
    torch.testing.assert_close(reconstruction_loss(pred, target, mask), sum(by_hand) / 6)


def test_visible_patches_do_not_count() -> None:
    pred, target, mask = tensors()
    changed = pred.detach().clone()
    changed[~mask] += 3
    assert reconstruction_loss(pred, target, mask) == reconstruction_loss(changed, target, mask)
    assert alignment_loss(pred, target, mask) == alignment_loss(changed, target, mask)


def test_alignment_is_twice_plain_l1_with_its_gradient() -> None:
    a, b, mask = tensors()
    loss = alignment_loss(a, b, mask)
    gradients = torch.autograd.grad(loss, (a, b))
    plain = ((a - b).abs().mean(-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(loss, 2 * plain)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, (a, b)), strict=True):
        assert torch.equal(ours, theirs)


def test_cosine_alignment_has_the_gradient_of_one_minus_cosine() -> None:
    a, b, mask = tensors(1)
    gradients = torch.autograd.grad(cosine_alignment_loss(a, b, mask), (a, b))
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    plain = ((1 - cosine) * mask).sum() / mask.sum()
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_equal_predictions_are_aligned() -> None:
    a, _, mask = tensors()
    assert alignment_loss(a, a, mask) == 0
    torch.testing.assert_close(cosine_alignment_loss(a, a, mask), torch.tensor(0.0))
