"""Training step of every method beside MAE's, next to what it should cost by its multiply-adds.

    python benchmarks/methods.py [--model vit-b] [--batch 8] [--rounds 3] [--precision fp32]
                                 [--compile] [--methods cmae sim ...]

Recipes are the published ones. A step is all that training does with a batch that lies ready:
forward, backward, clipping, optimiser, the teacher's update; the batch is made once, from images of
noise, by the method's own views. `x MAE` is the time of the best round against MAE's, measured in
turn with it, `FLOPs` the same ratio of multiply-adds, a tokenizer's included, `quotient` the one
over the other: above 1 where an operation of the method is slower than MAE's average one. `views`
is the time in which one process makes the views of an image, once, for what it says of the loader.
Memory is the largest that tensors took on a GPU.
"""

import argparse
import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from timing import timed

from asl_core.analysis.cost import count_flops
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.engine.clipping import CLIPPERS
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods import method_class
from asl_core.protocol import (
    Draw,
    EditsGradients,
    FollowsSteps,
    Grouped,
    PrecedesSteps,
    RunLength,
    Scheduled,
    TakesStatistics,
)
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.catalogue import RECIPES
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.tokenizers.dalle import DalleEncoder

LENGTH = RunLength(steps_per_epoch=100, total_steps=10_000)


def recipes_of(vit: Vit, batch_size: int, precision: Any) -> dict[str, Pretraining]:
    """Return the published recipe of every method, MAE first, both designs of ASL."""
    common: dict[str, Any] = {
        "dataset": "noise", "model": vit, "batch_size": batch_size, "precision": precision,
    }  # fmt: skip
    recipes = {"mae": RECIPES["mae"](**common), "asl": AslRecipe(**common)}
    recipes["asl-dle"] = AslRecipe(**common, design="dle")
    for name in RECIPES.keys() - recipes.keys():
        recipes[name] = RECIPES[name](**common)
    return recipes


@dataclass
class Contestant:
    """A method in training on one batch."""

    recipe: Pretraining
    device: torch.device
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        plan = self.recipe.view_plan()
        wanted: dict[str, Any] = {"num_classes": 1000} if plan.labels else {}
        tokenizer = None
        if isinstance(self.recipe, TokenPretraining):
            tokenizer = DalleEncoder(width=256, num_codes=8192).requires_grad_(False)
            wanted["tokenizer"] = tokenizer
        kind: Any = method_class(self.recipe.method)
        method = kind(self.recipe, (0.5,) * 3, (0.25,) * 3, **wanted).to(self.device)
        self.method: Any = method
        if isinstance(method, Scheduled):
            method.set_run_length(LENGTH)
        if isinstance(method, Grouped):
            groups = method.parameter_groups()
        else:
            groups = no_decay_groups(self.method, self.recipe)
        self.optimizer = build_optimizer(groups, self.recipe)
        transform = pretrain_transform(plan)
        start = time.perf_counter()
        items = [transform(_noise(i)) for i in range(self.recipe.batch_size)]
        self.views_ms = 1e3 * (time.perf_counter() - start) / len(items)
        self.batch = move(collate_views(items), self.device)
        self.flops = count_flops(self.recipe, tokenizer=tokenizer).train_g

    def step(self, number: int) -> None:
        """Train by one step, as the loop does."""
        recipe, method = self.recipe, self.method
        edits, takes = isinstance(method, EditsGradients), isinstance(method, TakesStatistics)
        precedes = isinstance(method, PrecedesSteps)
        with autocast(self.device, recipe.precision):
            result = method(self.batch, Draw(0, number))
        result.loss.backward()
        if recipe.clip_grad is not None:
            parameters = [p for p in method.parameters() if p.requires_grad]
            CLIPPERS[recipe.clip_mode](parameters, recipe.clip_grad)
        if edits:
            method.edit_gradients(number)
        if precedes:
            method.before_step(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if takes:
            method.take_statistics({k: v.detach() for k, v in result.statistics.items()})
        if isinstance(method, FollowsSteps):
            method.after_step(number + 1)


def _noise(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8, generator=generator)
    return Sample(index, index, image, label=index % 1000, regions=image[:1] // 32)


def largest_gib(contestant: Contestant) -> str:
    """Return the memory that a step takes beside what lies on the GPU without it."""
    if contestant.device.type != "cuda":
        return "-"
    torch.cuda.synchronize()
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contestant.step(1)
    torch.cuda.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - resting) / 2**30:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="vit-b", choices=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--methods", nargs="+", help="these beside MAE; all by default")
    options = parser.parse_args()
    device = pick_device(Resources())
    recipes = recipes_of(MODELS[options.model], options.batch, options.precision)
    chosen = ["mae", *(name for name in options.methods or recipes if name != "mae")]
    if unknown := [name for name in chosen if name not in recipes]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(recipes)}")
    print(
        f"{options.model}, batch {options.batch}, {options.precision}, "
        f"{'compiled' if options.compile else 'eager'}, {device}, {torch.get_num_threads()} "
        f"threads, load {os.getloadavg()[0]:.2f}",
        flush=True,
    )
    contestants = {name: Contestant(recipes[name], device) for name in chosen}
    memory = {}
    for name, contestant in contestants.items():
        if options.compile:
            contestant.method.compile()
        contestant.step(0)  # warms up
        memory[name] = largest_gib(contestant)
    for number in range(2, 2 + options.rounds):
        for contestant in contestants.values():
            contestant.seconds.append(timed(lambda c=contestant, n=number: c.step(n), device))
    base = contestants["mae"]
    print("method      ms/step  x MAE  FLOPs  quotient  GFLOP/s  GiB   views ms/image")
    for name, each in contestants.items():
        seconds, flops = min(each.seconds), each.flops / base.flops
        slower = seconds / min(base.seconds)
        rate = 2 * each.flops * options.batch / seconds
        print(
            f"{name:10} {1e3 * seconds:8.1f}  {slower:5.2f}  {flops:5.2f}  {slower / flops:8.2f}"
            f"  {rate:7.0f}  {memory[name]:>4}  {each.views_ms:14.1f}"
        )


if __name__ == "__main__":
    main()
