"""Encoders that are no plain ViT: factors, keys without a bias, relative positions; everywhere."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from code_equations import bias_of, code_block, patch_tokens
from equations import Parity, below, norm, randomised
from timm.models.vision_transformer import Block
from torch import Tensor

from asl_core.analysis.attention import cls_attention
from asl_core.engine.optimizer import layer_decay_groups
from asl_core.errors import InputError
from asl_core.exchange.exporting import check_holds
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import Form, ImportOptions
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.modules.relative_bias import RelativePositionBias, inner_offsets, resize_table
from asl_core.recipes.models import PLAIN, EncoderParts, Vit
from asl_core.recipes.transfer import FineTune
from asl_core.transfer.detection.backbone import WindowedVit, run_block
from asl_core.transfer.features import frozen_features
from asl_core.transfer.finetune import NO_DECAY, Classifier
from asl_core.transfer.segmentation.backbone import SegmentationVit

VIT = Vit(image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2)
DEEP = Vit(image_size=24, patch_size=4, embed_dim=16, depth=8, num_heads=2)
BEIT = EncoderParts(layer_scale=0.1, key_bias=False, relative_positions=True)
CAE = EncoderParts(layer_scale=0.1, key_bias=False)
HALF = (0.5,) * 3


def encoder_of(parts: EncoderParts, vit: Vit = VIT) -> Encoder:
    torch.manual_seed(0)
    return randomised(Encoder(vit, parts)).eval()


def images_of(vit: Vit = VIT, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    size = vit.image_size
    return torch.randn(count, 3, size, size, generator=generator).double()


def outputs_of(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """The tokens after each block by the equations, (1 + N, D)."""
    p, side = dict(encoder.state_dict()), encoder.vit.grid_size
    table = p.get("relative_position_bias.table")
    bias = None if table is None else bias_of(table, side)
    positions = p.get("pos_embed", torch.zeros(1, 1 + side * side, 16, dtype=torch.float64))[0]
    x = torch.stack([p["cls_token"][0, 0], *patch_tokens(p, image)]) + positions
    outputs = []
    for depth in range(encoder.vit.depth):
        x = code_block(x, below(p, f"blocks.{depth}."), 2, bias=bias)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("parts", [BEIT, CAE], ids=["beit", "cae"])
def test_every_way_through_the_encoder_is_that_of_the_equations(
    parts: EncoderParts, parity: Parity
) -> None:
    encoder, images = encoder_of(parts), images_of()
    expected = [outputs_of(encoder, image) for image in images]
    last = torch.stack([each[-1] for each in expected])
    normed = norm(last, dict(encoder.state_dict()), "norm")
    parity("encoder with parts", encoder(images), normed, 1e-12)
    parity("encoder with parts", encoder.encode_crop(images), normed, 1e-12)
    parity("encoder with parts", encoder.before_norm(images), last, 1e-12)
    keep = torch.ones(2, 2, 2, dtype=torch.float64)
    parity("encoder with parts", encoder.before_norm(images, keep), last, 1e-12)
    for found, block in zip(encoder.layers(images), zip(*expected, strict=True), strict=True):
        parity("encoder with parts", found, torch.stack(block), 1e-12)
    features = frozen_features(encoder, images, ("cls",))
    parity("encoder with parts", features[:, 0], normed[:, 0], 1e-12)


def test_attention_that_is_drawn_has_its_bias() -> None:
    encoder, images = encoder_of(BEIT), images_of()
    p = dict(encoder.state_dict())
    bias, own = bias_of(p["relative_position_bias.table"], 3), below(p, "blocks.1.")
    maps = cls_attention(encoder, images)
    for image, drawn in zip(images, maps, strict=True):
        y = norm(outputs_of(encoder, image)[0], own, "norm1")
        q = y @ own["attn.qkv.weight"][:16].T + own["attn.qkv.q_bias"]
        k = y @ own["attn.qkv.weight"][16:32].T
        for head in range(2):
            s = slice(8 * head, 8 * head + 8)
            weights = (q[:, s] @ k[:, s].T / 8**0.5 + bias[head]).softmax(-1)
            torch.testing.assert_close(drawn[head].flatten(), weights[0, 1:])


def test_a_plain_encoder_is_written_as_it_always_was(tmp_path: Path) -> None:
    save_encoder(tmp_path, Encoder(VIT).state_dict(), VIT)
    assert (tmp_path / "encoder.json").read_text() == (
        '{\n  "decoder_depth": 8,\n  "decoder_embed_dim": 512,\n  "decoder_num_heads": 16,\n'
        '  "depth": 2,\n  "embed_dim": 16,\n  "image_size": 12,\n  "mlp_ratio": 4.0,\n'
        '  "num_heads": 2,\n  "patch_size": 4\n}\n'
    )
    assert load_encoder(tmp_path).parts == PLAIN


@pytest.mark.parametrize("parts", [BEIT, CAE], ids=["beit", "cae"])
def test_it_loads_as_it_was_saved_and_for_other_sizes(parts: EncoderParts, tmp_path: Path) -> None:
    encoder = encoder_of(parts).float()
    save_encoder(tmp_path, encoder.state_dict(), VIT, parts)
    again = load_encoder(tmp_path)
    assert again.parts == parts
    assert again.state_dict().keys() == encoder.state_dict().keys()
    images = images_of().float()
    assert torch.equal(again.eval()(images), encoder(images))
    larger = load_encoder(tmp_path, image_size=20).eval()
    assert larger(torch.zeros(1, 3, 20, 20)).shape == (1, 26, 16)
    if parts is BEIT:
        assert "pos_embed" not in again.state_dict()
        table = encoder.state_dict()["relative_position_bias.table"]
        found = larger.state_dict()["relative_position_bias.table"]
        assert torch.equal(found, resize_table(table, 5))


def test_neighbours_keep_their_bias_and_the_outermost_stay_outermost() -> None:
    table = torch.randn(2, 27**2 + 3, dtype=torch.float64)
    for side in (16, 24, 32, 64):
        resized = resize_table(table, side)
        assert torch.equal(resized[:, -3:], table[:, -3:])
        # offsets 0 and 1 stay where they are, the rest is stretched
        torch.testing.assert_close(inner_offsets(resized, 2), inner_offsets(table, 2))
        corner = resized[:, : (2 * side - 1) ** 2].view(2, 2 * side - 1, -1)[:, [0, -1]][..., [0]]
        own = table[:, : 27**2].view(2, 27, 27)[:, [0, -1]][..., [0]]
        torch.testing.assert_close(corner, own, atol=1e-2, rtol=0)  # as near as q is found
    assert resize_table(table, 14) is table


def test_a_smaller_grid_takes_inner_offsets_all_but_unchanged() -> None:
    line = torch.arange(-13, 14, dtype=torch.float64)
    table = torch.cat([(line[:, None] + 10 * line).flatten(), torch.zeros(3)])[None].double()
    inner = resize_table(table, 8)[:, :-3].view(15, 15)
    # the offset 7 is read at 6.8: (1.01^6.8 - 1) / .01 = 7
    torch.testing.assert_close(inner, inner_offsets(table, 8)[0], rtol=0, atol=0.21 * 11)


@pytest.mark.parametrize("power", [0, 1, 2, 3])
def test_a_spline_through_values_of_a_cubic_is_that_cubic(power: int) -> None:
    # the places of a table of 14 patches for 20: 0, 1, 1 + q, 1 + q + q^2, ... up to 19
    low, high = 1.0, 1.5
    for _ in range(60):
        q = (low + high) / 2
        low, high = (low, q) if sum(q**k for k in range(13)) > 19 else (q, high)
    beyond = torch.tensor([sum(low**k for k in range(n)) for n in range(14)], dtype=torch.float64)
    places = torch.cat([-beyond[1:].flip(0), beyond]) / 19
    at = torch.arange(-19, 20, dtype=torch.float64) / 19
    table = torch.cat([torch.outer(places**power, places).flatten(), torch.zeros(3).double()])
    found = resize_table(table[None], 20)[0, :-3].view(39, 39)
    torch.testing.assert_close(found, torch.outer(at**power, at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [1, 2])
def test_grids_too_small_for_a_spline_are_resized_too(side: int) -> None:
    resized = resize_table(torch.full((2, (2 * side - 1) ** 2 + 3), 0.5), 4)
    torch.testing.assert_close(resized, torch.full((2, 52), 0.5))


def test_a_detector_begins_with_the_table_inside_its_windows_and_over_the_whole() -> None:
    encoder, images = encoder_of(BEIT, DEEP), images_of(DEEP)
    bias = encoder.attention_bias()
    assert bias is not None
    among = bias[:, :, 1:, 1:]
    tokens, outputs = encoder.embed(images), []
    for block in encoder.blocks:
        tokens = block(tokens, attn_mask=among)
        outputs.append(tokens.transpose(1, 2).unflatten(2, (6, 6)))
    found = WindowedVit(encoder, 6)(images)  # one window: the whole
    for tap, ours in zip((1, 3, 5, 7), found, strict=True):
        torch.testing.assert_close(ours, outputs[tap])

    backbone = WindowedVit(encoder, 3)
    assert backbone.window_bias is not None
    assert not dict(backbone.named_parameters()).keys() & {"pos_embed"}
    block = cast(Block, encoder.blocks[0])
    tokens = encoder.embed(images).unflatten(1, (6, 6))
    ours = run_block(block, tokens, backbone.window_bias(), 3)
    inside = [r * 6 + c for r in (3, 4, 5) for c in (0, 1, 2)]  # the lower left window
    expected = block(tokens.flatten(1, 2)[:, inside], attn_mask=among[:, :, inside][..., inside])
    torch.testing.assert_close(ours.flatten(1, 2)[:, inside], expected)
    ours.square().sum().backward()
    assert backbone.window_bias.table.grad is not None
    assert encoder.relative_position_bias is not None
    assert encoder.relative_position_bias.table.grad is None  # a copy is trained


@pytest.mark.parametrize("parts", [BEIT, CAE], ids=["beit", "cae"])
def test_a_segmenter_begins_as_the_encoder(parts: EncoderParts) -> None:
    encoder, images = encoder_of(parts, DEEP), images_of(DEEP)
    expected = encoder.layers(images)
    backbone = SegmentationVit(encoder).eval()
    for tap, ours in zip((1, 3, 4, 7), backbone(images), strict=True):
        torch.testing.assert_close(ours.flatten(2).transpose(1, 2), expected[tap][:, 1:])
    names = dict(backbone.named_parameters())
    assert ("pos_embed" in names) == (parts is CAE)
    tables = [cast(RelativePositionBias, bias).table for bias in backbone.position_biases]
    assert len({id(table) for table in tables}) == 8  # each block's own
    assert bool(tables[3].any()) == (parts is BEIT)


def test_a_classifier_trains_the_table_at_the_full_rate() -> None:
    recipe = FineTune(dataset="none", batch_size=4)
    model = Classifier(encoder_of(BEIT).float(), 3, recipe, HALF, HALF)
    table = model.encoder.relative_position_bias
    assert table is not None
    groups = layer_decay_groups(model, recipe, NO_DECAY)
    [own] = [group for group in groups if any(p is table.table for p in group["params"])]
    assert own["lr_scale"] == 1.0  # as BEiT's fine-tuning has it for a shared table
    assert own["weight_decay"] == recipe.weight_decay
    model.logits(images_of().float()).sum().backward()
    assert table.table.grad is not None


def test_tables_and_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder = encoder_of(BEIT).float()
    state = dict(encoder.state_dict())
    for shape in ((2, 40), (3, 28), (2, 28, 1)):
        state["relative_position_bias.table"] = torch.zeros(shape)
        save_encoder(tmp_path, state, VIT, BEIT)
        with pytest.raises(InputError, match=r"table is .*expected \(2, n\^2 \+ 3\), n odd"):
            load_encoder(tmp_path)
    save_encoder(tmp_path, encoder.state_dict(), VIT)  # says it is plain
    with pytest.raises(InputError, match="another architecture"):
        load_encoder(tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / "encoder.json").read_text())
    for parts in ({"layer_scale": -1.0}, {"gates": True}, [1]):
        (tmp_path / "encoder.json").write_text(json.dumps(content | {"parts": parts}))
        with pytest.raises(InputError, match="cannot read the encoder"):
            load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("parts", "names"),
    [(BEIT, "LayerScale, no bias of keys, relative position bias"),
     (CAE, "LayerScale, no bias of keys")],
)  # fmt: skip
@pytest.mark.parametrize("form", [Form.timm, Form.mae, Form.huggingface])
def test_what_is_no_plain_vit_is_not_exported(parts: EncoderParts, names: str, form: Form) -> None:
    with pytest.raises(InputError, match=f"this encoder has {names}, and {form} is written for"):
        check_holds(encoder_of(parts), form)


@pytest.mark.parametrize(
    ("parts", "why"),
    [(EncoderParts(relative_positions=True), "relative position bias"),
     (EncoderParts(key_bias=False), "biases of queries and values apart")],
)  # fmt: skip
def test_what_is_no_plain_vit_is_not_imported(
    parts: EncoderParts, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(encoder_of(parts).float().state_dict(), path)
    with pytest.raises(InputError, match=f"{why}.*, which this encoder cannot hold"):
        import_encoder(path, ImportOptions(num_heads=2))
