"""Loader processes that fail are one line, and nobody waits for them."""

import os
import resource
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from asl_core.data.loaders import evaluation_batches
from asl_core.errors import InputError, TrainingError

MEBIBYTE = 2**20


class Numbers:
    """Eight tensors of one mebibyte."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((MEBIBYTE // 4,), float(index))


def load(transform, num_workers: int = 1) -> list[Tensor]:
    batches = evaluation_batches(
        Numbers(), transform, torch.stack, batch_size=4, num_workers=num_workers
    )
    return [batch.clone() for batch in batches]


def same(item: Tensor) -> Tensor:
    return item


def refuse(item: Tensor) -> Tensor:
    raise InputError("picture.png is damaged; fetch it again")


def die(item: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.fixture
def little_room() -> Iterator[None]:
    """Let no file, and shared memory is files, grow beyond a mebibyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_batches_that_do_not_fit_into_shared_memory_say_what_to_do(little_room: None) -> None:
    """Raised by the system to a real loader process; torch's own way would be to wait for ever."""
    with pytest.raises(InputError, match=r"too little shared memory .*File too large") as caught:
        load(same)
    said = str(caught.value)
    assert said.isprintable()
    assert said.endswith(
        "; give the container more (docker run --shm-size=8g), or set num_workers: 0 in "
        "cluster.yaml"
    )


def test_without_loader_processes_they_need_none(little_room: None) -> None:
    assert len(load(same, num_workers=0)) == 2


def test_what_is_loaded_is_the_same_with_and_without_processes() -> None:
    for mine, theirs in zip(load(same, 2), load(same, 0), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_wrong_input_in_a_loader_process_is_its_own_line(num_workers: int) -> None:
    with pytest.raises(InputError) as caught:
        load(refuse, num_workers)
    assert str(caught.value) == "picture.png is damaged; fetch it again"


def test_a_loader_process_that_is_killed_is_said() -> None:
    with pytest.raises(TrainingError, match=r"ended from outside .*smaller num_workers"):
        load(die)


def test_an_error_of_the_program_in_a_loader_process_stays_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        load(lambda item: item / (1 // 0))


def test_an_empty_tensor_can_be_sent() -> None:
    batches = evaluation_batches(
        Numbers(), lambda item: item[:0], torch.stack, batch_size=8, num_workers=1
    )
    assert [tuple(batch.shape) for batch in batches] == [(8, 0)]
