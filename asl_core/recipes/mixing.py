"""Images and labels mixed in pairs, as fine-tuning and supervised pre-training do it."""

from typing import Protocol

from asl_core.recipes.optimisation import require_at_least, require_rates


class Mixing(Protocol):
    """What a recipe says of it."""

    @property
    def batch_size(self) -> int: ...
    @property
    def mixup(self) -> float: ...
    @property
    def cutmix(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def random_erasing(self) -> float: ...


def mixes(recipe: Mixing) -> bool:
    """Say whether images are mixed in pairs."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def require_mixing(recipe: Mixing) -> None:
    """Raise a ValueError that names a field whose value cannot be meant."""
    require_at_least(recipe, 0, "mixup", "cutmix")
    require_rates(recipe, "label_smoothing")
    if not 0 <= recipe.random_erasing <= 1:
        raise ValueError(f"random_erasing must be in [0, 1], got {recipe.random_erasing}")
    if mixes(recipe) and recipe.batch_size % 2:
        raise ValueError(
            f"batch_size must be even with mixup or cutmix (they mix pairs), "
            f"got {recipe.batch_size}"
        )
