"""Two probes of frozen features that take milliseconds and have nothing to choose.

They share no code with `transfer`, whose stages evaluate in earnest: an edit there would make
every pre-training stale that is watched with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of DINO's protocol, as for the stage `knn`."""
PENALTY = 0.1
"""Of the ridge, relative to the mean variance of the features."""


def vote_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
    """Return the share of queries that their nearest neighbours classify rightly, in percent.

    Source: DINO's eval_knn.py: cosine, k = 20, a vote weighs exp(cosine / 0.07). A class that
    another draws level with is no answer.

    Shape:
        - bank: (N, D). bank_labels: (N,). queries: (Q, D). labels: (Q,).
    """
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T  # (Q, N)
    nearest, places = cosines.topk(min(NEIGHBOURS, len(bank)), dim=1)
    weights = (nearest / TEMPERATURE).softmax(dim=1)
    votes = weights.new_zeros(len(queries), _classes(bank_labels, labels))
    votes.scatter_add_(1, bank_labels[places], weights)
    return _share_right(votes, labels)


def ridge_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
    """Return the share of queries that ridge regression to one-hot classes tells, in percent.

    Closed form: no learning rate, no schedule and no seed, so that no snapshot's number depends on
    whether a probe has converged. Features are standardised by the bank's mean and deviation; the
    penalty is a tenth of their variance, which keeps the solution smooth where there are about as
    many images as dimensions.

    Shape:
        - bank: (N, D). bank_labels: (N,). queries: (Q, D). labels: (Q,).
    """
    bank, queries = bank.double(), queries.double()
    mean, deviation = bank.mean(dim=0), bank.std(dim=0, correction=0).clamp_min(1e-6)
    bank, queries = (bank - mean) / deviation, (queries - mean) / deviation
    targets = F.one_hot(bank_labels, _classes(bank_labels, labels)).double()  # (N, K)
    shares = targets.mean(dim=0)
    count = len(bank)
    gram = bank.T @ bank / count + PENALTY * torch.eye(bank.shape[1]).to(bank)
    weights = torch.linalg.solve(gram, bank.T @ (targets - shares) / count)  # (D, K)
    return _share_right(queries @ weights + shares, labels)


def _classes(*labels: Tensor) -> int:
    return 1 + max(int(each.max()) for each in labels)


def _share_right(scores: Tensor, labels: Tensor) -> float:
    """Return how often the right class alone has the highest score, in percent; (Q, K), (Q,)."""
    own = scores.gather(1, labels[:, None])  # (Q, 1)
    return 100.0 * ((scores >= own).sum(dim=1) == 1).double().mean().item()
