"""DINO's and iBOT's losses: a student's distribution over prototypes towards a teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asl_core.precision import at_least_float32


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: Tensor | float) -> Tensor:
    """Return softmax((logits - center) / temperature), without gradient.

    Shape:
        - logits: (..., K). center: broadcastable to it. Output: (..., K), at least float32.
    """
    return ((at_least_float32(logits.detach()) - center) / temperature).softmax(-1)


def cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of each row: (..., K), (..., K) to (...)."""
    return -(probabilities * (at_least_float32(logits) / temperature).log_softmax(-1)).sum(-1)


def cls_distillation(
    student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float
) -> Tensor:
    """Compare each view of the teacher with each other view of the student; the mean over pairs.

    Source: DINO, Eq. 3.

    Args:
        student: Logits of every view, the teacher's views first, (B, K) each.
        teacher: Probabilities of its views, (B, K) each.
        temperature: Of the student.
    """
    losses = [
        cross_entropy(s, t, temperature).mean()
        for q, t in enumerate(teacher)
        for v, s in enumerate(student)
        if v != q
    ]
    return torch.stack(losses).mean()


def patch_distillation(
    student: Tensor, teacher: Tensor, removed: Tensor, temperature: float
) -> Tensor:
    """Compare the removed patches of a view: the mean over an image's, then over images.

    An image without any counts as 0.

    Source: iBOT, Eq. 2 and its code.

    Shape:
        - student, teacher: (B, N, K), logits and probabilities. removed: (B, N), bool.
    """
    losses = cross_entropy(student, teacher, temperature) * removed  # (B, N)
    return (losses.sum(1) / removed.sum(1).clamp_min(1)).mean()
