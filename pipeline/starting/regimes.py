"""What to train on given images, machine and time: size, length, batch, rate; each with its reason.

What the ladder and the rates rest on is in docs/miniatures.md: in minutes only small encoders
learn, with few wide blocks, small patches, a shallow decoder and many small steps; a larger one is
worth its time only once it sees many more images. All of it can be changed in params.yaml.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from asl_core.recipes.models import MODELS, Vit
from pipeline.errors import UserError
from pipeline.starting.images import Handling, Look
from pipeline.starting.machine import Machine, Pace

METHODS = ("mae", "asl")
TRAINED_AND_NOT = len(METHODS) + 1

STAGE_STARTS = 2.5
"""What a stage takes beside computing, as multiples of a process's way to torch: DVC before and
after it, twice Python, the journal's way to the tracker."""
KEPT_BACK = 0.1
"""Of the time, for a machine that is slower later."""
MOST_PASSES = 1600
"""MAE's longest published schedule, in epochs; more of a small set is learned by heart."""
LEARNS_FROM = 15_000
"""Images that the demo sees, which exceeds its floor; with fewer nothing can be told."""
MOST_FOR_NEIGHBOURS = 2_000_000
"""Training images; the k-NN stage takes about as many."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size of encoder and decoder.

    Attributes:
        name: A size of `MODELS`.
        overrides: Fields of it that differ.
        wanted: Images that have to be seen, by each method, until the size is worth its time.
        tried: Images of a step by which it is timed, on a CPU and on a GPU.
        published: Whether it is trained by MAE's published rates.
    """

    name: str
    overrides: dict[str, int]
    wanted: int
    tried: tuple[int, int]
    published: bool = False

    @property
    def model(self) -> Vit:
        return replace(MODELS[self.name], **self.overrides)


LADDER = (
    Rung(name="vit-cifar-mini", overrides={}, wanted=0, tried=(32, 256)),
    Rung(
        name="vit-cifar-mini",
        overrides={"image_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6,
                   "num_heads": 3, "decoder_embed_dim": 96, "decoder_depth": 2,
                   "decoder_num_heads": 3},
        wanted=400_000, tried=(32, 256),
    ),
    Rung(
        name="vit-cifar-mini",
        overrides={"image_size": 96, "patch_size": 8, "embed_dim": 256, "depth": 8,
                   "decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 4},
        wanted=2_000_000, tried=(16, 256),
    ),
    Rung(
        name="vit-s",
        overrides={"decoder_embed_dim": 256, "decoder_depth": 4, "decoder_num_heads": 8},
        wanted=10_000_000, tried=(4, 256), published=True,
    ),
    Rung(name="vit-b", overrides={}, wanted=60_000_000, tried=(4, 256), published=True),
)  # fmt: skip
"""Each larger than the one before it."""


@dataclass(frozen=True)
class Evaluation:
    """What encoders are measured on.

    Attributes:
        dataset: Its name in params.yaml.
        look: Its images.
        classes: How many.
        holdout: Share of them to test on; None: the source has a split of its own.
    """

    dataset: str
    look: Look
    classes: int
    holdout: float | None

    @property
    def train(self) -> int:
        """Images that tell, about."""
        return trained(self.look, self.holdout)


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        rung: Size of encoder and decoder.
        epochs, batch, lr, warmup: Of both trainings; `lr` None: MAE's rule.
        train: Images of the training split, about.
        holdout: Share of the images that is held out; None: the source has a split.
        max_side: To which larger images are made smaller as they are packed; None: to none.
        on_device: Whether the images stay decoded in memory.
        workers: Loader processes.
        micro_batch: Images that go through the GPU at once, where the batch is larger.
        precision: Of MAE, of ASL; None: as their recipes have it.
        compile: Whether the network is compiled.
        seconds: Part of the work -> what it is expected to take.
        notes: What a reader should know, each a sentence.
    """

    rung: Rung
    epochs: int
    batch: int
    lr: float | None
    warmup: float
    train: int
    holdout: float | None
    max_side: int | None
    on_device: bool
    workers: int
    micro_batch: int | None
    precision: tuple[str | None, str | None]
    compile: bool
    seconds: dict[str, float]
    notes: tuple[str, ...]

    @property
    def seen(self) -> int:
        """Images that each method sees."""
        return self.epochs * self.train

    @property
    def steps(self) -> int:
        return self.epochs * (self.train // self.batch)


Pacer = Callable[[str, Vit, int, str], Pace | None]
"""Times a step: method, model, images, precision."""


def trained(look: Look, holdout: float | None) -> int:
    """Return how many images there are to train on, about where a share is held out."""
    return look.count - (look.tested or round(look.count * (holdout or 0.0)))


def holdout_of(count: int, *, measured: bool = True) -> float:
    """Return the share of images to test on: a thousand where that is no more than a fifth.

    Args:
        count: Of all images.
        measured: Whether accuracies are shares of them; pictures and token similarity want fewer.
    """
    wanted = 1000 if measured else 100
    return 0.05 if count >= 20_000 else round(min(0.2, max(0.05, wanted / count)), 2)


def max_side_of(look: Look, side: int) -> int | None:
    """Return what images are made smaller to: three times the encoder's input is enough.

    A crop of a fifth of the area of such a picture is not smaller than the input by much.
    """
    return 3 * side if look.long_side > 3 * side * 1.2 else None


def choose(
    look: Look,
    evaluation: Evaluation | None,
    machine: Machine,
    minutes: float,
    pace: Pacer,
    handling: Callable[[int | None, int], Handling],
    *,
    one_size: bool,
) -> Choice:
    """Choose the largest size that sees enough images in the time, else the smallest.

    Args:
        look: The images.
        evaluation: What encoders are measured on; None: nothing has classes.
        machine: Where it will run.
        minutes: For everything, from the first stage to the report.
        pace: Times a training step.
        handling: Times packing and loading of an image, given `max_side` and the crop's side.
        one_size: Whether all images have one size, so that they may stay in memory.

    Raises:
        UserError: Not even one pass of the smallest size fits.
    """
    found: Choice | None = None
    for rung in LADDER:
        if rung.model.image_size > 1.5 * look.short_side and rung is not LADDER[0]:
            break
        choice = _with_rung(
            rung, look, evaluation, machine, minutes, pace, handling, one_size=one_size
        )
        if choice is None or (found is not None and choice.seen < rung.wanted):
            break
        found = choice
        if choice.epochs == 0:
            break
    if found is None:
        raise UserError("the smallest encoder cannot be trained here; asl-pipe doctor looks closer")
    if found.epochs == 0:
        raise UserError(_too_short(found, minutes))
    return found


def _with_rung(
    rung: Rung,
    look: Look,
    evaluation: Evaluation | None,
    machine: Machine,
    minutes: float,
    pace: Pacer,
    handling: Callable[[int | None, int], Handling],
    *,
    one_size: bool,
) -> Choice | None:
    side = rung.model.image_size
    measured = evaluation is not None and evaluation.look is look
    holdout = None if look.is_split else holdout_of(look.count, measured=measured)
    train = trained(look, holdout)
    max_side = None if look.is_split else max_side_of(look, side)
    precision = _precision(machine)
    timed = [precision[0] or "bf16", precision[1] or "fp16"]
    paces = [
        pace(method, rung.model, rung.tried[machine.has_gpu], timed[i])
        for i, method in enumerate(METHODS)
    ]
    if any(each is None for each in paces):
        return None
    known = [each for each in paces if each is not None]
    on_device = one_size and _fits(train, look, machine) and (machine.has_gpu or side <= 64)
    workers = 0 if on_device else min(machine.cores - 1, 12 if machine.has_gpu else 4)
    cost = handling(max_side, side)
    per_image = [_per_image(each.seconds, cost.loading, workers, on_device) for each in known]
    around = _around(evaluation, look, machine, known[0], cost, own=measured)
    spare = minutes * 60 * (1 - KEPT_BACK) - sum(around.values())
    epochs = min(MOST_PASSES, math.floor(max(spare, 0.0) / sum(per_image) / train))
    batch = _batch(rung, epochs * train, train, machine)
    micro = min(each.images for each in known)
    trainings = {
        f"pre-training {method}": max(epochs, 1) * train * seconds
        for method, seconds in zip(METHODS, per_image, strict=True)
    }
    return Choice(
        rung=rung, epochs=epochs, batch=batch, lr=None if rung.published else _rate(batch),
        warmup=max(round(epochs * 0.05, 1 if epochs < 100 else 0), 0.1) if epochs else 0.0,
        train=train, holdout=holdout, max_side=max_side, on_device=on_device, workers=workers,
        micro_batch=micro if machine.has_gpu and micro < batch else None, precision=precision,
        compile=machine.has_gpu and machine.has_compiler and minutes >= 30,
        seconds={**around, **trainings},
        notes=_notes(epochs * train, epochs, minutes, machine, look),
    )  # fmt: skip


def _precision(machine: Machine) -> tuple[str | None, str | None]:
    """Return that of MAE and of ASL: float32 on CPUs; their recipes' on GPUs that have both."""
    if not machine.has_gpu:
        return "fp32", "fp32"
    return (None if machine.capability >= 8 else "fp16"), None


def _fits(train: int, look: Look, machine: Machine) -> bool:
    """Say whether decoded images take at most a quarter of the memory that they would be in."""
    memory = machine.gpu_memory if machine.has_gpu else machine.memory
    return 3 * train * look.short_side * look.long_side <= memory / 4


def _per_image(step: float, loading: float, workers: int, on_device: bool) -> float:
    """Return the seconds of one image of training, with what of its loading is waited for."""
    if on_device:
        return step * 1.1
    return max(step * 1.05, loading / workers) if workers else step + loading


def _around(
    evaluation: Evaluation | None,
    look: Look,
    machine: Machine,
    pace: Pace,
    cost: Handling,
    *,
    own: bool,
) -> dict[str, float]:
    """Return what everything but pre-training takes, by part."""
    packed = look.count + (0 if evaluation is None or own else evaluation.look.count)
    evaluations = 1 if evaluation is None else 3
    stages = 2 + TRAINED_AND_NOT * (1 + evaluations) + (1 if own or evaluation is None else 2)
    found = {
        "starting stages": stages * STAGE_STARTS * machine.start_s,
        "packing": packed * cost.packing / machine.cores,
    }
    if evaluation is not None:
        # all patches through the encoder, once for k-NN and probe: about a training step
        encoded = min(evaluation.look.count, 2 * MOST_FOR_NEIGHBOURS)
        found["evaluation"] = TRAINED_AND_NOT * encoded * (pace.seconds + cost.loading)
    return found


def _batch(rung: Rung, seen: int, train: int, machine: Machine) -> int:
    """Return a power of two: many steps, but at least what keeps the device busy."""
    if rung.published:
        wanted, least, most = seen / 20_000, 128, 4096
    elif machine.has_gpu:
        wanted, least, most = seen / 5_000, 64, 1024
    else:
        wanted, least, most = 32, 32, 32
    whole = 2 ** math.floor(math.log2(max(wanted, 1)))
    bounded = min(max(whole, least), most)
    while bounded > 4 and bounded > train // 2:
        bounded //= 2
    return bounded


def _rate(batch: int) -> float:
    """Return the rate of small encoders: 1e-3 for batches of 32, 2e-3 for large ones."""
    return round(min(1e-3 * math.sqrt(batch / 32), 2e-3), 5)


def _notes(seen: int, epochs: int, minutes: float, machine: Machine, look: Look) -> tuple[str, ...]:
    notes = []
    if 0 < seen < LEARNS_FROM:
        notes.append(
            f"each method sees {seen:,} images, which is too few to learn from; {LEARNS_FROM:,} "
            "are the least that was seen to help: give more time"
        )
    if epochs == MOST_PASSES:
        notes.append(
            f"{MOST_PASSES} passes are the most that is planned: with {look.count:,} images, "
            f"{minutes:g} minutes are more than a larger number would use well"
        )
    if machine.load > machine.cores:
        notes.append(
            f"{machine.load:.1f} processes wanted to compute while steps were timed, on "
            f"{machine.cores} cores: on an idle machine the same takes less time"
        )
    if machine.gpus > 1:
        notes.append(
            f"a stage that dvc repro runs uses one GPU of {machine.gpus}; jobs use all, see "
            "cluster.yaml"
        )
    return tuple(notes)


def _too_short(choice: Choice, minutes: float) -> str:
    needed = sum(choice.seconds.values()) / (1 - KEPT_BACK) / 60
    return (
        f"{minutes:g} minutes do not hold one pass of {' and '.join(METHODS)} over "
        f"{choice.train:,} images here, which would take about {math.ceil(needed)} minutes with "
        f"everything around it; give --minutes {math.ceil(needed)}, or --images a folder with fewer"
    )
