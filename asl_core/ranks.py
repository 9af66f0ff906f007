"""Which of how many processes this one is, as the environment says. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from asl_core.errors import InputError

REMEDY = "start the processes with torchrun or a scheduler, or unset RANK and WORLD_SIZE"


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those of its run.

    Attributes:
        rank: Of this process; 0 keeps the records.
        local_rank: Of this process on its machine.
        world_size: Number of processes.
    """

    rank: int
    local_rank: int
    world_size: int


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """Return what RANK, LOCAL_RANK and WORLD_SIZE say; one process where they say nothing.

    Raises:
        InputError: They are no numbers, or do not go together.
    """
    rank, local_rank, world_size = (
        _number(environment, name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    )
    if world_size is not None and world_size < 1:
        raise InputError(f"WORLD_SIZE is {world_size}, expected 1 or more; {REMEDY}")
    if rank is None and (world_size or 1) > 1:
        raise InputError(f"WORLD_SIZE is {world_size} but RANK is not set; {REMEDY}")
    if rank and world_size is None:
        raise InputError(f"RANK is {rank} but WORLD_SIZE is not set; {REMEDY}")
    for name, value in (("RANK", rank or 0), ("LOCAL_RANK", local_rank or 0)):
        if value >= (world_size or 1) and (name == "RANK" or world_size is not None):
            raise InputError(f"{name} is {value} and WORLD_SIZE {world_size}, too few; {REMEDY}")
    return Ranks(rank or 0, local_rank or 0, world_size or 1)


def meeting_point(environment: Mapping[str, str]) -> str:
    """Return `address:port` at which several processes meet.

    Raises:
        InputError: MASTER_ADDR or MASTER_PORT is missing or no port.
    """
    address, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
    if not address or port is None:
        missing = "MASTER_PORT" if address else "MASTER_ADDR"
        raise InputError(
            f"several processes meet at MASTER_ADDR, but {missing} is not set; {REMEDY}"
        )
    if not 0 < port < 2**16:
        raise InputError(f"MASTER_PORT is {port}, expected 1 to 65535; {REMEDY}")
    return f"{address}:{port}"


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """Return the number in a variable; None where it is not set or empty."""
    text = environment.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(f"{name} is {text!r}, expected a whole number; {REMEDY}")
    return int(text) if text else None
