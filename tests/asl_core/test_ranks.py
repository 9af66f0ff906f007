"""What the environment says of a run's processes; each mistake in it is one line."""

import socket

import pytest
import torch

from asl_core import distributed
from asl_core.engine.devices import pick_device
from asl_core.errors import InputError, TrainingError
from asl_core.ranks import Ranks, meeting_point, ranks_of
from asl_core.recipes.optimisation import Resources


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 0, 1)),
        ({"RANK": "", "WORLD_SIZE": ""}, Ranks(0, 0, 1)),
        ({"RANK": "0"}, Ranks(0, 0, 1)),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Ranks(0, 0, 1)),
        ({"LOCAL_RANK": "3"}, Ranks(0, 3, 1)),  # a process alone on a GPU of its own choice
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Ranks(5, 1, 8)),
    ],
)
def test_ranks_are_read(environment: dict[str, str], expected: Ranks) -> None:
    assert ranks_of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set"),
        ({"RANK": "1"}, "RANK is 1 but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2, too few"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0, expected 1 or more"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0', expected a whole number"),
        ({"RANK": "²", "WORLD_SIZE": "4"}, "RANK is '²', expected a whole number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', expected a whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9"),
    ],
)
def test_ranks_that_do_not_go_together_are_one_line(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match="; start the processes with torchrun") as caught:
        ranks_of(environment)
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MASTER_PORT": "2000"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "here"}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "here", "MASTER_PORT": "99999"}, "MASTER_PORT is 99999, expected 1 to"),
        ({"MASTER_ADDR": "here", "MASTER_PORT": "http"}, "MASTER_PORT is 'http', expected a whole"),
    ],
)
def test_a_meeting_point_that_is_none_is_one_line(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        meeting_point(environment)


def test_processes_that_do_not_come_are_said_with_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "RENDEZVOUS_S", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in (
            ("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", str(port)),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        said = (
            f"process 0 of 2 has not met the others at 127.0.0.1:{port}: .*address already in use"
        )
        with pytest.raises(TrainingError, match=said):
            distributed.initialise_from_environment(torch.device("cpu"))
    with pytest.raises(TrainingError, match="1/2 clients joined; look whether all were started"):
        distributed.initialise_from_environment(torch.device("cpu"))


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="LOCAL_RANK is 2, but this process sees 2 GPUs; start"):
        pick_device(Resources(device="cuda"))
