"""A small dataset on the device beside the loader: crops, and the whole loop beside a bare step.

    python benchmarks/device_path.py [--images 1024] [--batch 64] [--steps 8] [--rounds 2]
                                     [--embed-dim 192] [--depth 12] [--heads 3]
                                     [--precision fp32] [--compile] [--graphs] [--workers 0]

Packs generated images of 32 pixels and trains MAE on them, patches of 4, a decoder of two blocks
half as wide. Three things in turn in every round: batches alone, from the device and from the
loader; the bare step, of one batch that stays where it is, through forward, backward and optimiser;
the whole loop of a run, from step to step, both ways. What counts are the ratios: the loop's share
of the bare step's rate, and the device's images/s against the loader's. On a CPU the clock is the
time that this process computed, so that neighbours do not count: leave --workers at 0 there. The
goal on a GPU, .95 of the bare step and 60,000 images/s on one H200, is for
`--images 50000 --batch 1024 --steps 200 --precision bf16 --compile --graphs` with the sizes above.
"""

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from loader import pack
from PIL import Image

from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.engine.compiling import compile_network
from asl_core.engine.context import RunContext
from asl_core.engine.device_loading import device_loader
from asl_core.engine.devices import autocast, pick_device
from asl_core.engine.journal import Journal
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import StepLoader, fit
from asl_core.engine.memory import keep_freed_memory
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.protocol import Draw, Views
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WARM_UP = 4
"""Steps before the clock starts: compilation, the first pages of memory."""


def picture(number: int) -> bytes:
    """Return a PNG of 32 pixels."""
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, format="PNG")
    return file.getvalue()


class Stopwatch:
    """Takes the time of a moment at which the device has done all it was asked for.

    On a CPU, the time that this process has computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, list[float]()

    def __call__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())
        else:
            self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[-2]


class Race:
    """Everything that is timed, on one dataset and with one recipe."""

    def __init__(
        self, dataset: PackedDataset, recipe: MaeRecipe, resources: Resources, steps: int
    ) -> None:
        self.dataset, self.recipe, self.resources, self.steps = dataset, recipe, resources, steps
        self.device = pick_device(resources)
        self.watch = Stopwatch(self.device)
        plan = recipe.view_plan()
        self.loaders: dict[str, StepLoader[Views]] = {
            "device": device_loader(dataset, plan, recipe, resources),
            "loader": training_loader(
                dataset, pretrain_transform(plan), collate_views, recipe, resources
            ),
        }

    def rate(self) -> float:
        """Return images/s between the last two moments."""
        return self.steps * self.recipe.batch_size / self.watch.seconds

    def batches(self, way: str) -> float:
        """Return the rate of making batches alone."""
        made = self.loaders[way].iterate(0)
        for step, _ in enumerate(made, start=1):
            if step in (WARM_UP, WARM_UP + self.steps):
                self.watch()
            if step == WARM_UP + self.steps:
                break
        return self.rate()

    def method(self) -> MaskedAutoencoder:
        torch.manual_seed(0)
        return MaskedAutoencoder(self.recipe, MEAN, STD)

    def bare(self) -> float:
        """Return the rate of the step on one batch."""
        keep_freed_memory()
        method, recipe = self.method().to(self.device), self.recipe
        optimizer = build_optimizer(no_decay_groups(method, recipe), recipe)
        compile_network(method, self.resources, self.device, recipe.batch_size)
        (batch,) = next(self.loaders["device"].iterate(0))
        for step in range(WARM_UP + self.steps):
            if step == WARM_UP:
                self.watch()
            with autocast(self.device, recipe.precision):
                loss = method(batch, Draw(0, step)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        self.watch()
        return self.rate()

    def loop(self, way: str) -> float:
        """Return the rate of a run between two of its steps."""
        at_steps = {WARM_UP: self.watch, WARM_UP + self.steps: self.watch}
        with tempfile.TemporaryDirectory() as work, Journal.open(Path(work) / "journal") as journal:
            context = RunContext(Path(work) / "checkpoints", journal, self.resources)
            fit(self.method(), self.loaders[way], self.recipe, context, at_steps=at_steps)
        return self.rate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in {
        "images": 1024, "batch": 64, "steps": 8, "rounds": 2, "embed-dim": 192, "depth": 12,
        "heads": 3, "workers": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs of the compiled code")
    options = parser.parse_args()
    torch.set_num_threads(1)
    width = options.embed_dim
    vit = Vit(
        image_size=32, patch_size=4, embed_dim=width, depth=options.depth, num_heads=options.heads,
        decoder_embed_dim=width // 2, decoder_depth=2, decoder_num_heads=options.heads,
    )  # fmt: skip
    per_epoch = options.images // options.batch
    recipe = MaeRecipe(
        dataset="generated", model=vit, batch_size=options.batch, warmup_epochs=0,
        epochs=-(-(WARM_UP + options.steps + 1) // per_epoch), precision=options.precision,
    )  # fmt: skip
    resources = Resources(
        num_workers=options.workers, compile=options.compile, cuda_graphs=options.graphs,
        log_every_steps=50, checkpoint_minutes=60,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        dataset = pack([picture(number) for number in range(options.images)], Path(folder))
        race = Race(dataset, recipe, resources, options.steps)
        kind = "compiled" if options.compile else "eager"
        print(
            f"{race.device}, MAE {width} x {options.depth}, batch {options.batch}, "
            f"{recipe.precision}, {kind}, load {os.getloadavg()[0]:.2f}; best of {options.rounds}"
        )
        contests = {
            "batches, device": lambda: race.batches("device"),
            "batches, loader": lambda: race.batches("loader"),
            "bare step": race.bare,
            "loop, device": lambda: race.loop("device"),
            "loop, loader": lambda: race.loop("loader"),
        }
        best = dict.fromkeys(contests, 0.0)
        for _ in range(options.rounds):
            for name, contest in contests.items():
                best[name] = max(best[name], contest())
    for name, rate in best.items():
        print(f"{name:16}  {rate:10.0f} images/s  {rate / best['bare step']:7.3f} of the bare step")
    for what in ("batches", "loop"):
        print(f"{what}: device / loader {best[f'{what}, device'] / best[f'{what}, loader']:.2f}")


if __name__ == "__main__":
    main()
