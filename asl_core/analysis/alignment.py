"""How much the alignment of two branches is, and how much it does to the encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asl_core.analysis.watched import DISTANCE, GRADIENT_SHARE
from asl_core.held_out import HELD_OUT_DRAW
from asl_core.precision import full_precision
from asl_core.protocol import AligningMethod, Method, Views
from asl_core.randomness import seed_globals, seeded_globals

_TOGETHER = 16  # images, to bound memory: activations are kept, and in full precision


def measure_alignment(method: AligningMethod, views: Views) -> dict[str, float]:
    r"""Measure both branches on some images in training mode, in full precision.

    .. math::
        \frac{\sum |\hat y_{ori} - \hat y_{aug}|}{\sum |\hat y_{ori}|}, \qquad
        \frac{\lVert \nabla_\theta (L - L_{MAE}) \rVert}{\lVert \nabla_\theta L_{MAE} \rVert}

    with the values of the removed patches and the parameters of the encoder; L - L_MAE is the
    alignment with its weight. The masks are those of `HELD_OUT_DRAW`, the same at every step and
    of every method. Leaves the method, gradients included, and global random numbers of the CPU as
    they are; those of GPUs are seeded anew by each step.

    Args:
        method: Has two branches.
        views: The images, on the method's device.

    Returns:
        Both by name; no gradient where the method is trained without alignment.
    """
    count = len(views.indices)
    parameters = [p for p in method.encoder.parameters() if p.requires_grad]
    pixels, aligned = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    difference, size, aligns = 0.0, 0.0, False
    with _training(method), full_precision(views.indices.device), seeded_globals(0):
        seed_globals(0, devices=True)
        for start in range(0, count, _TOGETHER):
            part = _part(views, slice(start, start + _TOGETHER))
            with torch.no_grad():
                ori, aug = method.branch_predictions(part, HELD_OUT_DRAW)
            difference += (ori - aug).abs().sum(dtype=torch.float64).item()
            size += ori.abs().sum(dtype=torch.float64).item()
            # forward itself: a call may be compiled, and for other sizes
            step = method.forward(part, HELD_OUT_DRAW)
            loss_mae, share = step.terms["loss_mae"], len(part.indices) / count
            aligns = step.loss is not loss_mae
            if aligns:
                _add_gradients(pixels, loss_mae * share, parameters)
                # L_MAE comes in twice with opposite signs, which leaves exactly nothing of it
                _add_gradients(aligned, (step.loss - loss_mae) * share, parameters)
    found = {DISTANCE: difference / max(size, 1e-12)}
    if aligns:
        found[GRADIENT_SHARE] = _norm(aligned) / max(_norm(pixels), 1e-12)
    return found


def _part(views: Views, rows: slice) -> Views:
    return Views(tuple(view[rows] for view in views.views), views.indices[rows])


def _add_gradients(sums: list[Tensor], loss: Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Add a loss's gradients, without hooks: other processes are not waited for."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for total, gradient in zip(sums, found, strict=True):
        if gradient is not None:  # pyright: ignore[reportUnnecessaryComparison]  # allow_unused
            total += gradient


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt().item()


@contextmanager
def _training(method: Method) -> Iterator[None]:
    """Switch to training and back, each module to its own mode."""
    modes = [(module, module.training) for module in method.modules()]
    for module, _ in modes:
        module.training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
