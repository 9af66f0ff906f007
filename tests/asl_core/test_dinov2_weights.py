"""Encoders of DINOv2: registers, LayerScale, SwiGLU, patch 14; features are the original's."""

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models.vision_transformer as timm_vit
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn

from asl_core.errors import InputError
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import ImportOptions
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.models import Vit

DINOV2_REPOSITORY = os.environ.get("ASL_DINOV2_REPO")
State = dict[str, Tensor]


def randomise(model: nn.Module) -> Any:
    """Give a model numbers of which no two are alike, and factors that are not small."""
    generator = torch.Generator().manual_seed(3)
    state = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) + (tensor.ndim == 1)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval()


def small(**changes: Any) -> Any:
    """Return timm's ViT-S/14 of DINOv2 with registers, for images of 56 pixels."""
    name = "vit_small_patch14_reg4_dinov2"
    return randomise(timm.create_model(name, img_size=56, num_classes=0, **changes))


def gated() -> Any:
    """Return as tiny a model as timm builds DINOv2's ViT-g."""
    layer: Any = SwiGLUPacked
    model = timm_vit.VisionTransformer(
        img_size=28, patch_size=14, embed_dim=48, depth=2, num_heads=4, init_values=1e-5,
        mlp_ratio=2.66667 * 2, mlp_layer=layer, act_layer=nn.SiLU, reg_tokens=4,
        no_embed_class=True, num_classes=0,
    )  # fmt: skip
    return randomise(model)


def as_dinov2(model: Any, chunks: int = 0) -> State:
    """Return a timm model's weights as DINOv2 names them, positions of [cls] and all."""
    named: State = {"mask_token": torch.zeros(1, model.embed_dim)}
    per_chunk = len(model.blocks) // chunks if chunks else 1
    for name, tensor in model.state_dict().items():
        name = name.replace("reg_token", "register_tokens")
        if model.blocks[0].mlp.fc1.out_features == 2 * model.blocks[0].mlp.fc2.in_features:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        if chunks and name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            name = f"blocks.{int(block) // per_chunk}.{block}.{rest}"
        named[name] = tensor
    own = torch.full((1, 1, model.embed_dim), 0.25)  # of [cls]: timm adds it to cls_token
    named["cls_token"] = named["cls_token"] - own
    named["pos_embed"] = torch.cat([own, named["pos_embed"]], dim=1)
    return named


def ours(path: Path, folder: Path, **options: Any) -> Encoder:
    state, vit, _ = import_encoder(path, ImportOptions(**options))
    folder.mkdir(exist_ok=True)
    save_encoder(folder, state, vit)
    return load_encoder(folder).eval()


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(9))


def largest_difference(model: Any, encoder: Encoder, size: int) -> float:
    with torch.no_grad():
        theirs = model.forward_features(images(size))  # (B, 1 + 4 + N, D)
        theirs = torch.cat([theirs[:, :1], theirs[:, 5:]], dim=1)
        return float((encoder(images(size)) - theirs).abs().max())


@pytest.mark.parametrize("naming", ["timm", "dinov2", "chunked, in a training checkpoint"])
def test_features_of_a_small_dinov2_are_timms(naming: str, tmp_path: Path) -> None:
    model, path = small(), tmp_path / "x.pth"
    state: dict[str, Any] = model.state_dict() if naming == "timm" else as_dinov2(model)
    if naming.startswith("chunked"):
        teacher = {f"backbone.{name}": t for name, t in as_dinov2(model, chunks=4).items()}
        state = {"teacher": teacher | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}}
    torch.save(state, path)
    encoder = ours(path, tmp_path / "ours")
    assert encoder.vit == Vit(
        image_size=56, patch_size=14, embed_dim=384, num_heads=6, registers=4, layer_scale=1e-5
    )
    assert largest_difference(model, encoder, 56) < 1e-5


@pytest.mark.parametrize("naming", ["timm", "dinov2"])
def test_features_of_a_gated_dinov2_are_timms(naming: str, tmp_path: Path) -> None:
    model, path = gated(), tmp_path / "x.pth"
    torch.save(model.state_dict() if naming == "timm" else as_dinov2(model), path)
    encoder = ours(path, tmp_path / "ours", num_heads=4)
    assert (encoder.vit.mlp, encoder.vit.registers) == ("swiglu", 4)
    assert encoder.vit.mlp_ratio == pytest.approx(128 / 48)
    assert largest_difference(model, encoder, 28) < 1e-5


def test_positions_are_resized_for_another_size(tmp_path: Path) -> None:
    torch.save(small(depth=1).state_dict(), tmp_path / "x.pth")
    encoder = ours(tmp_path / "x.pth", tmp_path / "ours", image_size=28)
    assert encoder.pos_embed.shape == (1, 1 + 4, 384)
    assert encoder(images(28)).shape == (2, 1 + 4, 384)


@pytest.mark.parametrize(
    ("extra", "why"),
    [({"storage_tokens": (1, 4, 384)}, "storage_tokens: of DINOv3, .*rotary positions"),
     ({"rope_embed.periods": (16,)}, "rope_embed.periods: of DINOv3")],
)  # fmt: skip
def test_dinov3_is_refused_for_what_it_has(
    extra: dict[str, tuple[int, ...]], why: str, tmp_path: Path
) -> None:
    state = small(depth=1).state_dict()
    del state["reg_token"], state["pos_embed"]
    torch.save({n: torch.zeros(s) for n, s in extra.items()} | state, tmp_path / "x.pth")
    with pytest.raises(InputError, match=why):
        import_encoder(tmp_path / "x.pth", ImportOptions())


def test_dinov3_in_timms_names_is_refused(tmp_path: Path) -> None:
    state = small(depth=1).state_dict()
    del state["pos_embed"]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match="registers and no pos_embed: rotary positions"):
        import_encoder(tmp_path / "x.pth", ImportOptions())


@pytest.mark.filterwarnings("ignore:xFormers is not available")
@pytest.mark.skipif(DINOV2_REPOSITORY is None, reason="ASL_DINOV2_REPO names no checkout")
@pytest.mark.parametrize("kind", ["mlp", "swiglufused"])
@pytest.mark.parametrize("registers", [0, 4])
def test_features_are_those_of_the_official_code(
    kind: str, registers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(DINOV2_REPOSITORY), *sys.path])
    official = importlib.import_module("dinov2.models.vision_transformer")
    attention = importlib.import_module("dinov2.layers.attention")
    block = partial(official.Block, attn_class=attention.Attention)
    model = official.DinoVisionTransformer(
        img_size=56, patch_size=14, embed_dim=128, depth=4, num_heads=2, init_values=1e-5,
        ffn_layer=kind, block_chunks=2, num_register_tokens=registers, block_fn=block,
    )  # fmt: skip
    model = randomise(model)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    encoder = ours(tmp_path / "x.pth", tmp_path / "ours")
    with torch.no_grad():
        theirs, tokens = model.forward_features(images(56)), encoder(images(56))
    differences = (
        (theirs["x_norm_clstoken"] - tokens[:, 0]).abs().max(),
        (theirs["x_norm_patchtokens"] - tokens[:, 1:]).abs().max(),
    )
    assert max(map(float, differences)) < 1e-5
