"""The k nearest neighbours' vote."""

from dataclasses import dataclass
from typing import Literal

from asl_core.recipes.optimisation import require_at_least, require_positive


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """DINO's weighted vote of the nearest training images by frozen features (its eval_knn.py)."""

    dataset: str
    k: int = 20
    """How many vote. eval_knn.py tries 10, 20, 100 and 200: "20 is usually working the best"."""
    temperature: float = 0.07
    """A vote weighs exp(cosine / temperature); eval_knn.py's default."""
    pooling: Literal["cls", "mean"] = "cls"
    """As for the linear probe; eval_knn.py compares [cls] after the final norm."""
    image_size: int | None = None
    """Side of the input; absent: that of the pre-training, as in eval_knn.py (224)."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the encoder; eval_knn.py has no autocast. Its features are compared in float64."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "k", "image_size")
        require_positive(self, "temperature")
