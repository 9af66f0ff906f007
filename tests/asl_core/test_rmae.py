"""R-MAE against its equations: pixels, and maps of regions in the removed patches."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from equations import (
    COMMON,
    MEAN,
    PATCHES,
    STD,
    Parity,
    Weights,
    batch,
    below,
    block,
    compare_gradients,
    decode,
    encode,
    inputs,
    linear,
    mae_loss,
    norm,
    randomised,
    weights_of,
)
from torch import Tensor, nn

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.optimizer import build_optimizer, no_decay_groups
from asl_core.errors import InputError
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.methods.rmae import RegionMaskedAutoencoder
from asl_core.modules.masking import draw_mask
from asl_core.pretrain import build_method
from asl_core.protocol import Draw, Mask, Views
from asl_core.recipes.datasets import Icons
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.rmae import RmaeRecipe

REGIONS, HEADS = 4, 3
# equations.py decodes with two blocks of three heads
SMALL: dict[str, Any] = {
    **COMMON, "num_regions": REGIONS, "region_dim": 12, "region_num_heads": HEADS,
    "pixel_decoder_depth": 2,
}  # fmt: skip


def region_maps() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(3, REGIONS, 12, 12, generator=generator) < 0.3


def cut(maps: Tensor) -> list[Tensor]:
    """Patches of a map, in each the rows one after the other; (12, 12) to nine of (16,)."""
    return [
        maps[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten().double()
        for r in range(3)
        for c in range(3)
    ]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(x: Tensor, p: Weights) -> Tensor:
    """Of regions among each other, one head at a time; (R, D)."""
    size = x.shape[-1] // HEADS
    q, k, v = linear(x, p, "qkv").split(x.shape[-1], dim=-1)
    outs = []
    for i in range(HEADS):
        s = slice(i * size, (i + 1) * size)
        outs.append((q[:, s] @ k[:, s].T / math.sqrt(size)).softmax(-1) @ v[:, s])
    return linear(torch.cat(outs, -1), p, "proj")


def region_losses(
    p: Weights, image: Tensor, maps: Tensor, visible: list[int], depth: int
) -> list[Tensor]:
    """Mean cross entropy over each removed patch's pixels, of every region of an image."""
    encoder, decoder = below(p, "region_encoder."), below(p, "region_decoder.")
    queries = []
    for each in maps:
        patches = cut(each)
        tokens = [
            linear(patches[i] - 0.5, encoder, "embed") + encoder["pos_embed"][0, 1 + i]
            for i in visible
        ]
        x = torch.stack(tokens)
        for number in range(depth):
            x = block(x, below(encoder, f"blocks.{number}."), HEADS)
        queries.append(linear(norm(x.mean(0), encoder, "norm"), encoder, "proj"))
    regions = torch.stack(queries)  # (R, D')
    regions = regions + attention(norm(regions, decoder, "norm1"), below(decoder, "attn."))
    latent = norm(encode(below(p, "encoder."), image, visible), below(p, "encoder."), "norm")
    memory = decode(below(p, "pixel_decoder."), latent, visible)  # (1 + N, D')
    losses = []
    for region, each in zip(regions, maps, strict=True):
        for i in range(PATCHES):
            if i in visible:
                continue
            x = region + linear(memory[1 + i], below(p, "pixel_decoder."), "pred")
            x = norm(x, decoder, "norm2")
            x = linear(gelu(linear(x, decoder, "mlp.fc1")), decoder, "mlp.fc2")
            inside = torch.sigmoid(linear(gelu(x), decoder, "pred"))
            wanted = cut(each)[i]
            terms = wanted * torch.log(inside) + (1 - wanted) * torch.log(1 - inside)
            losses.append(-terms.mean())
    return losses


def rmae_loss(p: Weights, recipe: RmaeRecipe, images: Tensor, mask: Mask, maps: Tensor) -> Tensor:
    losses = []
    for image, regions, visible in zip(images, maps, mask.ids_keep.tolist(), strict=True):
        losses += region_losses(p, image, regions, visible, recipe.region_encoder_depth)
    return mae_loss(p, images, mask) + recipe.region_weight * torch.stack(losses).mean()


@pytest.mark.parametrize(
    "shape", [{}, {"region_encoder_depth": 2, "region_weight": 0.7}], ids=["published", "other"]
)
def test_rmae_equals_its_equations_and_so_do_its_weights_after_a_step(
    shape: dict[str, Any], parity: Parity
) -> None:
    recipe = RmaeRecipe(**SMALL, **shape, lr=1e-3, precision="fp32")
    method = randomised(RegionMaskedAutoencoder(recipe, MEAN, STD))
    images, mask = inputs()
    maps = region_maps()
    step = method.step(images, mask, maps)
    theirs = rmae_loss(weights_of(method), recipe, images, mask, maps)
    compare_gradients("R-MAE", method, step.loss, theirs, parity)
    terms = step.terms
    total = terms["loss_mae"] + recipe.region_weight * terms["loss_regions"]
    parity("R-MAE, terms", step.loss, total, 1e-12)

    norms = [m for m in method.modules() if isinstance(m, nn.LayerNorm)]
    of_norms = {id(q) for m in norms for q in m.parameters()}
    expected = {}
    trained = {n: q for n, q in method.named_parameters() if q.requires_grad}
    found = torch.autograd.grad(step.loss, list(trained.values()), retain_graph=True)
    for (name, q), gradient in zip(trained.items(), found, strict=True):
        # upstream spares norms, and what is called a bias; AdamW's first step is the sign
        spared = id(q) in of_norms or "bias" in name.rsplit(".", 1)[-1]
        decayed = q.detach() * (1 - 1e-3 * (0.0 if spared else 0.05))
        expected[name] = decayed - 1e-3 * gradient / (gradient.abs() + 1e-8)
    optimizer = build_optimizer(no_decay_groups(method, recipe), recipe)
    step.loss.backward()
    optimizer.step()
    for name, q in trained.items():
        parity("R-MAE, weights after one step", q.detach(), expected[name], 1e-10)


def test_pixels_are_predicted_as_by_mae_with_the_masks_of_mae(parity: Parity) -> None:
    method = randomised(RegionMaskedAutoencoder(RmaeRecipe(**SMALL), MEAN, STD))
    mae = MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD).double()
    state = {k: v for k, v in method.state_dict().items() if "region" not in k}
    mae.load_state_dict({k: v for k, v in state.items() if not k.startswith("pixel_decoder")})
    images, mask = inputs()
    ours, theirs = method.predictions(images, mask)["ori"], mae.predictions(images, mask)["ori"]
    parity("R-MAE, pixels as MAE", ours, theirs, 1e-12)
    views, draw = batch(), Draw(3, 8)
    method = method.float()
    images, mask = method.masked(views, draw)
    assert torch.equal(mask.ids_keep, draw_mask(views.indices, draw, PATCHES, 0.6).ids_keep)
    step = method(Views(views.views, views.indices, regions=region_maps()), draw)
    assert torch.equal(step.loss, method.step(images, mask, region_maps()).loss)


def test_the_published_recipe() -> None:
    recipe = RmaeRecipe(dataset="none")
    assert (recipe.num_regions, recipe.region_dim, recipe.region_num_heads) == (8, 128, 8)
    assert (recipe.pixel_decoder_depth, recipe.region_encoder_depth) == (8, 1)
    assert (recipe.mask_ratio, recipe.region_weight, recipe.norm_pix) == (0.75, 1.0, True)
    assert (recipe.peak_lr, recipe.weight_decay, recipe.betas) == (2.4e-3, 0.05, (0.9, 0.95))
    plan = recipe.view_plan()
    assert plan.regions == 8
    assert plan.views == MaeRecipe(dataset="none").view_plan().views
    with torch.device("meta"):
        method = RegionMaskedAutoencoder(recipe, MEAN, STD)
    block_of_128 = 12 * 128**2 + 13 * 128
    pixel_decoder = 768 * 128 + 128 + 128 + 8 * block_of_128 + 2 * 128 + 128**2 + 128
    encoder = 256 * 128 + 128 + block_of_128 + 2 * 128 + 128**2 + 128
    decoder = 4 * 128 + 4 * (128**2 + 128) + 2 * (128**2 + 128) + 128 * 256 + 256
    more = sum(
        q.numel() for n, q in method.named_parameters() if not n.startswith(("encoder", "decoder"))
    )
    assert more == pixel_decoder + encoder + decoder


def test_a_dataset_without_regions_is_refused_in_a_line_that_says_what_to_add(
    icons: Path, tmp_path: Path
) -> None:
    recipe = RmaeRecipe(**SMALL)
    build_method(recipe, PackedDataset(icons, "train"))
    prepare(Icons(image_size=16, train=4, test=2), tmp_path, tmp_path, name="plain")
    with pytest.raises(InputError, match=r"dataset plain has none; .*datasets\.plain regions: \{"):
        build_method(recipe, PackedDataset(tmp_path, "train"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_regions": 0}, "num_regions must be at least 1, got 0"),
        ({"region_weight": 0.0}, "region_weight must be positive"),
        ({"region_dim": 14}, "region_dim 14 must be a multiple of 4"),
        ({"region_dim": 16}, "and of region_num_heads 3"),
        ({"region_encoder_depth": 0}, "region_encoder_depth must be at least 1"),
        ({"pixel_decoder_depth": 0}, "pixel_decoder_depth must be at least 1"),
        ({"images_on": "device"}, "rmae wants regions: set images_on: disk"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RmaeRecipe(**{**SMALL, **fields})
