"""The alignment's gradient where the predictions differ by less than bfloat16 resolves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from equations import MEAN, STD
from torch import Tensor

from asl_core.engine.devices import autocast
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.modules.masking import random_mask
from asl_core.protocol import Mask
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.models import Vit

CPU = torch.device("cpu")
SMALL = Vit(
    image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2,
    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2,
)  # fmt: skip
RECIPE = AslRecipe(dataset="none", model=SMALL, precision="bf16", epochs=1, warmup_epochs=0)


def collapsed(recipe: AslRecipe) -> ArbitrarySelfSupervised:
    """A method whose extra layer is nearly the identity, as it becomes in training."""
    torch.manual_seed(0)
    method = ArbitrarySelfSupervised(recipe, MEAN, STD)
    with torch.no_grad():
        for name, parameter in method.extra_layer.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight")):
                parameter.mul_(2e-2)
    return method


def inputs() -> tuple[Tensor, Mask]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    return images, random_mask(torch.rand(32, 16, generator=generator), 0.75)


def gradients(recipe: AslRecipe, precision: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Gradient of the alignment alone: of the encoder, and of everything."""
    method = collapsed(recipe)
    with autocast(CPU, precision):
        loss = method.step(*inputs()).terms["loss_sem"]
    (loss * scale).backward()
    found = {n: p.grad.double() / scale for n, p in method.named_parameters() if p.grad is not None}
    return {
        prefix: torch.cat([g.flatten() for n, g in found.items() if n.startswith(prefix)])
        for prefix in ("encoder", "")
    }


def likeness(ours: Tensor, exact: Tensor) -> tuple[float, float]:
    """Ratio of the norms, and cosine."""
    ratio = ours.norm() / exact.norm()
    return ratio.item(), (ours @ exact / ours.norm() / exact.norm()).item()


FULL = replace(RECIPE, sem_precision="full")


def test_float32_behind_the_encoder_gives_the_alignment_its_gradient_back() -> None:
    exact = gradients(RECIPE, "fp32")
    damaged, restored = gradients(RECIPE, "bf16"), gradients(FULL, "bf16")
    for part in ("encoder", ""):
        ratio, cosine = likeness(restored[part], exact[part])
        assert ratio == pytest.approx(1, abs=0.05)
        assert cosine > 0.98
        ratio, cosine = likeness(damaged[part], exact[part])
        assert abs(ratio - 1) > 0.1 or cosine < 0.95


def test_scaled_float16_nearly_keeps_it() -> None:
    exact, half = gradients(RECIPE, "fp32"), gradients(RECIPE, "fp16", scale=2.0**16)
    for part in ("encoder", ""):
        ratio, cosine = likeness(half[part], exact[part])
        assert ratio == pytest.approx(1, abs=0.1)
        assert cosine > 0.95


def test_in_float32_it_is_the_very_same_computation() -> None:
    plain, full = gradients(RECIPE, "fp32"), gradients(FULL, "fp32")
    assert all(torch.equal(plain[part], full[part]) for part in plain)


@pytest.mark.parametrize("fields", [{}, {"aee_pos": "pre_norm"}, {"share_decoder": False}], ids=str)
def test_only_what_the_branches_share_is_left_in_bfloat16(fields: dict[str, Any]) -> None:
    recipe = replace(FULL, **fields)
    method = collapsed(recipe)
    seen: dict[str, set[torch.dtype]] = {"encoder": set(), "others": set()}
    for name, module in method.named_modules():
        if isinstance(module, torch.nn.Linear):
            where = "encoder" if name.startswith("encoder.") else "others"
            module.register_forward_hook(lambda *args, at=where: seen[at].add(args[2].dtype))
    with autocast(CPU, "bf16"):
        method.step(*inputs())
    assert seen == {"encoder": {torch.bfloat16}, "others": {torch.float32}}
