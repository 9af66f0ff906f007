"""Exact top-k accuracy over processes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core import distributed


@dataclass(frozen=True)
class Predictions:
    """Every test sample's label and scores, once, in index order.

    Attributes:
        indices: (S,). labels: (S,). logits: (S, K), float32.
    """

    indices: Tensor
    labels: Tensor
    logits: Tensor

    def accuracy(self, k: int = 1) -> float:
        """Return the share of samples whose label is among the k best, in percent."""
        best = self.logits.topk(min(k, self.logits.shape[1]), dim=1).indices  # (S, k)
        return 100.0 * (best == self.labels[:, None]).any(dim=1).double().mean().item()

    def worst(self, count: int) -> Tensor:
        """Return the rows of the wrong predictions with the largest cross-entropy, worst first."""
        losses = F.cross_entropy(self.logits, self.labels, reduction="none")  # (S,)
        wrong = (self.logits.argmax(dim=1) != self.labels).nonzero()[:, 0]
        return wrong[losses[wrong].argsort(descending=True, stable=True)][:count]

    def confusion(self) -> Tensor:
        """Return counts by (label, prediction), (K, K) int64."""
        classes = self.logits.shape[1]
        flat = self.labels * classes + self.logits.argmax(dim=1)
        return torch.bincount(flat, minlength=classes**2).reshape(classes, classes)


def gather_predictions(indices: Tensor, labels: Tensor, logits: Tensor) -> Predictions:
    """Join the processes' shares; uneven shares are fine, nothing is counted twice."""
    shares = distributed.gather_objects((indices.cpu(), labels.cpu(), logits.float().cpu()))
    indices, labels, logits = (torch.cat(parts) for parts in zip(*shares, strict=True))
    order = torch.argsort(indices)
    return Predictions(indices[order], labels[order], logits[order])
