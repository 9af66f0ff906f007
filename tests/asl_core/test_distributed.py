"""Two processes over gloo train like one."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from asl_core import distributed
from asl_core.engine.loop import RunContext
from asl_core.engine.records import Journal, effective_points
from asl_core.pretrain import pretrain
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.classification import gather_predictions

TINY = Vit(
    image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
RECIPE = AslRecipe(
    dataset="icons", model=TINY, epochs=1, batch_size=8, lr=1e-3, warmup_epochs=0,
    precision="fp32", seed=1,
)  # fmt: skip

pytestmark = pytest.mark.distributed


def worker(rank: int, world_size: int, port: int, work: Path, dataset: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    distributed.initialise_from_environment(torch.device("cpu"), timeout_s=60)
    journal = Journal.open(work / f"journal-{rank}")
    resources = Resources(device="cpu", log_every_steps=1)
    pretrain(RECIPE, dataset, RunContext(work / "ckpt", journal, resources))
    # uneven shares: rank 0 has two samples more
    indices = torch.arange(5) if rank == 0 else torch.arange(5, 8)
    joined = gather_predictions(indices, indices % 3, torch.eye(3)[indices % 3])
    if rank == 0 and world_size == 2:
        assert joined.indices.tolist() == list(range(8))
        assert joined.accuracy() == 100.0
        (work / "gathered").write_text("yes")
    if dist.is_initialized():
        dist.destroy_process_group()


def losses(world_size: int, work: Path, dataset: Path) -> list[float]:
    work.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=worker, args=(rank, world_size, port, work, dataset))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    points = effective_points(work / "journal-0")["train/loss"]
    return [value for _, value, _ in points]


def test_two_processes_give_the_loss_curve_of_one(icons: Path, tmp_path: Path) -> None:
    one = losses(1, tmp_path / "one", icons)
    two = losses(2, tmp_path / "two", icons)
    assert len(one) == 5
    assert two == pytest.approx(one, rel=1e-5)
    assert (tmp_path / "two" / "gathered").exists()


def test_gathers_are_the_identity_without_a_group() -> None:
    assert distributed.gather_objects(3) == [3]
    x = torch.ones(2)
    assert distributed.all_reduce_sum(x) is x
    assert distributed.any_process(True, torch.device("cpu"))
