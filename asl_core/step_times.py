"""How long a training step takes here, by size of the encoder: `python -m asl_core.step_times`.

Reads candidates from standard input, one JSON object a line, writes what it found to standard
output, one a line, the machine first. Noise in place of images: no step reads a file. For whoever
has to choose a size before there is a dataset; `asl-pipe rehearse` measures the real thing.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from asl_core.engine.devices import autocast, pick_device
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods import method_class
from asl_core.protocol import Draw, Views
from asl_core.recipes.catalogue import RECIPES
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources

_WARM_UP, _STEPS, _LEAST_BATCH = 2, 5, 16
_ENOUGH_S = 6.0
"""A size of which fewer steps than asked fit into this is timed by those."""


def device_facts() -> dict[str, Any]:
    """Return what torch computes on: `device`, and of a GPU its name, memory and capability."""
    device = pick_device(Resources())
    if device.type == "cpu":
        return {"device": "cpu"}
    found = torch.cuda.get_device_properties(device)
    capability = found.major + found.minor / 10
    return {"device": "cuda", "name": found.name, "bytes": found.total_memory,
            "capability": capability, "count": torch.cuda.device_count()}  # fmt: skip


def step_time(method: str, model: Vit, batch: int, precision: str) -> tuple[float, int]:
    """Return the seconds of one step, their median, and the images that went through in it.

    Args:
        method: A name of `RECIPES`, of a method that sees one crop of an image.
        model: Its encoder and decoder.
        batch: Images of a step; halved where the GPU's memory does not hold them.
        precision: As in a recipe.
    """
    device = pick_device(Resources())
    if device.type == "cpu":
        torch.set_num_threads(1)  # as stages have it
    while True:
        try:
            return _timed(method, model, batch, precision, device), batch
        except torch.cuda.OutOfMemoryError:
            if batch <= _LEAST_BATCH:
                raise
        batch //= 2
        torch.cuda.empty_cache()


def _timed(method: str, model: Vit, batch: int, precision: str, device: torch.device) -> float:
    made: Any = RECIPES[method]
    recipe = made(dataset="noise", model=model, precision=precision)
    learner: Any = method_class(method)(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    learner.to(device)
    optimizer = build_optimizer(no_decay_groups(learner, recipe), recipe)
    side = model.image_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    views = Views((images,), torch.arange(batch, device=device))
    seconds: list[float] = []
    began = time.perf_counter()
    for step in range(_WARM_UP + _STEPS):
        start = time.perf_counter()
        with autocast(device, precision):
            loss = learner(views, Draw(0, step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if time.perf_counter() - began > _ENOUGH_S:
            break
    return statistics.median(seconds[min(_WARM_UP, len(seconds) - 1) :])


def answers(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield what each candidate takes: `step_s` and `images`, or the `problem` in one line."""
    for line in lines:
        asked = json.loads(line)
        model = Vit(**asked["model"])
        try:
            taken, images = step_time(asked["method"], model, asked["batch"], asked["precision"])
        except (RuntimeError, MemoryError) as error:  # torch says so of memory and of precisions
            yield {"problem": str(error).splitlines()[0]}
            continue
        yield {"step_s": taken, "images": images}


def main() -> None:
    """Answer until standard input ends."""
    out = sys.stdout
    out.write(json.dumps(device_facts()) + "\n")
    out.flush()
    for answer in answers(iter(sys.stdin.readline, "")):
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
