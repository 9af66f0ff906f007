import dataclasses
import math
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from asl_core.errors import InputError
from asl_core.modules.decoder import Decoder
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.modules.masking import gather_tokens, random_mask
from asl_core.modules.patches import patchify, pixel_target, unpatchify
from asl_core.modules.positions import resize_positions, sincos_positions
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import MODELS, Vit

TINY = Vit(
    image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def test_positions_put_the_column_first() -> None:
    positions = sincos_positions(8, 3)
    assert positions.shape == (1, 10, 8)
    assert not positions[0, 0].any()
    row, column = 1, 2
    token = positions[0, 1 + row * 3 + column].tolist()
    expected = [f(w * c) for c in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    assert token == pytest.approx(expected, abs=1e-7)


def test_patches_run_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    patches = patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    places = [(c, 2 + i, j) for i in (0, 1) for j in (0, 1) for c in (0, 1, 2)]
    expected = [images[1, c, row, column].item() for c, row, column in places]
    assert patches[1, 2].tolist() == expected
    assert torch.equal(unpatchify(patches, 2), images)


def test_target_has_zero_mean_and_unbiased_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    ids = torch.tensor([[3, 0], [1, 2]])
    target = pixel_target(images, 4, norm_pix=True, ids=ids)
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 2), atol=1e-4, rtol=0)
    plain = pixel_target(images, 4, norm_pix=False, ids=ids)
    assert torch.equal(plain[0, 0], patchify(images, 4)[0, 3])
    assert torch.equal(plain[1, 1], patchify(images, 4)[1, 2])


def test_mask_keeps_the_smallest_noise_and_knows_the_others() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.1, 0.6]])
    mask = random_mask(noise, 0.5)
    assert mask.ids_keep.tolist() == [[1, 3], [2, 0]]
    assert mask.ids_removed.tolist() == [[2, 0], [3, 1]]
    assert mask.removed.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert mask.twice().ids_keep.tolist() == [[1, 3], [2, 0], [1, 3], [2, 0]]


def test_picked_tokens_are_those_of_their_index() -> None:
    tokens = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    picked = gather_tokens(tokens, torch.tensor([[3, 1], [0, 0]]))
    assert torch.equal(picked[0, 1], tokens[0, 1])
    assert torch.equal(picked[1, 1], tokens[1, 0])


def test_three_quarters_of_196_leave_49() -> None:
    noise = torch.rand(1, 196, generator=torch.Generator().manual_seed(0))
    assert random_mask(noise, 0.75).ids_keep.shape == (1, 49)


def test_encoder_equals_timm_on_all_patches() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    reference = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
        global_pool="", norm_layer=lambda width, **_: torch.nn.LayerNorm(width, eps=1e-6),
    ).eval()  # fmt: skip
    reference.load_state_dict(encoder.state_dict())
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(encoder(images), reference(images))


def test_encoder_of_visible_patches_ignores_the_others() -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY).eval()
    images = torch.randn(1, 3, 12, 12)
    ids = torch.tensor([[0, 4]])
    changed = images.clone()
    changed[..., 8:, 8:] = 5.0  # patch 8
    assert torch.equal(encoder(images, ids), encoder(changed, ids))


def test_vit_b_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = Encoder(MODELS["vit-b"])
        decoder = Decoder(MODELS["vit-b"])
    count = sum(p.numel() for p in encoder.parameters())
    assert round(count / 1e6, 2) == 85.80  # positions included, as MAE counts
    count += sum(p.numel() for p in decoder.parameters()) + decoder.pos_embed.numel()
    assert round(count / 1e6, 2) == 111.91


def test_saved_encoder_loads_equal_and_resizes_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(TINY)
    save_encoder(tmp_path, encoder.state_dict(), TINY)
    again = load_encoder(tmp_path)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    larger = load_encoder(tmp_path, image_size=20)
    assert larger(torch.zeros(1, 3, 20, 20)).shape == (1, 26, 16)


def test_resized_positions_keep_cls_and_a_constant_map() -> None:
    positions = torch.full((1, 10, 4), 0.5)
    positions[:, 0] = 7.0
    resized = resize_positions(positions, (5, 2))
    assert resized.shape == (1, 11, 4)
    torch.testing.assert_close(resized[:, 1:], torch.full((1, 10, 4), 0.5))
    assert (resized[:, 0] == 7.0).all()


def test_truncated_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    save_encoder(tmp_path, Encoder(TINY).state_dict(), TINY)
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated") as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_encoder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    other = Vit(image_size=12, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    save_encoder(tmp_path, Encoder(TINY).state_dict(), other)
    with pytest.raises(InputError, match=r"another architecture: .* is .*expected"):
        load_encoder(tmp_path)


def test_image_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ValueError, match="not divisible by patch_size"):
        Vit(image_size=30, patch_size=4)


@pytest.mark.parametrize("ratio", [0.95, 0.99])
def test_a_mask_that_leaves_no_patch_is_refused(ratio: float) -> None:
    assert MaeRecipe(dataset="none", model=TINY, mask_ratio=0.88).num_visible == 1
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} leaves 0 of 9 patches"):
        MaeRecipe(dataset="none", model=TINY, mask_ratio=ratio)


def test_a_mask_that_removes_no_patch_is_refused() -> None:
    one = dataclasses.replace(TINY, image_size=4)  # patches of 4 pixels: a single one
    with pytest.raises(ValueError, match="at least one must be removed, and one stay"):
        MaeRecipe(dataset="none", model=one, mask_ratio=0.1)
