"""The first steps of a run are written down so that a replay is told from it exactly."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from miniatures import MAE, OTHERS
from process_groups import processes
from torch.optim.optimizer import register_optimizer_step_post_hook

from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.engine.witness import (
    Difference,
    TensorMark,
    Witness,
    first_difference,
    read_witness,
    tensor_steps,
)
from asl_core.engine.witness_writer import mark_tensor
from asl_core.errors import ReplayFinished
from asl_core.pretrain import pretrain
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from pipeline.jobs.journal import effective_points, read_records

LONG = dataclasses.replace(MAE, epochs=12)  # 60 steps
TEACHER = dataclasses.replace(OTHERS["sim"], epochs=3)  # 15 steps


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def train(
    work: Path, dataset: Path, recipe: Pretraining = LONG, *, kill_in: int = 0,
    replay: bool = False, minutes: float = 60, micro: int | None = None,
) -> None:  # fmt: skip
    """Train; be killed in the n-th step of this attempt, before it is written down."""
    resources = Resources(
        device="cpu", log_every_steps=1, checkpoint_minutes=minutes, micro_batch_size=micro
    )
    count = itertools.count(1)

    def kill(*_: object) -> None:
        if next(count) == kill_in:
            raise Killed

    handle = register_optimizer_step_post_hook(kill)
    try:
        with Journal.open(work / "journal") as journal:
            context = RunContext(work / "ckpt", journal, resources, replay=replay)
            pretrain(recipe, dataset, context)
    finally:
        handle.remove()


def witness_of(work: Path, journal: str = "journal") -> Witness:
    return read_witness((each.kind, each.body) for each in read_records(work / journal))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def undisturbed(icons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("undisturbed")
    train(work, icons)
    return work


def test_the_losses_and_tensors_of_the_first_steps_are_kept(undisturbed: Path) -> None:
    witness = witness_of(undisturbed)
    logged = {s: loss for s, loss, _ in effective_points(undisturbed / "journal")["train/loss"]}
    assert len(logged) == 60
    assert witness.losses == {step: logged[step] for step in range(1, 51)}
    assert witness.tensors.keys() == {1, 10, 50}
    mark = witness.tensors[50]["encoder.cls_token"]
    assert (mark.dtype, mark.shape, len(mark.values)) == ("float32", (1, 1, 16), 4)
    (where,) = witness.circumstances
    assert (where.device, where.threads, where.processes, where.total_steps) == ("cpu", 1, 1, 60)
    assert where.device_name


def test_the_same_recipe_leaves_the_same_witness(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    train(tmp_path, icons)
    assert first_difference(witness_of(undisturbed), witness_of(tmp_path)) is None


@pytest.mark.parametrize(("minutes", "kills"), [(60, (7, 15)), (0, (5, 6, 11, 29, 1))])
def test_a_killed_run_leaves_the_witness_of_one_left_alone(
    minutes: float, kills: tuple[int, ...], undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    for step in kills:  # without checkpoints each attempt begins at step 0
        with pytest.raises(Killed):
            train(tmp_path, icons, kill_in=step, minutes=minutes)
    train(tmp_path, icons, minutes=minutes)
    whole, killed = witness_of(undisturbed), witness_of(tmp_path)
    assert first_difference(whole, killed) is None
    assert (killed.losses, killed.tensors) == (whole.losses, whole.tensors)
    starts = [each.after_step for each in killed.circumstances]
    assert starts == ([0, 4, 9, 19, 47] if minutes == 0 else [0])


def test_a_teacher_is_part_of_the_witness(icons: Path, tmp_path: Path) -> None:
    train(tmp_path / "whole", icons, TEACHER)
    with pytest.raises(Killed):
        train(tmp_path / "killed", icons, TEACHER, kill_in=4, minutes=0)
    train(tmp_path / "killed", icons, TEACHER)
    whole = witness_of(tmp_path / "whole")
    assert first_difference(whole, witness_of(tmp_path / "killed")) is None
    assert whole.tensors.keys() == {1, 10, 15}  # the last step of a short run, too
    assert any(name.startswith("teacher") for name in whole.tensors[15])


def test_a_slightly_changed_rate_is_told_by_step_tensor_and_size(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    assert LONG.lr is not None
    train(tmp_path, icons, dataclasses.replace(LONG, lr=LONG.lr * (1 + 1e-4)))
    old, new = witness_of(undisturbed), witness_of(tmp_path)
    found = first_difference(old, new)
    assert found is not None
    # the loss of the first step is from before any weight has moved
    assert old.losses[1] == new.losses[1]
    assert (found.step, found.what) == (1, "encoder.cls_token")
    # Adam's first step is as long as the rate, whatever the gradient is
    assert found.absolute == pytest.approx(LONG.lr * 1e-4, rel=0.1)
    assert str(found).startswith("step 1, encoder.cls_token, element ")
    assert "e-07 apart, relative " in str(found)


def test_a_rate_that_begins_at_zero_shows_later(icons: Path, tmp_path: Path) -> None:
    slow = dataclasses.replace(MAE, warmup_epochs=1, epochs=2, lr=1e-2)
    assert slow.lr is not None
    for name, factor in (("old", 1), ("new", 1 + 1e-4)):
        train(tmp_path / name, icons, dataclasses.replace(slow, lr=slow.lr * factor))
    found = first_difference(witness_of(tmp_path / "old"), witness_of(tmp_path / "new"))
    assert found is not None
    assert found.what == "loss"
    assert 2 < found.step < 10
    assert found.relative is not None
    assert 0 < found.relative < 1e-4


def test_a_replay_computes_the_first_steps_and_leaves_nothing_else(
    undisturbed: Path, icons: Path, tmp_path: Path
) -> None:
    (tmp_path / "ckpt").symlink_to(undisturbed / "ckpt")  # finished: a resume had nothing to do
    before = sorted((undisturbed / "ckpt").iterdir())
    with pytest.raises(ReplayFinished, match="replayed 50 steps"):
        train(tmp_path, icons, replay=True, minutes=0)
    assert sorted((undisturbed / "ckpt").iterdir()) == before
    assert first_difference(witness_of(undisturbed), witness_of(tmp_path)) is None


def test_the_replay_of_a_short_run_ends_with_it(icons: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayFinished, match="train: replayed 5 steps"):
        train(tmp_path, icons, MAE, replay=True)
    assert not (tmp_path / "ckpt").exists()
    assert witness_of(tmp_path).tensors.keys() == {1, 5}


def test_micro_batches_change_rounding_only(undisturbed: Path, icons: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, icons, micro=3)
    old, new = witness_of(tmp_path / "a"), witness_of(tmp_path / "b")
    assert first_difference(old, new) is None
    (where,) = old.circumstances
    assert where.micro_batch_size == 3
    whole = witness_of(undisturbed)
    assert list(old.losses.values()) == pytest.approx(list(whole.losses.values()), rel=1e-3)


def train_in_group(rank: int, work: Path, dataset: Path) -> None:
    with Journal.open(work / f"journal-{rank}") as journal:
        context = RunContext(work / "ckpt", journal, Resources(device="cpu", log_every_steps=1))
        pretrain(MAE, dataset, context)


@pytest.mark.distributed
def test_two_processes_write_one_witness(icons: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert processes(2, train_in_group, tmp_path / name, icons) == {0}
    a, b = (witness_of(tmp_path / name, "journal-0") for name in ("a", "b"))
    assert first_difference(a, b) is None
    assert witness_of(tmp_path / "a", "journal-1") == Witness((), {}, {})
    points = effective_points(tmp_path / "a/journal-0")["train/loss"]
    assert list(a.losses.values()) == pytest.approx([loss for _, loss, _ in points], rel=1e-7)
    train(tmp_path / "alone", icons, MAE)
    alone = witness_of(tmp_path / "alone")
    assert list(a.losses.values()) == pytest.approx(list(alone.losses.values()), rel=1e-5)
    found = first_difference(alone, a)
    assert found is None or (found.relative or 0) < 1e-5


MARK = TensorMark("0" * 16, "float32", (2, 4), 5.0, (3.0, 0.0, -4.0, 0.0))
OLD = Witness((), {1: 0.5, 2: 0.25}, {1: {"w": MARK, "b": MARK}})


def changed(**changes: object) -> TensorMark:
    return dataclasses.replace(MARK, sha256="1" * 16, **changes)


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (dataclasses.replace(OLD, losses={1: 0.5, 2: 0.375}), Difference(2, "loss", 0.25, 0.375)),
        (dataclasses.replace(OLD, losses={1: 0.5}), Difference(2, "loss", 0.25, None)),
        (dataclasses.replace(OLD, losses={1: math.nan, 2: 0.25}), "step 1, loss: 0.5 before, nan"),
        (dataclasses.replace(OLD, tensors={1: {"w": MARK}}), "step 1, b: only the old run has it"),
        (dataclasses.replace(OLD, tensors={1: {**OLD.tensors[1], "c": MARK}}),
         "step 1, c: only the new run has it"),
        (dataclasses.replace(OLD, tensors={1: {"w": MARK, "b": changed()}}),
         "step 1, b, norm: 5.0 before, 5.0 now, 0 apart, relative 0"),
        (dataclasses.replace(OLD, tensors={1: {"w": changed(values=(3.0, 0.5, -5.0, 0.0)),
                                               "b": MARK}}),
         "step 1, w, element 4 of 8: -4.0 before, -5.0 now, 1 apart, relative 0.25"),
        (dataclasses.replace(OLD, tensors={1: {"w": changed(dtype="bfloat16"), "b": MARK}}),
         "step 1, w, float32 (2, 4) is now bfloat16 (2, 4); norm: "),
        (Witness((), {}, {}), "step 1, loss: only the old run has it"),
    ],
)  # fmt: skip
def test_what_was_edited_is_found(new: Witness, found: Difference | str) -> None:
    difference = first_difference(OLD, new)
    assert difference == found if isinstance(found, Difference) else found in str(difference)


def test_a_loss_that_is_no_number_is_like_itself(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.witness(1, {1: math.nan}, {"x": mark_tensor(torch.tensor(math.inf))})
    records = [(each.kind, each.body) for each in read_records(tmp_path)]
    witness = read_witness(records)
    assert first_difference(witness, read_witness(records)) is None
    assert witness.tensors[1]["x"].values == (math.inf,)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5), torch.randn(7).bfloat16(), torch.tensor(3), torch.tensor(True),
        torch.empty(0, 3), torch.arange(6).reshape(2, 3).T,
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)  # fmt: skip
def test_marks_come_back_from_the_journal_as_they_were(
    tensor: torch.Tensor, tmp_path: Path
) -> None:
    mark = mark_tensor(tensor)
    with Journal.open(tmp_path) as journal:
        journal.witness(1, {1: 0.1}, {"x": mark})
    (read,) = [each for each in read_records(tmp_path) if each.kind == "witness"]
    assert read_witness([(read.kind, read.body)]).tensors[1]["x"] == mark
    values = tensor.reshape(-1).double()[mark.positions].tolist()
    assert mark.values == tuple(values)
    assert mark_tensor(tensor.clone()).sha256 == mark.sha256


@pytest.mark.parametrize(
    ("total", "steps"),
    [(1, {1}), (7, {1, 7}), (10, {1, 10}), (50, {1, 10, 50}), (9999, {1, 10, 50})],
)
def test_which_tensors_are_marked(total: int, steps: set[int]) -> None:
    assert tensor_steps(total) == steps
