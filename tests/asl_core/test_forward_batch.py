"""How many images go through a network together: what is refused, before anything is computed."""

import pytest

from asl_core import distributed
from asl_core.engine.forward_batch import refuse_single_images, refuse_torn_groups
from asl_core.errors import InputError


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "alone"),
    [
        (2, None, 1, False), (1, None, 1, True), (2, None, 2, True), (8, 1, 1, True),
        (8, 3, 1, False), (7, 3, 1, True), (8, 16, 2, False), (4, 16, 4, True),
    ],
)  # fmt: skip
def test_no_forward_pass_has_one_image(
    batch: int, micro: int | None, processes: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    if not alone:
        refuse_single_images("the probe", batch, micro)
        return
    with pytest.raises(InputError, match=f"the probe needs 2 images .*processes {processes}"):
        refuse_single_images("the probe", batch, micro)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "torn"),
    [
        (8, None, 1, None), (8, 4, 2, None), (6, None, 2, "a process's share of batch_size, 3"),
        (8, 5, 1, "micro_batch_size, 5"),
    ],
)  # fmt: skip
def test_no_forward_pass_tears_a_pair(
    batch: int, micro: int | None, processes: int, torn: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    refuse_torn_groups("mixing", batch, micro, 1)
    if torn is None:
        refuse_torn_groups("mixing", batch, micro, 2)
        return
    with pytest.raises(InputError, match=f"mixing takes images in groups of 2: {torn}, must be"):
        refuse_torn_groups("mixing", batch, micro, 2)
