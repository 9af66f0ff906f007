"""Several processes over gloo, for tests."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist

from asl_core import distributed
from asl_core.errors import InterruptedRun

STOPPED = 75
"""Exit code of a process whose run was interrupted."""


def processes(world_size: int, work: Callable[..., None], *args: object) -> set[int | None]:
    """Call `work(rank, *args)` in processes that form a group, and return their exit codes."""
    # bound as long as they live, so that nobody else gets it; the first of them can listen there
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port = held.getsockname()[1]

    def target(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )  # fmt: skip
        distributed.initialise_from_environment(torch.device("cpu"))
        try:
            work(rank, *args)
        except InterruptedRun:
            os._exit(STOPPED)
        if dist.is_initialized():
            dist.destroy_process_group()

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=target, args=(rank,)) for rank in range(world_size)]
    with held:
        for process in started:
            process.start()
        for process in started:
            process.join()
    return {process.exitcode for process in started}
