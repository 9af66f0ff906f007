"""Training step of MAE and of both designs of ASL, beside each other and beside the machine.

    python benchmarks/step.py [--model vit-b] [--batch 8] [--rounds 4] [--compile]
                              [--precision fp32 bf16]

For float32 and bfloat16: forward, backward and optimiser step of each method, in turn in every
round, and the best rate of a matrix product in the same process. `x MAE` is the time against
MAE's, `as published` the time of the same weights computed the way the official MAE does it,
against ours: tokens put back into the order of the image, prediction head on all of them, one pass
of the decoder for each branch (not with --compile, which is ours alone). What counts are these
ratios and the share of the matmul peak that training reaches; the rates themselves move with
whatever else the machine does. A CPU without bfloat16 instructions emulates them, far slower:
leave bf16 out there.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timing import timed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asl_core.engine.devices import autocast, pick_device
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.masking import gather_tokens
from asl_core.modules.patches import pixel_target
from asl_core.protocol import Draw, Mask, Views
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Resources

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Method = MaskedAutoencoder | ArbitrarySelfSupervised


def as_published(method: Method, views: Views, draw: Draw) -> Tensor:
    """Return the method's loss, computed in the order of the official MAE, branch by branch."""
    images, mask = method.masked(views, draw)
    vit, encoder = method.recipe.model, method.encoder
    every = torch.arange(vit.num_patches, device=images.device).expand(len(images), -1)
    target = pixel_target(images, vit.patch_size, method.recipe.norm_pix, every)
    if isinstance(method, MaskedAutoencoder):
        preds = [_decode_as_published(method, encoder(images, mask.ids_keep), mask)]
    elif method.recipe.design == "aee":
        fea_ori = encoder(images, mask.ids_keep)
        features = [fea_ori, method.extra_layer(fea_ori)]
        preds = [_decode_as_published(method, x, mask) for x in features]
    else:
        preds = []
        for _ in (0, 1):
            tokens = torch.dropout(encoder.embed(images), method.recipe.dle_rate, True)
            tokens = gather_tokens(encoder.add_positions(tokens), mask.ids_keep)
            latent = encoder.norm(encoder.transform(encoder.prepend_cls(tokens)))
            preds.append(_decode_as_published(method, latent, mask))
    removed = mask.removed
    loss = torch.zeros((), device=images.device)
    for pred in preds:
        error = (pred.float() - target).square().mean(-1)  # (B, N)
        loss = loss + (error * removed).sum() / removed.sum() / len(preds)
    if len(preds) == 2:
        a, b = (pred.float() for pred in preds)
        distance = ((a - b.detach()).abs() + (a.detach() - b).abs()).mean(-1)  # (B, N)
        loss = loss + (distance * removed).sum() / removed.sum()
    return loss


def _decode_as_published(method: Method, latent: Tensor, mask: Mask) -> Tensor:
    """Return predictions of all patches, (B, N, P): mask tokens in, unshuffle, decode, all out."""
    decoder = method.decoder
    tokens = decoder.embed(latent)  # (B, 1 + V, E)
    ids_restore = torch.argsort(torch.cat([mask.ids_keep, mask.ids_removed], dim=1), dim=1)
    fill = decoder.mask_token.repeat(len(latent), mask.ids_removed.shape[1], 1).to(tokens.dtype)
    patches = gather_tokens(torch.cat([tokens[:, 1:], fill], dim=1), ids_restore)
    tokens = torch.cat([tokens[:, :1], patches], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        tokens = block(tokens)
    return decoder.head(tokens)[:, 1:]


@dataclass
class Contestant:
    """One method in training, and the times of its steps in seconds by way of computing."""

    method: Method
    optimizer: torch.optim.Optimizer
    seconds: dict[str, list[float]] = field(default_factory=dict)
    flop: float = 0.0

    def step(self, loss: Callable[[], Tensor], precision: str, device: torch.device) -> None:
        with autocast(device, precision):
            value = loss()
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def best(self, way: str) -> float:
        return min(self.seconds[way])


def check_same(field_: dict[str, Contestant], views: Views) -> None:
    """Refuse to compare two ways of computing that give different losses; DLE's draws differ."""
    for name in ("MAE", "AEE"):
        method = field_[name].method
        with torch.no_grad():
            ours = method(views, Draw(0, 0)).loss
            published = as_published(method, views, Draw(0, 0))
        if not torch.allclose(ours, published, rtol=1e-4):
            raise SystemExit(f"{name}: the loss is {ours:.6f} by ours, {published:.6f} by theirs")


def contestants(vit: Vit, device: torch.device) -> dict[str, Contestant]:
    """Build MAE, AEE and DLE."""
    mae = MaeRecipe(dataset="random", model=vit)
    recipes = {
        "MAE": mae,
        "AEE": AslRecipe(dataset="random", model=vit),
        "DLE": AslRecipe(dataset="random", model=vit, design="dle"),
    }
    built = {}
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        kind = MaskedAutoencoder if isinstance(recipe, MaeRecipe) else ArbitrarySelfSupervised
        method = kind(recipe, (0.5,) * 3, (0.25,) * 3).to(device)  # type: ignore[arg-type]
        groups = no_decay_groups(method, recipe)
        built[name] = Contestant(method, build_optimizer(groups, recipe))
    return built


def race(
    field_: dict[str, Contestant],
    views: Views,
    precision: str,
    rounds: int,
    device: torch.device,
    *,
    published: bool,
) -> float:
    """Time every way of every contestant in each round; return the matmul peak in FLOP/s."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(DTYPES[precision])
    products = [timed(lambda: a @ a, device) for _ in range(3)]
    for i in range(rounds + 1):  # the first round warms up, and counts operations
        for contestant in field_.values():
            method = contestant.method
            ways = {
                "ours": lambda m=method, i=i: m(views, Draw(0, i)).loss,
                "published": lambda m=method, i=i: as_published(m, views, Draw(0, i)),
            }
            if not published:
                del ways["published"]
            # who goes second finds warmer caches: both in turn
            for way, loss in sorted(ways.items(), reverse=bool(i % 2)):

                def step(c: Contestant = contestant, loss: Callable[[], Tensor] = loss) -> None:
                    c.step(loss, precision, device)

                if i > 0:
                    contestant.seconds.setdefault(way, []).append(timed(step, device))
                elif way == "ours" and not contestant.flop:
                    with FlopCounterMode(display=False) as counter:
                        step()
                    contestant.flop = counter.get_total_flops()
                else:
                    step()
        products.append(timed(lambda: a @ a, device))
    return 2 * side**3 / min(products)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="vit-b", choices=sorted(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--precision", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    options = parser.parse_args()
    device = pick_device(Resources())
    vit = MODELS[options.model]
    shape = (options.batch, 3, vit.image_size, vit.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    views = Views((images.to(device),), torch.arange(options.batch, device=device))
    print(
        f"{options.model}, batch {options.batch}, {'compiled' if options.compile else 'eager'}, "
        f"{device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}"
    )
    print("precision  method  s/step  images/s  x MAE  as published  GFLOP/s  share of peak")
    speeds = {}
    for precision in options.precision:
        field_ = contestants(vit, device)
        check_same(field_, views)
        if options.compile:
            for contestant in field_.values():
                # the operations are counted once without, for the counter sees no compiled code
                with FlopCounterMode(display=False) as counter, autocast(device, precision):
                    contestant.method(views, Draw(0, 0)).loss.backward()
                contestant.flop = counter.get_total_flops()
                contestant.optimizer.zero_grad()
                contestant.method.compile()
        peak = race(field_, views, precision, options.rounds, device, published=not options.compile)
        for name, contestant in field_.items():
            best = contestant.best("ours")
            rate = contestant.flop / best
            speeds[precision, name] = options.batch / best
            published = "-"
            if not options.compile:
                published = f"{contestant.best('published') / best:.3f}"
            print(
                f"{precision:9}  {name:6}  {best:6.2f}  {options.batch / best:8.2f}"
                f"  {best / field_['MAE'].best('ours'):5.3f}"
                f"  {published:>12}"
                f"  {rate / 1e9:7.0f}  {rate / peak:13.2f}",
                flush=True,
            )
        print(f"{precision:9}  matmul peak {peak / 1e9:.0f} GFLOP/s", flush=True)
    if len(options.precision) == len(DTYPES):
        print(f"bf16 / fp32, MAE: {speeds['bf16', 'MAE'] / speeds['fp32', 'MAE']:.2f}")


if __name__ == "__main__":
    main()
