"""A checkpoint's sums of logged terms find their processes."""

import torch
from torch import nn

from asl_core.engine.state import TrainState


def test_sums_of_more_processes_than_now_become_their_mean() -> None:
    model = nn.Linear(2, 3)
    state = TrainState(model, torch.optim.SGD(model.parameters()))
    by_rank = [{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(4.0)}]
    saved = {**state.to_dict(), "sums": by_rank, "summed_steps": 5}
    state.restore(7, saved, torch.device("cpu"))
    assert state.step == 7
    assert state.take_means() == {"loss": 0.5}
