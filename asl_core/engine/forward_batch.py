"""How many images go through a network together, and what asks for how many."""

from asl_core import distributed
from asl_core.errors import InputError


def refuse_single_images(who: str, batch_size: int, micro_batch_size: int | None) -> None:
    """Refuse forward passes of one image, which has no variance, before anything is computed.

    Args:
        who: What trains, as the error names it.
        batch_size: Images per step over all processes.
        micro_batch_size: Images per forward pass; None: a process's whole part of the batch.

    Raises:
        InputError: A forward pass would see one image alone.
    """
    share = batch_size // distributed.world_size()
    micro = max(1, min(micro_batch_size or share, share))
    smallest = share % micro or micro
    if smallest == 1:
        raise InputError(
            f"{who} needs 2 images or more in each forward pass for BatchNorm, got one of 1 "
            f"(batch_size {batch_size}, processes {distributed.world_size()}, "
            f"micro_batch_size {micro_batch_size}); choose a larger or a dividing size"
        )


def refuse_torn_groups(
    who: str, batch_size: int, micro_batch_size: int | None, multiple: int
) -> None:
    """Refuse forward passes whose images do not make whole groups, as pairs that are mixed.

    Args:
        who: What trains, as the error names it.
        batch_size: Images per step over all processes.
        micro_batch_size: Images per forward pass; None: a process's whole part of the batch.
        multiple: Images of a group.

    Raises:
        InputError: A process's part of the batch, or a forward pass of it, tears a group.
    """
    share = batch_size // distributed.world_size()
    for name, count in (
        ("a process's share of batch_size", share), ("micro_batch_size", micro_batch_size),
    ):  # fmt: skip
        if count is not None and count % multiple:
            raise InputError(
                f"{who} takes images in groups of {multiple}: {name}, {count}, must be a "
                f"multiple of {multiple}"
            )
