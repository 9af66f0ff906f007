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

    grid_k: tuple[int, ...] = ()
    """Numbers of voters tried, eval_knn.py's for instance, with each of `grid_poolings`. Which
    count is decided on training images held out, on which the others vote, of equal ones the
    first; on test images all training images vote. Absent: `k` and `pooling` count."""
    grid_poolings: tuple[Literal["cls", "mean"], ...] = ("cls", "mean")
    """Beside `grid_k`: what is compared."""
    held_out: float = 0.1
    """Beside `grid_k`: share of each class of the training images; the draw depends on seed and
    image alone, and is that of the linear probe."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "k", "image_size")
        require_positive(self, "temperature")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")
        if not self.grid_poolings or len({*self.grid_poolings}) < len(self.grid_poolings):
            raise ValueError(
                f"grid_poolings needs at least one value, none twice, got {[*self.grid_poolings]}"
            )
        if self.grid_k and (min(self.grid_k) < 1 or [*self.grid_k] != sorted({*self.grid_k})):
            raise ValueError(f"grid_k must be at least 1 and grow, got {[*self.grid_k]}")
        if self.grid_k and self.pooling != "cls":
            raise ValueError("pooling has no effect beside grid_k; use grid_poolings")

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of voters."""
        return self.grid_k or (self.k,)

    @property
    def poolings(self) -> tuple[str, ...]:
        """What is compared."""
        return self.grid_poolings if self.grid_k else (self.pooling,)
