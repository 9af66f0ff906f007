"""What BatchNorm asks of a batch."""

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
