"""Multiply-adds of MAE and both designs of ASL, by torch's counter, for ViT-S to ViT-H.

    python benchmarks/flops.py [--models vit-s vit-b vit-l vit-h] [--mask-ratio 0.75]

Forward: one image through all branches and passes of a training step. Training: with the backward
pass. Our prediction head runs on the tokens that a loss reads; `reference` is the forward ratio of
the same method as the official MAE code would compute it, with the head on all tokens, [cls]
included, of every decoder pass (closed form). The paper's Table 1 says ~1.5x for AEE, Table 7 ~2x
for DLE.
"""

import argparse
from collections.abc import Sequence

from asl_core.analysis.cost import count_flops
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS, Vit

Recipe = MaeRecipe | AslRecipe
DECODER_PASSES = {"MAE": 1, "AEE": 2, "DLE": 2}


def recipes_of(vit: Vit, mask_ratio: float) -> dict[str, Recipe]:
    """Return the compared methods by name, MAE first."""
    return {
        "MAE": MaeRecipe(dataset="none", model=vit, mask_ratio=mask_ratio),
        "AEE": AslRecipe(dataset="none", model=vit, mask_ratio=mask_ratio),
        "DLE": AslRecipe(dataset="none", model=vit, mask_ratio=mask_ratio, design="dle"),
    }


def head_on_kept_tokens_g(vit: Vit, mask_ratio: float) -> float:
    """Return what the head costs on the tokens that no loss reads, in 1e9 per decoder pass."""
    kept = 1 + int(vit.num_patches * (1 - mask_ratio))  # [cls] and the visible patches
    return kept * vit.decoder_embed_dim * 3 * vit.patch_size**2 / 1e9


def rows_of(name: str, mask_ratio: float) -> list[str]:
    """Return the lines of one size."""
    vit = MODELS[name]
    head = head_on_kept_tokens_g(vit, mask_ratio)
    counted = {
        method: count_flops(recipe) for method, recipe in recipes_of(vit, mask_ratio).items()
    }
    mae = counted["MAE"]
    lines = []
    for method, flops in counted.items():
        reference = flops.forward_g + DECODER_PASSES[method] * head
        lines.append(
            f"{name + f'/{vit.patch_size}':10} {method:6}"
            f" {flops.forward_g:9.3f} {flops.train_g:9.3f}"
            f" {flops.forward_g / mae.forward_g:8.3f} {flops.train_g / mae.train_g:9.3f}"
            f" {reference:11.3f} {reference / (mae.forward_g + head):9.3f}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["vit-s", "vit-b", "vit-l", "vit-h"], choices=sorted(MODELS)
    )
    parser.add_argument("--mask-ratio", type=float, default=0.75)
    options = parser.parse_args(arguments)
    print("GMAC per image                  ours           ratio to MAE      head on all tokens")
    print("model      method   forward  training  forward  training     forward     ratio")
    for name in options.models:
        for line in rows_of(name, options.mask_ratio):
            print(line)


if __name__ == "__main__":
    main()
