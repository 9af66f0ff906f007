"""Multiply-adds against the closed form (12 n d^2 + 2 n^2 d a block), and what is kept."""

from typing import Any

import pytest
import torch
from torch import nn

from asl_core.analysis.cost import (
    activation_mib_per_image,
    count_flops,
    measure_cost,
    trained_parameters_m,
)
from asl_core.losses.reconstruction import reconstruction_loss
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.protocol import Draw, Step, Views
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.mocov3 import MocoV3Recipe
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.rmae import RmaeRecipe
from asl_core.recipes.supervised import SupervisedRecipe

SMALL = Vit(
    image_size=20, patch_size=4, embed_dim=24, depth=3, num_heads=2,
    decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip


def block(tokens: int, width: int) -> int:
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def closed_form(
    vit: Vit, *, branches: int, encoders: int = 1, extra: int = 0, predicted: int | None = None
) -> tuple[int, int]:
    """Return multiply-adds of the patch convolution and of a whole forward pass, ratio 0.75."""
    patches, pixels = vit.num_patches, 3 * vit.patch_size**2
    visible = 1 + int(patches * 0.25)
    convolution = patches * pixels * vit.embed_dim
    encoder = vit.depth * block(visible, vit.embed_dim)
    decoder = visible * vit.embed_dim * vit.decoder_embed_dim
    decoder += vit.decoder_depth * block(1 + patches, vit.decoder_embed_dim)
    removed = 1 + patches - visible if predicted is None else predicted
    decoder += removed * vit.decoder_embed_dim * pixels
    extras = extra * block(visible, vit.embed_dim)
    return convolution, convolution + encoders * encoder + extras + branches * decoder


@pytest.mark.parametrize("vit", [SMALL, MODELS["vit-b"]], ids=["small", "vit-b"])
@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        (None, {"branches": 1}),
        ({}, {"branches": 2, "extra": 1}),
        ({"aee_depth": 2}, {"branches": 2, "extra": 2}),
        ({"share_decoder": False}, {"branches": 2, "extra": 1}),
        ({"design": "dle"}, {"branches": 2, "encoders": 2}),
    ],
    ids=str,
)
def test_counted_flops_equal_the_closed_form(
    vit: Vit, fields: dict[str, Any] | None, passes: dict[str, int]
) -> None:
    if fields is None:
        recipe = MaeRecipe(dataset="none", model=vit)
    else:
        recipe = AslRecipe(dataset="none", model=vit, **fields)
    convolution, forward = closed_form(vit, **passes)
    flops = count_flops(recipe)
    assert flops.forward_g * 1e9 == pytest.approx(forward, rel=1e-12)
    # a product's backward pass is two; the images need no gradient
    assert flops.train_g * 1e9 == pytest.approx(3 * forward - convolution, rel=1e-12)


def test_alignment_of_all_patches_costs_the_head_on_all_of_them() -> None:
    recipe = AslRecipe(dataset="none", model=SMALL, sem_patches="all")
    _, forward = closed_form(SMALL, branches=2, extra=1, predicted=SMALL.num_patches)
    assert count_flops(recipe).forward_g * 1e9 == pytest.approx(forward, rel=1e-12)


@pytest.mark.parametrize("vit", [SMALL, MODELS["vit-b"]], ids=["small", "vit-b"])
def test_two_views_go_through_student_and_teacher(vit: Vit) -> None:
    recipe = MocoV3Recipe(dataset="none", model=vit, projector_hidden=64, projector_dim=16)
    patches, width = vit.num_patches, vit.embed_dim
    convolution = patches * 3 * vit.patch_size**2 * width
    encoder = vit.depth * block(1 + patches, width)
    projector, predictor = width * 64 + 64 * 64 + 64 * 16, 16 * 64 + 64 * 16
    keys = 2 * 16  # a query of each view with the keys of the two images that are counted
    student, teacher = 2 * (encoder + projector + predictor), 2 * (encoder + projector)
    flops = count_flops(recipe)
    forward = 4 * convolution + student + teacher + 2 * keys
    assert flops.forward_g * 1e9 == pytest.approx(forward, rel=1e-12)
    # neither the patch embedding nor keys have a gradient
    assert flops.train_g * 1e9 == pytest.approx(forward + 2 * student + 2 * keys, rel=1e-12)


@pytest.mark.parametrize("vit", [SMALL, MODELS["vit-b"]], ids=["small", "vit-b"])
def test_regions_cost_an_encoder_of_their_own_and_two_decoders(vit: Vit) -> None:
    recipe = RmaeRecipe(
        dataset="none", model=vit, num_regions=5, region_dim=16, pixel_decoder_depth=3
    )
    patches, visible, pixels = vit.num_patches, int(vit.num_patches * 0.25), vit.patch_size**2
    removed = patches - visible
    embedded = 5 * visible * pixels * 16
    encoder = 5 * (block(visible, 16) + 16**2)
    pixel_decoder = (1 + visible) * vit.embed_dim * 16 + 3 * block(1 + patches, 16)
    pixel_decoder += removed * 16**2
    among = 5 * 4 * 16**2 + 2 * 5**2 * 16
    decoder = among + 5 * removed * (2 * 16**2 + 16 * pixels)
    convolution, mae = closed_form(vit, branches=1)
    forward = mae + embedded + encoder + pixel_decoder + decoder
    flops = count_flops(recipe)
    assert flops.forward_g * 1e9 == pytest.approx(forward, rel=1e-12)
    # neither images nor maps need a gradient
    train = 3 * forward - convolution - embedded
    assert flops.train_g * 1e9 == pytest.approx(train, rel=1e-12)


def test_the_head_on_all_tokens_gives_the_reference_counts_of_vit_b() -> None:
    vit = MODELS["vit-b"]
    head = 50 * 512 * 768 / 1e9  # on [cls] and the 49 visible patches, which no loss reads
    mae = count_flops(MaeRecipe(dataset="none", model=vit)).forward_g + head
    aee = count_flops(AslRecipe(dataset="none", model=vit)).forward_g + 2 * head
    dle = count_flops(AslRecipe(dataset="none", model=vit, design="dle")).forward_g + 2 * head
    assert round(mae, 3) == 9.781
    assert (round(aee / mae, 3), round(dle / mae, 3)) == (1.586, 1.988)


def test_counting_leaves_no_trace_in_the_default_device() -> None:
    count_flops(MaeRecipe(dataset="none", model=SMALL))
    assert torch.zeros(1).device.type == "cpu"


def test_a_classifier_costs_what_its_classes_do() -> None:
    recipe = SupervisedRecipe(dataset="none", model=SMALL)
    few, many = (measure_cost(recipe, num_classes) for num_classes in (10, 1000))
    width = SMALL.embed_dim
    assert (many.parameters_m - few.parameters_m) * 1e6 == pytest.approx(990 * (width + 1))
    assert (many.flops_forward_g - few.flops_forward_g) * 1e9 == pytest.approx(990 * width)
    mae = MaeRecipe(dataset="none", model=SMALL)
    assert measure_cost(mae, 10) == measure_cost(mae)


def test_fixed_positions_are_no_parameters() -> None:
    method = MaskedAutoencoder(MaeRecipe(dataset="none", model=SMALL), (0.5,) * 3, (0.5,) * 3)
    trained = trained_parameters_m(method) * 1e6
    everything = sum(parameter.numel() for parameter in method.parameters())
    assert everything - trained == pytest.approx(26 * 24)


class TwoLayers(nn.Module):
    """A method of which one can say what it keeps: input, hidden values before and after GELU."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1200, hidden), nn.Linear(hidden, 7)

    def forward(self, batch: Views, draw: Draw) -> Step:
        x = batch.views[0].flatten(1).float()  # (B, 1200)
        prediction = self.second(nn.functional.gelu(self.first(x)))
        return Step(reconstruction_loss(prediction, torch.zeros(len(x), 7)))


@pytest.mark.parametrize("hidden", [10, 50])
def test_activations_are_the_inputs_of_what_needs_them(hidden: int) -> None:
    # the loss keeps the differences, of which it takes the square
    expected = 4 * (1200 + hidden + hidden + 7)
    recipe = MaeRecipe(dataset="none", model=SMALL, precision="fp32")
    measured = activation_mib_per_image(TwoLayers(hidden), recipe) * 2**20
    assert measured == expected


def test_a_second_branch_and_single_precision_keep_more() -> None:
    costs = [
        measure_cost(recipe).activation_mib_per_image
        for recipe in (
            MaeRecipe(dataset="none", model=SMALL, precision="bf16"),
            MaeRecipe(dataset="none", model=SMALL, precision="fp32"),
            AslRecipe(dataset="none", model=SMALL, precision="fp32"),
        )
    ]
    assert 0 < costs[0] < costs[1] < costs[2]
