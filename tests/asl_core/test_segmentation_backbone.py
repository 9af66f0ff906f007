import pytest
import torch
from torch import nn

from asl_core.engine.optimizer import layer_decay_groups
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.backbone import (
    RelativePositionBias,
    ScalePyramid,
    SegmentationVit,
    tap_indices,
)
from asl_core.transfer.segmentation.model import Segmenter
from asl_core.transfer.segmentation.upernet import FcnHead, UPerHead

VIT = Vit(image_size=24, patch_size=4, embed_dim=16, depth=12, num_heads=2)


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (3, (0, 0, 1, 2))]
)
def test_the_taps_are_those_of_the_published_models(depth: int, taps: tuple[int, ...]) -> None:
    assert tap_indices(depth) == taps


def test_bias_equals_a_lookup_by_pair_of_positions() -> None:
    side, heads = 3, 2
    bias = RelativePositionBias(heads, side)
    torch.manual_seed(0)
    nn.init.normal_(bias.table)
    # BEiT's index: offsets first by row, then by column; the last three entries are [cls]'s
    last = (2 * side - 1) ** 2 + 3
    positions = [(row, column) for row in range(side) for column in range(side)]
    for i in range(1 + side**2):
        for j in range(1 + side**2):
            if i == 0 or j == 0:
                entry = last - 1 if i == j else last - 3 if i == 0 else last - 2
            else:
                (row_i, column_i), (row_j, column_j) = positions[i - 1], positions[j - 1]
                entry = (row_i - row_j + side - 1) * (2 * side - 1) + column_i - column_j + side - 1
            assert torch.equal(bias()[0, :, i, j], bias.table[:, entry])


def test_backbone_starts_as_the_pretrained_encoder_without_its_final_norm() -> None:
    torch.manual_seed(0)
    encoder = Encoder(VIT).eval()
    images = torch.randn(2, 3, 24, 24)
    expected = encoder.layers(images)
    maps = SegmentationVit(encoder).eval()(images)
    for tap, x in zip((3, 5, 7, 11), maps, strict=True):
        assert x.shape == (2, 16, 6, 6)
        torch.testing.assert_close(x.flatten(2).transpose(1, 2), expected[tap][:, 1:])


def test_a_bias_moves_attention() -> None:
    torch.manual_seed(0)
    backbone = SegmentationVit(Encoder(VIT)).eval()
    images = torch.randn(2, 3, 24, 24)
    before = backbone(images)[0]
    nn.init.normal_(backbone.position_biases[0].table)
    assert not torch.allclose(backbone(images)[0], before)


def test_pyramid_has_four_scales_also_on_an_odd_grid() -> None:
    maps = [torch.randn(2, 8, 5, 5) for _ in range(4)]
    shapes = [tuple(x.shape[1:]) for x in ScalePyramid(8, 5)(maps)]
    assert shapes == [(8, 20, 20), (8, 10, 10), (8, 5, 5), (8, 2, 2)]


def test_a_crop_of_one_patch_is_refused() -> None:
    with pytest.raises(InputError, match="larger crop_size"):
        ScalePyramid(8, 1)


def test_parameters_at_paper_size_are_those_of_the_public_models() -> None:
    with torch.device("meta"):
        assert millions(UPerHead([768] * 4, 768, 150)) == pytest.approx(67.96, abs=0.005)
        assert millions(UPerHead([768] * 4, 512, 150)) == pytest.approx(32.33, abs=0.005)
        assert millions(FcnHead(768, 256, 150)) == pytest.approx(1.81, abs=0.005)
        assert millions(ScalePyramid(768, 32)) == pytest.approx(7.08, abs=0.005)
        assert RelativePositionBias(12, 32).table.shape == (12, 63**2 + 3)
    blocks = Encoder(MODELS["vit-b"]).requires_grad_(False)
    vit = 12 * millions(blocks.blocks[0]) + millions(blocks.patch_embed) + 1026 * 768 / 1e6
    assert vit + 7.08 == pytest.approx(93.51, abs=0.005)
    with torch.device("meta"):
        side = MODELS["vit-b"].grid_size
        backbone = SegmentationVit(Encoder(MODELS["vit-b"])).requires_grad_(True)
    # of 224 pixels here; at 512 positions and biases have 32 patches a side
    grown = (32**2 - side**2) * 768 + 12 * 12 * (63**2 - (2 * side - 1) ** 2)
    total = millions(backbone) + millions(ScalePyramid(768, 32)) + grown / 1e6
    assert total == pytest.approx(94.11, abs=0.006)


def test_rates_fall_by_layer_and_heads_keep_the_full_one() -> None:
    recipe = Segmentation(
        dataset="scenes", crop_size=24, slide_stride=16, channels=8, auxiliary_channels=4
    )
    model = Segmenter(Encoder(VIT), 5, recipe, (0.5,) * 3, (0.2,) * 3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale, decay = {}, {}
    for group in layer_decay_groups(model, recipe):
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            decay[names[id(parameter)]] = group["weight_decay"]
    assert scale.keys() == set(names.values())
    for name, value in scale.items():
        parts = name.split(".")
        if parts[1] in ("blocks", "position_biases"):
            expected = 0.65 ** (12 - int(parts[2]))
        else:
            expected = 0.65**13 if parts[0] == "backbone" else 1.0
        assert value == pytest.approx(expected), name
    assert decay["backbone.pos_embed"] == decay["backbone.position_biases.3.table"] == 0.05
    assert decay["backbone.blocks.0.norm1.weight"] == decay["head.classifier.1.bias"] == 0
