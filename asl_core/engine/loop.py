"""The training loop: pre-training and every transfer task run through `fit`."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from tqdm import tqdm

from asl_core import distributed
from asl_core.engine.checkpoint import CheckpointFolder
from asl_core.engine.clipping import CLIPPERS
from asl_core.engine.compiling import compile_network
from asl_core.engine.context import RunContext
from asl_core.engine.data_parallel import distribute
from asl_core.engine.devices import autocast, float32_products, move, pick_device, require_precision
from asl_core.engine.loss_scaling import LossScaler
from asl_core.engine.loss_watch import LossWatch
from asl_core.engine.memory import keep_freed_memory
from asl_core.engine.optimizer import build_optimizer, build_schedules, no_decay_groups
from asl_core.engine.recomputing import recompute_activations
from asl_core.engine.rehearsal import Stopwatch
from asl_core.engine.signals import StopRequest, catch_stop_signals
from asl_core.engine.state import TrainState
from asl_core.engine.witness_writer import WitnessWriter, present_circumstances
from asl_core.errors import InterruptedRun, ReplayFinished, TrainingError
from asl_core.protocol import (
    Draw,
    EditsGradients,
    FollowsSteps,
    Indexed,
    PrecedesSteps,
    Step,
    TakesStatistics,
    Trainable,
)
from asl_core.randomness import derive_seed, seed_globals
from asl_core.recipes.optimisation import Optimisation
from asl_core.wording import counted

logger = logging.getLogger(__name__)


Batch = TypeVar("Batch", bound=Indexed)


class StepLoader(Protocol[Batch]):
    """Gives the micro-batches of every optimiser step from any step on."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    def iterate(self, start_step: int) -> Iterator[list[Batch]]: ...


def fit(
    model: Trainable[Batch],
    loader: StepLoader[Batch],
    recipe: Optimisation,
    context: RunContext,
    *,
    param_groups: list[dict[str, Any]] | None = None,
    at_steps: Mapping[int, Callable[[], None]] | None = None,
    initialise: Callable[[], None] | None = None,
) -> None:
    """Train a model in place, resuming from the newest checkpoint if there is one.

    Order: (1) place the model, (2) build optimiser and schedule, (3) restore, (4) step to the end.
    A checkpoint follows the last step, so that what comes after training can be interrupted too.

    Args:
        model: An nn.Module that makes a `Step` of each of the loader's batches.
        loader: Micro-batches of each step.
        recipe: Rates, precision, clipping, seed.
        context: Checkpoints, journal, resources.
        param_groups: Groups for the optimiser; by default weight decay on all but 1-D tensors.
        at_steps: What the first process calls after the step of that number, before any
            checkpoint of it, 0 being before the first step; must leave model and random numbers
            as they are.
        initialise: Gives the model other weights than it was built with, in place; called in every
            process unless there is a checkpoint to resume from.

    A replay does the first steps only, and nothing of what is due between them.

    Raises:
        TrainingError: The loss is not finite; names the step, its samples and the newest
            checkpoint, which is from before. Or the memory is not enough.
        InputError: No checkpoint is whole, or another process does not find the chosen one; or
            this device has no such precision.
        InterruptedRun: A signal asked one of the processes for a stop; all have finished the
            step and a checkpoint was written.
        ReplayFinished: Of a replay, after the last step that the journal has a witness of.
        OSError: A checkpoint could not be written; the one before is still valid.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is no nn.Module")
    device = pick_device(context.resources)
    require_precision(recipe.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device)
    optimizer = build_optimizer(param_groups or no_decay_groups(model, recipe), recipe)
    schedules = build_schedules(optimizer, recipe, loader.steps_per_epoch, loader.total_steps)
    state = TrainState(model, optimizer, scaler=LossScaler(recipe.precision, device))
    checkpoints = CheckpointFolder(context.checkpoints)
    saved = None if context.replay else checkpoints.load_newest()
    if saved is not None:
        state.restore(*saved, device)
        logger.info("%s: resumed after step %d", context.label, state.step)
    elif initialise is not None:
        initialise()
    # points that an earlier attempt logged after this step are void
    context.journal.resume(state.step, loader.total_steps)
    if context.resources.recompute_activations:
        recompute_activations(model)
    compile_network(model, context.resources, device, recipe.batch_size)
    witness = WitnessWriter(context, loader.total_steps)
    witness.begin(
        present_circumstances(context, device, recipe.precision, state.step, loader.total_steps)
    )
    network = distribute(model, device)
    run = _Run(network, schedules, recipe, context, device, at_steps or {}, witness)
    model.train()
    with catch_stop_signals() as stop:
        run.until_done(state, loader, checkpoints, stop)
    with torch.no_grad():
        # running statistics are each process's own, but only the first one's are kept
        distributed.copy_from_first(model.buffers())


class _Run:
    """One call of `fit`: the steps, and what is due between them."""

    def __init__(
        self,
        network: nn.Module,
        schedules: list[Scheduler],
        recipe: Optimisation,
        context: RunContext,
        device: torch.device,
        at_steps: Mapping[int, Callable[[], None]],
        witness: WitnessWriter,
    ) -> None:
        self.network, self.schedules, self.recipe = network, schedules, recipe
        self.context, self.device, self.at_steps = context, device, at_steps
        self.witness = witness
        self.watch = LossWatch(device)
        self.last_checkpoint = self.last_log = time.monotonic()
        self.last_logged_step = 0

    def until_done(
        self,
        state: TrainState,
        loader: StepLoader[Batch],
        checkpoints: CheckpointFolder,
        stop: StopRequest,
    ) -> None:
        """Step to the end; log, checkpoint and stop where due."""
        total, every = loader.total_steps, self.context.resources.log_every_steps
        if state.step == 0 and not self.context.replay:
            self.call_at(0)
        self.last_log, self.last_logged_step = time.monotonic(), state.step
        bar = tqdm(
            total=total,
            initial=state.step,
            desc=self.context.label,
            unit="step",
            disable=distributed.rank() > 0 or not sys.stderr.isatty(),
        )
        stopwatch = None
        batches = loader.iterate(state.step)
        if self.context.rehearsal is not None:
            stopwatch = Stopwatch(self.context.rehearsal, self.device)
            batches = stopwatch.steps(batches)
        with bar:
            for micro_batches in batches:
                self.step_within_memory(state, micro_batches)
                bar.update()
                self.witness.write_if_due(state.step, state.model)
                logs = state.step % every == 0 or state.step == total
                if logs:
                    self.check_finite(checkpoints)
                    state.scaler.check(self.context.label)
                    bar.set_postfix(self.log(state, total))
                if self.context.replay:
                    self.end_replay_if_due(state, stop)
                    continue
                self.call_at(state.step)
                self.checkpoint_if_due(state, total, checkpoints, stop)
        if stopwatch is not None:
            self.end_rehearsal(state, checkpoints, stopwatch)
            if state.step < total:
                self.call_at(total)  # what follows training reads what this leaves

    def end_rehearsal(
        self, state: TrainState, checkpoints: CheckpointFolder, stopwatch: Stopwatch
    ) -> None:
        """Write a checkpoint and what the steps took."""
        began = time.monotonic()
        saved = state.to_dict()
        if distributed.rank() == 0:
            path = checkpoints.save(state.step, saved)
            stopwatch.finish(
                images=self.recipe.batch_size,
                processes=distributed.world_size(),
                checkpoint=path,
                checkpoint_s=time.monotonic() - began,
            )
        distributed.barrier()

    def call_at(self, step: int) -> None:
        """Let the first process do what is due after so many steps; the others go on."""
        if step in self.at_steps and distributed.rank() == 0:
            self.at_steps[step]()

    def step_within_memory(self, state: TrainState, micro_batches: Sequence[Indexed]) -> None:
        """Do one optimiser step, or say what would make it fit.

        Raises:
            TrainingError: The memory of the device or of the machine is not enough.
        """
        try:
            self.step(state, micro_batches)
        except (torch.OutOfMemoryError, MemoryError) as error:
            count = len(micro_batches[0].indices)
            raise TrainingError(
                f"{self.context.label}: out of memory at step {state.step + 1} with "
                f"{counted(count, 'image')} at once; set a smaller micro_batch_size in "
                "cluster.yaml or take more processes, and run the same command to go on from the "
                "newest checkpoint"
            ) from error

    def step(self, state: TrainState, micro_batches: Sequence[Indexed]) -> None:
        """Do one optimiser step; random draws and rates are functions of its number."""
        step = state.step
        # what library code draws in this step (dropout, drop path, mixup) is a function of it
        seed = derive_seed(self.recipe.seed, "step", step, distributed.rank())
        seed_globals(seed, devices=True)
        for schedule in self.schedules:
            schedule.step_update(step)
        draw = Draw(self.recipe.seed, step)
        sizes = [len(batch.indices) for batch in micro_batches]
        terms: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        for i, batch in enumerate(micro_batches):
            share = sizes[i] / sum(sizes)
            last = i == len(micro_batches) - 1
            with self.without_sync(not last), float32_products(self.recipe.precision):
                with autocast(self.device, self.recipe.precision):
                    result: Step = self.network(move(batch, self.device), draw)
                state.scaler.scale(result.loss * share).backward()
            for name, value in {"loss": result.loss, **result.terms}.items():
                terms[name] = terms.get(name, 0) + value.detach() * share
            for name, value in result.statistics.items():
                statistics[name] = statistics.get(name, 0) + value.detach() * share
        state.scaler.unscale(state.optimizer)
        if self.recipe.clip_grad is not None:
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            clip = CLIPPERS[self.recipe.clip_mode]
            terms["grad_norm"] = state.scaler.norm(clip(parameters, self.recipe.clip_grad))
        if isinstance(state.model, EditsGradients):
            state.model.edit_gradients(step)
        if isinstance(state.model, PrecedesSteps):
            state.model.before_step(step)
        state.scaler.step(state.optimizer)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.add_terms(terms)
        self.witness.note(state.step, terms["loss"])
        self.watch.note(state.step, terms["loss"], [batch.indices for batch in micro_batches])
        if isinstance(state.model, TakesStatistics):
            means = {k: distributed.mean_over_processes(v) for k, v in statistics.items()}
            state.model.take_statistics(means)
        if isinstance(state.model, FollowsSteps):
            state.model.after_step(state.step)

    def without_sync(self, wanted: bool) -> contextlib.AbstractContextManager[object]:
        """Leave gradients unreduced for all but the last micro-batch."""
        if wanted and isinstance(self.network, nn.parallel.DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def log(self, state: TrainState, total: int) -> dict[str, str]:
        """Write the means since the last line to the journal."""
        means = state.take_means()
        if distributed.world_size() > 1:
            stacked = distributed.all_reduce_sum(torch.stack([*means.values()]).float())
            means = dict(zip(means, stacked / distributed.world_size(), strict=True))
        stage = self.context.stage
        values = {f"{stage}/{name}": float(value) for name, value in means.items()}
        values |= {f"{stage}/{name}": value for name, value in state.scaler.to_log().items()}
        now = time.monotonic()
        rate = (state.step - self.last_logged_step) / max(now - self.last_log, 1e-9)
        rates = [group["lr"] / group.get("lr_scale", 1.0) for group in state.optimizer.param_groups]
        values[f"{stage}/lr"] = max(rates)
        values[f"{stage}/images_per_s"] = rate * self.recipe.batch_size
        previous_step = self.last_logged_step
        self.last_log, self.last_logged_step = now, state.step
        if distributed.rank() == 0:
            self.context.journal.metrics(state.step, values)
            if not sys.stderr.isatty() and _crosses_milestone(previous_step, state.step, total):
                logger.info(
                    "%s: step %d of %d, loss %.4f, %.0f images/s, %.0f s left",
                    self.context.label, state.step, total, values[f"{stage}/loss"],
                    values[f"{stage}/images_per_s"], (total - state.step) / rate,
                )  # fmt: skip
        return {"loss": f"{values[f'{stage}/loss']:.4f}"}

    def check_finite(self, checkpoints: CheckpointFolder) -> None:
        """Stop when a loss since the last check was not finite.

        Raises:
            TrainingError: It was, in this process or another.
        """
        bad = self.watch.first_bad()
        if not distributed.any_process(bad is not None):
            return
        remedy = _remedy(checkpoints)
        if bad is None:
            raise TrainingError(f"the loss of another process is not finite; {remedy}")
        step, samples = bad
        raise TrainingError(
            f"the loss is not finite at step {step}, samples {_shorten(samples)} of the training "
            f"split; {remedy}"
        )

    def check_weights(self, state: TrainState, checkpoints: CheckpointFolder) -> None:
        """Stop when weights are not finite: a gradient may be spoilt where no loss is.

        Raises:
            TrainingError: They are not, in this process or another.
        """
        finite = [parameter.isfinite().all() for parameter in state.model.parameters()]
        if distributed.any_process(not bool(torch.stack(finite).all())):
            raise TrainingError(
                f"the weights are not finite after step {state.step}, though every loss was: "
                f"{_remedy(checkpoints)}"
            )

    def end_replay_if_due(self, state: TrainState, stop: StopRequest) -> None:
        """End a replay at its last step, or when a signal asks for a stop.

        Raises:
            ReplayFinished: It has done what it was to do.
            InterruptedRun: It was stopped before.
        """
        if state.step == self.witness.last_step:
            raise ReplayFinished(f"{self.context.label}: replayed {counted(state.step, 'step')}")
        (signal_number,) = distributed.largest(stop.number)
        if signal_number:
            stop.share(signal_number)
            raise InterruptedRun(
                f"{self.context.label}: replay stopped by {stop.signal_name} after step "
                f"{state.step}; run the same command to begin it again"
            )

    def checkpoint_if_due(
        self, state: TrainState, total: int, checkpoints: CheckpointFolder, stop: StopRequest
    ) -> None:
        """Write a checkpoint at the end, when it is time or when a signal asks for a stop."""
        elapsed = time.monotonic() - self.last_checkpoint
        due = elapsed > self.context.resources.checkpoint_minutes * 60
        signal_number, due = distributed.largest(stop.number, due)
        if not (signal_number or due or state.step == total):
            return
        # weights that a bad step has spoilt must not be kept
        self.check_finite(checkpoints)
        self.check_weights(state, checkpoints)
        self.witness.write_losses(state.step)
        saved = state.to_dict()
        if distributed.rank() == 0:
            self.context.before_checkpoint()
            self.context.journal.sync()
            checkpoints.save(state.step, saved)
        distributed.barrier()
        self.last_checkpoint = time.monotonic()
        if signal_number:
            stop.share(signal_number)
            raise InterruptedRun(
                f"{self.context.label}: stopped by {stop.signal_name} after step {state.step}; the "
                "checkpoint is written, run the same command to go on"
            )


def _remedy(checkpoints: CheckpointFolder) -> str:
    """Return what is left of a run whose numbers are not finite, and what to try."""
    newest = checkpoints.newest()
    left = (
        f"the newest checkpoint, {newest}, is from before"
        if newest
        else "no checkpoint was written yet"
    )
    return f"{left}; look at these samples, lower the learning rate or use precision fp32"


def _shorten(samples: list[int], most: int = 16) -> str:
    """Return the numbers of the samples, the first ones where there are many."""
    text = ", ".join(map(str, samples[:most]))
    return text if len(samples) <= most else f"{text}, ... ({len(samples)} in all)"


def _crosses_milestone(before: int, after: int, total: int, lines: int = 10) -> bool:
    """Return whether a plain log shows this step: about ten lines a run."""
    return before * lines // total != after * lines // total
