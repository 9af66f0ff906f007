"""The windowed backbone and the pyramid."""

from typing import Any, cast

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import Vit
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.backbone import (
    RelativePositionBias,
    WindowedVit,
    as_attention_reads,
    merge_windows,
    partition_windows,
    run_block,
    tap_indices,
)
from asl_core.transfer.detection.model import MaskRcnn
from asl_core.transfer.detection.pyramid import TapPyramid

HALF = (0.5, 0.5, 0.5)


def tiny_encoder(
    image_size: int = 48, depth: int = 4, drop_path: float = 0.0, dim: int = 24
) -> Encoder:
    torch.manual_seed(0)
    vit = Vit(image_size=image_size, patch_size=8, embed_dim=dim, depth=depth, num_heads=3,
              decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
    return Encoder(vit, drop_path=drop_path)


def test_taps_are_the_last_blocks_of_the_quarters() -> None:
    assert tap_indices(12) == (2, 5, 8, 11)
    assert tap_indices(24) == (5, 11, 17, 23)
    assert tap_indices(4) == (0, 1, 2, 3)


def test_merging_undoes_partitioning_with_and_without_padding() -> None:
    for height, width, window in ((6, 4, 2), (5, 7, 3)):
        tokens = torch.randn(2, height, width, 8)
        windows = partition_windows(tokens, window)
        assert windows.shape[1:] == (window**2, 8)
        assert torch.equal(merge_windows(windows, window, (height, width)), tokens)


def test_each_window_holds_neighbours_only() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    windows = partition_windows(torch.stack([rows, columns], dim=2)[None], 2)  # (6, 4, 2)
    assert torch.all(windows.amax(dim=1) - windows.amin(dim=1) == 1)


def plain_taps(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Every block on all tokens, by timm's own forward, without [cls]."""
    tokens = encoder.embed(images) + encoder.pos_embed[:, 1:]
    outputs = []
    for block in encoder.blocks:
        tokens = block(tokens)
        outputs.append(tokens)
    side = encoder.vit.grid_size
    chosen = [outputs[i] for i in tap_indices(encoder.vit.depth)]
    return [t.transpose(1, 2).reshape(len(images), -1, side, side) for t in chosen]


@pytest.mark.parametrize("window_size", [6, 16])
def test_a_window_that_covers_the_grid_is_global_attention_with_zero_biases(
    window_size: int,
) -> None:
    encoder = tiny_encoder(depth=8)
    images = torch.randn(2, 3, 48, 48)
    expected = plain_taps(encoder, images)
    found = WindowedVit(encoder, window_size)(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_window_block_keeps_information_inside_its_window() -> None:
    # with depth 8 the first block is windowed, the second global
    backbone = WindowedVit(tiny_encoder(depth=8), 3).eval()
    tokens = torch.randn(1, 6, 6, 24)
    changed = tokens.clone()
    changed[:, :3, :3] += 1
    assert backbone.window_bias is not None
    difference = [
        run_block(cast(Block, backbone.blocks[0]), x, backbone.window_bias(), 3)
        for x in (tokens, changed)
    ]
    moved = (difference[0] - difference[1]).abs().amax(dim=3)[0] > 1e-6
    assert moved[:3, :3].all()
    assert moved.sum() == 9


def test_windows_that_do_not_divide_the_grid_run() -> None:
    backbone = WindowedVit(tiny_encoder(depth=8), 4)
    assert [tuple(m.shape) for m in backbone(torch.randn(2, 3, 48, 48))] == [(2, 24, 6, 6)] * 4


def test_relative_biases_are_read_by_offset() -> None:
    bias = RelativePositionBias(num_heads=2, side=3)
    nn.init.normal_(bias.table)
    spread = bias()[0]
    assert spread.shape == (2, 9, 9)
    for i in range(9):
        for j in range(9):
            dy, dx = i // 3 - j // 3, i % 3 - j % 3
            assert torch.equal(spread[:, i, j], bias.table[:, dy + 2, dx + 2])


def test_relative_biases_get_the_gradient_of_explicit_attention() -> None:
    encoder = tiny_encoder(depth=4)
    backbone = WindowedVit(encoder, 2)
    images = torch.randn(2, 3, 48, 48)
    backbone(images)[0].square().sum().backward()
    found = backbone.global_bias.table.grad.clone()  # type: ignore[union-attr]
    for block in backbone.blocks:
        cast(Any, block).attn.fused_attn = False
    backbone.zero_grad()
    backbone(images)[0].square().sum().backward()
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, backbone.global_bias.table.grad, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_images_not_windows() -> None:
    # timm's block on windows would drop each window by itself
    backbone = WindowedVit(tiny_encoder(depth=8, drop_path=0.6), 3).train()
    block = cast(Block, backbone.blocks[6])
    assert backbone.window_bias is not None
    # without its second half a block gives 2 * (tokens + attention), or 2 * tokens if dropped
    block.mlp = nn.Identity()
    block.drop_path2 = nn.Identity()
    block.norm2 = nn.Identity()
    tokens = torch.randn(64, 6, 6, 24)
    torch.manual_seed(3)
    kept = (run_block(block, tokens, backbone.window_bias(), 3) / 2 - tokens).abs().sum(dim=3)
    dropped = kept < 1e-4  # (64, 6, 6): the block left the token as it was
    per_image = dropped.flatten(1).float().mean(dim=1)
    assert set(per_image.tolist()) == {0.0, 1.0}


def test_stochastic_depth_may_drop_windows() -> None:
    torch.manual_seed(2)
    encoder = tiny_encoder(depth=8, drop_path=0.6)
    whole, parts = WindowedVit(encoder, 3), WindowedVit(encoder, 3, drop_windows=True)
    parts.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 48, 48)
    for one, other in zip(whole.eval()(images), parts.eval()(images), strict=True):
        torch.testing.assert_close(one, other)  # nothing is dropped: the same
    block = cast(Block, parts.train().blocks[6])
    assert parts.window_bias is not None
    block.mlp = nn.Identity()
    block.drop_path2 = nn.Identity()
    block.norm2 = nn.Identity()
    tokens = torch.randn(64, 6, 6, 24)
    torch.manual_seed(3)
    found = run_block(block, tokens, parts.window_bias(), 3, drop_windows=True)
    dropped = ((found / 2 - tokens).abs().sum(dim=3) < 1e-4).float()  # (64, 6, 6)
    of_window = dropped.reshape(64, 2, 3, 2, 3).mean(dim=(2, 4))
    assert set(of_window.flatten().tolist()) == {0.0, 1.0}
    assert len(set(dropped.mean(dim=(1, 2)).tolist())) > 2, "of an image, some and not all"


def test_biases_are_cast_once_as_attention_would_cast_them() -> None:
    torch.manual_seed(2)
    backbone = WindowedVit(tiny_encoder(depth=8), 3).eval()
    for bias in (backbone.window_bias, backbone.global_bias):
        assert bias is not None
        nn.init.normal_(bias.table)
    images = torch.randn(1, 3, 48, 48)
    bias = backbone.global_bias()
    assert as_attention_reads(bias) is bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_attention_reads(bias).dtype == torch.bfloat16
        found = backbone(images)
    for one, other in zip(found, backbone(images), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.1)


def test_the_pyramid_has_five_levels_of_halving_size() -> None:
    pyramid = TapPyramid(dim=24, channels=16)
    levels = pyramid([torch.randn(2, 24, 4, 6) for _ in range(4)])
    assert [tuple(level.shape) for level in levels.values()] == [
        (2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3), (2, 16, 1, 2),
    ]  # fmt: skip


def test_vit_b_has_the_protocols_number_of_parameters() -> None:
    recipe = Detection(dataset="coco")
    with torch.device("meta"):
        model = MaskRcnn(Encoder(Vit(image_size=1024)), 80, recipe, HALF, HALF)
    count = {
        name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()
    }
    bottom_up = count["backbone"] + sum(p.numel() for p in model.pyramid.scales.parameters())
    assert round(bottom_up / 1e6, 2) == 96.08
    # The published count has no box deltas and no mask for background; torchvision's heads do.
    background = 4 * (1024 + 1) + 256 + 1
    total = sum(count.values()) - background
    assert round(total / 1e6, 2) == 118.67


def test_a_grid_that_cannot_be_halved_is_refused() -> None:
    recipe = Detection(dataset="scenes", image_size=40)
    with pytest.raises(InputError, match="even number of patches"):
        MaskRcnn(tiny_encoder(image_size=40), 3, recipe, HALF, HALF)
