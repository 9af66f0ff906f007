"""Measures in its first seconds how fast each pre-training is here, and fixes their length by it.

What is chosen is written down before the first run begins: a restart finds it.
"""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable

from asl_core.errors import AslCoreError, InterruptedRun
from pipeline.bundles.apart import begin
from pipeline.bundles.length import EPOCHS, Pace, longest, trainings, with_epochs
from pipeline.bundles.manifest import RunPlan
from pipeline.bundles.one_run import Bundle, train_only
from pipeline.bundles.plain import from_plain
from pipeline.errors import AslPipeError, NotFinishedError, UserError
from pipeline.jobs.progress import ProgressReader
from pipeline.writing import write_bytes

logger = logging.getLogger(__name__)

CHOICE = "length.json"
POLL_S, KEPT_BACK = 0.05, 0.05
"""For what a stop does not show of a run's end, and for a machine that is slower later."""


def settle(
    bundle: Bundle,
    minutes: float | None,
    seconds: float,
    asked: list[int],
    say: Callable[[str], None],
) -> Bundle:
    """Return the bundle at the length that was chosen here before, or is now; else as it is.

    Args:
        bundle: As it was packed.
        minutes: From the start of the measurement to the end of the last pre-training.
        seconds: For which each pre-training is measured.
        asked: Signals that ask for a stop.
        say: Prints a line.

    Raises:
        UserError: It has no pre-training, theirs differ, or no epoch fits.
        NotFinishedError: It was stopped.
    """
    file = bundle.work.folder / CHOICE
    if file.is_file():
        chosen = json.loads(file.read_text(encoding="utf-8"))
        if minutes not in (None, chosen["minutes"]):
            raise UserError(
                f"--minutes {chosen['minutes']:g} was given first, and its length is kept; delete "
                f"{bundle.work.folder} to choose anew"
            )
        epochs = int(chosen[EPOCHS])
        say(f"{epochs} epochs each, as chosen before for {chosen['minutes']:g} minutes")
    elif minutes is None:
        return bundle
    else:
        epochs, paces = _measured(bundle, minutes, seconds, asked, say)
        chosen = {"minutes": minutes, EPOCHS: epochs, "paces": [*map(dataclasses.asdict, paces)]}
        write_bytes(file, json.dumps(chosen, indent=1).encode())
    settled = with_epochs(bundle.manifest, epochs)
    for plan in trainings(settled.runs):
        try:
            from_plain(plan.recipe, bundle.load)
        except ValueError as error:
            raise UserError(f"{plan.name} cannot be that short: {error}; give it more --minutes "
                            f"and delete {bundle.work.folder}") from error  # fmt: skip
    return dataclasses.replace(bundle, manifest=settled)


def _measured(
    bundle: Bundle, minutes: float, seconds: float, asked: list[int], say: Callable[[str], None]
) -> tuple[int, list[Pace]]:
    began, plans = time.monotonic(), trainings(bundle.manifest.runs)
    if not plans:
        raise UserError("--minutes: the bundle has no pre-training whose length could be chosen")
    packed = {plan.name: plan.recipe[EPOCHS] for plan in plans}
    if len({*packed.values()}) > 1:
        raise UserError(f"--minutes gives all rows one length, and they were packed with {packed}")
    paces: list[Pace] = []
    for plan in plans:
        paces.append(_pace(bundle, plan, seconds, asked))
        say(f"{plan.name}: {paces[-1].epoch_s:.2f} s an epoch, {paces[-1].around_s:.1f} s around")
    spent = time.monotonic() - began
    epochs = longest(paces, minutes * 60 * (1 - KEPT_BACK) - spent)
    takes = sum(pace.around_s + epochs * pace.epoch_s for pace in paces)
    say(f"{epochs} epochs each: {takes:.0f} s for {len(paces)} trainings beside {spent:.0f} s for "
        f"measuring, of {minutes * 60:.0f} s")  # fmt: skip
    return epochs, paces


def _pace(bundle: Bundle, plan: RunPlan, seconds: float, asked: list[int]) -> Pace:
    """Train for some seconds, in a folder that is thrown away.

    Raises:
        UserError: It failed.
        NotFinishedError: It was stopped.
    """
    name = f"measure-{plan.key}"
    job = bundle.work.job(name)
    shutil.rmtree(job.folder, ignore_errors=True)
    began = time.monotonic()
    child = begin(plan.name, lambda: _train(bundle, plan, name), asked)
    progress = ProgressReader(job.journal, plan.stage)
    seen: list[tuple[float, int]] = []  # seconds since the start, steps
    stopped: float | None = None
    while child.poll():
        now = time.monotonic() - began
        step = progress.read().step
        if step and (not seen or step > seen[-1][1]):
            seen.append((now, step))
        if stopped is None and len(seen) > 1 and seen[-1][0] - seen[0][0] >= seconds:
            child.stop()
            stopped = now
        time.sleep(POLL_S)
    total, shown = progress.read().total_steps, time.monotonic() - began
    shutil.rmtree(job.folder, ignore_errors=True)
    if asked:
        raise NotFinishedError("stopped while it measured")
    if child.code or len(seen) < 2 or not total:
        raise UserError(f"{plan.name} made too few steps to be measured; see above")
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    step_s = (last_s - first_s) / (last - first)
    around_s = first_s + shown - (last_s if stopped is None else stopped)
    epoch_s = step_s * total / plan.recipe[EPOCHS]
    return Pace(name=plan.name, epoch_s=epoch_s, around_s=around_s)


def _train(bundle: Bundle, plan: RunPlan, name: str) -> None:
    try:
        train_only(bundle, plan, name)
    except (InterruptedRun, KeyboardInterrupt):
        return
    except (AslPipeError, AslCoreError) as error:
        logger.error("%s: %s", plan.name, error)
