"""A classifier of few labelled images."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Logistic regression on frozen features of few images, by MSN's protocol (logistic_eval.py).

    Each vector is centred and scaled to length 1; no intercept; an L2 penalty.
    """

    dataset: str
    percent: tuple[float, ...] = (1, 10)
    """Shares of each class in percent, at least one image of each."""
    shots: tuple[int, ...] = (1, 5)
    """Images of each class."""
    draws: int = 3
    """Subsets of each kind, over which accuracies are averaged; MSN has three."""
    l2: float = 0.0025
    """Penalty l2 / 2 |W|^2 beside the sum of the losses of all images: MSN's `lambd`, as in its
    example."""
    pooling: Literal["cls", "mean"] = "cls"
    """As for the linear probe."""
    image_size: int | None = None
    """Side of the input; absent: that of the pre-training."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the encoder. The regression is solved in float64."""
    seed: int = 0
    """Of the draws: smaller subsets of a draw are part of its larger ones."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "draws", "image_size")
        require_positive(self, "l2")
        if not (self.percent or self.shots):
            raise ValueError("percent and shots are both empty; name a number of images")
        if any(not 0 < share <= 100 for share in self.percent):
            raise ValueError(f"percent must be in (0, 100], got {[*self.percent]}")
        if any(count < 1 for count in self.shots):
            raise ValueError(f"shots must be at least 1, got {[*self.shots]}")

    @property
    def subsets(self) -> dict[str, tuple[str, float]]:
        """What is drawn, by the name that a metric has for it: 1pct, 5shot."""
        found: dict[str, tuple[str, float]] = {}
        found |= {f"{share:g}pct": ("percent", float(share)) for share in self.percent}
        return found | {f"{count}shot": ("shots", float(count)) for count in self.shots}
