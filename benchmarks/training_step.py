"""Training step of MAE beside the machine's own matrix-multiplication peak.

    python benchmarks/training_step.py [--model vit-b] [--batch 8] [--rounds 5]

For float32 and bfloat16 in turn: the best matmul rate of this process, then forward, backward and
optimiser step. What counts is the last column, the share of the peak that training reaches; the
rates themselves move with whatever else the machine does.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch

from asl_core.engine.devices import autocast, pick_device
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.protocol import Draw, Views
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Resources


def best_seconds(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Return the shortest of several timed calls, after one to warm up."""
    function()
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    """Return the best rate of a square product, in FLOP/s."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / best_seconds(lambda: a @ a, rounds, device)


def forward_flops(vit: Vit, mask_ratio: float) -> float:
    """Return FLOP of one image's forward pass: 2 per multiply-add."""

    def blocks(tokens: int, width: int, depth: int) -> int:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    pixels = 3 * vit.patch_size**2
    visible = 1 + int(vit.num_patches * (1 - mask_ratio))
    total = vit.num_patches * pixels * vit.embed_dim
    total += (
        blocks(visible, vit.embed_dim, vit.depth) + visible * vit.embed_dim * vit.decoder_embed_dim
    )
    total += blocks(1 + vit.num_patches, vit.decoder_embed_dim, vit.decoder_depth)
    total += vit.num_patches * vit.decoder_embed_dim * pixels
    return 2.0 * total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="vit-b", choices=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = pick_device(Resources())
    recipe = MaeRecipe(dataset="random", model=MODELS[options.model])
    flops = 3 * forward_flops(recipe.model, recipe.mask_ratio)
    print(f"device {device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")
    print("precision  matmul GFLOP/s  images/s  training GFLOP/s  share of peak")
    speeds = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        torch.manual_seed(0)
        method = MaskedAutoencoder(recipe, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(device)
        optimizer = build_optimizer(no_decay_groups(method, recipe), recipe)
        side = recipe.model.image_size
        images = torch.randint(0, 256, (options.batch, 3, side, side), dtype=torch.uint8)
        views = Views((images.to(device),), torch.arange(options.batch, device=device))

        def step() -> None:
            with autocast(device, precision):  # noqa: B023  called within this round
                loss = method(views, Draw(0, 0)).loss  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023

        peak = matmul_peak(dtype, device, options.rounds)
        speeds[precision] = options.batch / best_seconds(step, options.rounds, device)
        rate = speeds[precision] * flops
        print(
            f"{precision:9}  {peak / 1e9:14.0f}  {speeds[precision]:8.2f}  {rate / 1e9:16.0f}"
            f"  {rate / peak:13.2f}"
        )
    print(f"bf16 / fp32: {speeds['bf16'] / speeds['fp32']:.2f}")


if __name__ == "__main__":
    main()
