"""The attentive probe."""

from dataclasses import dataclass

from asl_core.recipes.optimisation import require_at_least
from asl_core.recipes.probing import Probing


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe(Probing):
    """Efficient probing, by "Attention, Please! Revisiting Attentive Probing" (arXiv 2506.10178).

    Trained like MAE's linear probe, as its authors do: LARS, 90 epochs, blr .1 at batch 4096.
    """

    batch_size: int = 4096
    queries: int = 32
    """Learnt queries, each of which pools its share of the width; its authors' number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "queries")
        self.refuse_common_norm(len(self.rates), "grid_rates")
