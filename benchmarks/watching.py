"""Cost of watching a pre-training: the time of a step with and without it.

    python benchmarks/watching.py [DATASET] [--images 100000 500000] [--rounds 5]
                                  [--patch 4] [--width 128] [--depth 6] [--batch 256]

DATASET is a packed one with labels (without: generated pictures of 32 pixels). For each length of a
run in images seen the plan is made as the run would make it. Each round times some training steps,
loader and optimiser included, and then one point of the plan: every method in every round, so that
what else the machine does meets both. `share` is (points x seconds of a point) / (steps x seconds
of a step), of the medians; the last column the same of the best rounds. The budget is 0.02.
"""

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path
from statistics import median

import torch
from timing import timed

from asl_core.analysis.watching import WatchPlan, measure, plan_watching
from asl_core.data.prepare import prepare
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.shards import PackedDataset
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.engine.loading import training_loader
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.pretrain import build_method
from asl_core.protocol import Draw
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.datasets import Icons
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining

STEPS = 4  # of each round
SNAPSHOTS = 8


class Run:
    """One pre-training, step by step."""

    def __init__(self, recipe: Pretraining, dataset: PackedDataset, device: torch.device) -> None:
        self.recipe, self.dataset, self.device = recipe, dataset, device
        self.method = build_method(recipe, dataset)
        self.method.to(device)
        assert isinstance(self.method, torch.nn.Module)
        self.optimizer = build_optimizer(no_decay_groups(self.method, recipe), recipe)
        manifest = dataset.manifest
        transform = pretrain_transform(recipe.view_plan(), manifest.mean, manifest.std)
        endless = dataclasses.replace(recipe, epochs=10_000)
        loader = training_loader(dataset, transform, collate_views, endless, Resources())
        self.batches = loader.iterate(0)
        self.done = 0

    def step(self) -> None:
        """Do `STEPS` optimiser steps."""
        for _ in range(STEPS):
            (batch,) = next(self.batches)
            with autocast(self.device, self.recipe.precision):
                loss = self.method(move(batch, self.device), Draw(0, self.done)).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.done += 1

    def watch(self, plan: WatchPlan) -> None:
        """Measure one point."""
        measure(self.method, self.recipe, self.dataset, plan)


def recipes(options: argparse.Namespace) -> dict[str, Pretraining]:
    """Return MAE and both designs of ASL at the size asked for."""
    vit = Vit(
        image_size=32, patch_size=options.patch, embed_dim=options.width, depth=options.depth,
        num_heads=options.width // 32, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=2,
    )  # fmt: skip
    common = {
        "dataset": "any", "model": vit, "batch_size": options.batch, "warmup_epochs": 0,
        "precision": options.precision, "snapshots": SNAPSHOTS,
    }  # fmt: skip
    return {
        "MAE": MaeRecipe(**common),
        "AEE": AslRecipe(**common),
        "DLE": AslRecipe(**common, design="dle"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 500_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    device = pick_device(Resources())
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.dataset
        if folder is None:
            folder = Path(scratch)
            prepare(Icons(image_size=32, train=5000, test=10), folder, folder, name="icons")
        dataset = PackedDataset(folder, "train")
        print(
            f"{dataset.manifest.name}, {len(dataset)} images, {device}, {options.precision}, "
            f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}"
        )
        print("method  images seen  points  images a point  ms/step  ms/point  share  of the best")
        runs = {name: Run(recipe, dataset, device) for name, recipe in recipes(options).items()}
        for seen in options.images:
            compare(runs, seen, options.rounds)


def compare(runs: dict[str, Run], seen: int, rounds: int) -> None:
    """Time steps and points of every run in turn, and print a line for each."""
    plans, found = dict[str, WatchPlan](), dict[str, list[tuple[float, float]]]()
    for name, run in runs.items():
        batch = run.recipe.batch_size
        # one pass over as many images as are seen: the plan depends on the product alone
        plan = plan_watching(dataclasses.replace(run.recipe, epochs=1), seen // batch * batch)
        if plan is None:
            raise SystemExit(f"{seen} images are too few to be watched")
        plans[name], found[name] = plan, []
    for number in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            step = timed(run.step, run.device) / STEPS
            point = timed(lambda run=run, name=name: run.watch(plans[name]), run.device)
            if number:
                found[name].append((step, point))
    for name, run in runs.items():
        plan, total = plans[name], seen // run.recipe.batch_size
        step, point = (median(times) for times in zip(*found[name], strict=True))
        best_step, best_point = (min(times) for times in zip(*found[name], strict=True))
        share = len(plan.steps) * point / (total * step)
        best = len(plan.steps) * best_point / (total * best_step)
        print(
            f"{name:6}  {seen:11}  {len(plan.steps):6}  {plan.images:6} + {plan.aligned:<5}"
            f"  {1000 * step:7.0f}  {1000 * point:8.0f}  {share:5.4f}  {best:11.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
