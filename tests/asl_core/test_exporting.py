"""What others read of an exported folder: the same features, the same preprocessing."""

import dataclasses
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.models import vision_transformer as timm_vit
from torch import Tensor

from asl_core.data.samples import Sample
from asl_core.data.views import evaluation_transform, normalise
from asl_core.errors import InputError
from asl_core.exchange import graph
from asl_core.exchange.exporting import WEIGHTS, check_holds, export_encoder, usage
from asl_core.exchange.origin import Form
from asl_core.exchange.preprocessing import Preprocessing
from asl_core.exchange.read_back import compare_with_reader
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import MODELS, PLAIN, EncoderParts, Vit
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.transfer.features import frozen_features

VITS = {
    "patch 4": MODELS["vit-demo-4"],
    "odd": Vit(image_size=24, patch_size=8, embed_dim=36, depth=3, num_heads=3, mlp_ratio=2.5),
}
MEAN, STD = NORMALISATIONS["cifar10"]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


def drawn(vit: Vit, parts: EncoderParts = PLAIN) -> Encoder:
    """Return an encoder all of whose tensors are drawn, so that none can be left out unseen."""
    encoder = Encoder(vit, parts).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in encoder.named_parameters():
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise if "norm" in name or "pos" in name else 0.3 * noise)
    return encoder


def images(vit: Vit, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, vit.image_size, vit.image_size, generator=generator)


def prepared(vit: Vit, *, whole: bool = True) -> Preprocessing:
    return Preprocessing(image_size=vit.image_size, mean=MEAN, std=STD, whole=whole)


def export(encoder: Encoder, form: Form, folder: Path, *, whole: bool = True) -> dict[str, Any]:
    """Export, run the Python that is printed, and return what it has defined."""
    export_encoder(encoder, form, folder, prepared(encoder.vit, whole=whole))
    names: dict[str, Any] = {"images": images(encoder.vit).numpy(), "torch": torch,
                             "partial": partial, "models_vit": timm_vit}  # fmt: skip
    printed = usage(encoder.vit, form, str(folder), prepared(encoder.vit, whole=whole))
    exec(printed, names)
    return {**names, "last": printed.splitlines()[-1]}


vits = pytest.mark.parametrize("vit", VITS.values(), ids=VITS.keys())


@vits
@torch.no_grad()
def test_timm_reads_by_the_folder_and_by_the_weights_alone(tmp_path: Path, vit: Vit) -> None:
    encoder = drawn(vit)
    names = export(encoder, Form.timm, tmp_path)
    plain = eval(names["last"], {"timm": timm}).eval()
    for model in (names["model"], plain):
        tokens = model.forward_features(images(vit))
        torch.testing.assert_close(tokens, encoder(images(vit)), **CLOSE)
        torch.testing.assert_close(model(images(vit)), tokens[:, 0])  # [cls], no head
        before = model.forward_intermediates(
            images(vit), indices=1, output_fmt="NLC", intermediates_only=True, norm=False
        )[0]
        mean = F.layer_norm(before.mean(dim=1), before.shape[-1:], eps=1e-6)
        ours = frozen_features(encoder, images(vit), ("cls", "mean"))
        torch.testing.assert_close(torch.stack([tokens[:, 0], mean], dim=1), ours, **CLOSE)
        config = resolve_model_data_config(model)
        assert (tuple(config["mean"]), tuple(config["std"])) == (MEAN, STD)
        assert tuple(config["input_size"]) == (3, vit.image_size, vit.image_size)
        assert (config["crop_pct"], config["interpolation"]) == (1.0, "bicubic")


def test_a_standard_size_is_read_by_its_name_alone() -> None:
    for size, name in {"vit-s": "small_patch16", "vit-b": "base_patch16", "vit-l": "large_patch16",
                       "vit-h": "huge_patch14"}.items():  # fmt: skip
        line = usage(MODELS[size], Form.timm, "x", prepared(MODELS[size], whole=False))
        assert line.splitlines()[-1].startswith(
            f'timm.create_model("vit_{name}_224", num_classes=0, '
            'checkpoint_path="x/model.safetensors", pretrained_cfg_overlay='
        )
    line = usage(MODELS["vit-b"], Form.mae, "x", prepared(MODELS["vit-b"]))
    assert line.startswith("model = models_vit.vit_base_patch16(); ")


@vits
@torch.no_grad()
def test_the_printed_line_for_mae_reads_its_checkpoint(tmp_path: Path, vit: Vit) -> None:
    encoder = drawn(vit)
    model = export(encoder, Form.mae, tmp_path)["model"].eval()  # timm's class, as MAE's derives
    torch.testing.assert_close(model.forward_features(images(vit)), encoder(images(vit)), **CLOSE)


@vits
@torch.no_grad()
def test_transformers_reads_all_tensors_and_computes_the_same(tmp_path: Path, vit: Vit) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = drawn(vit)
    found = export(encoder, Form.huggingface, tmp_path)["model"](
        pixel_values=images(vit), output_hidden_states=True
    )
    torch.testing.assert_close(found.last_hidden_state, encoder(images(vit)), **CLOSE)
    assert found.pooler_output is None
    before = found.hidden_states[-1][:, 1:]
    mean = F.layer_norm(before.mean(dim=1), before.shape[-1:], eps=1e-6)
    ours = frozen_features(encoder, images(vit), ("mean",))[:, 0]
    torch.testing.assert_close(mean, ours, **CLOSE)
    _, info = transformers.ViTModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("form", [Form.timm, Form.huggingface])
def test_their_preprocessing_is_that_of_the_evaluations(
    tmp_path: Path, form: Form, whole: bool
) -> None:
    if form is Form.huggingface:
        pytest.importorskip("transformers")
    vit = VITS["patch 4"]
    names = export(drawn(vit), form, tmp_path, whole=whole)
    # a smooth picture: kernels of Pillow and torch differ by a grey value at edges
    side = np.arange(vit.image_size if whole else 91)
    grid = np.stack(
        [side[:, None] + side, side[:, None] * 2 + 0 * side, 3 + 0 * side[:, None] + side]
    )
    pixels = (grid.transpose(1, 2, 0) % 256).astype(np.uint8)
    sample = Sample(0, 0, torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    cropped = evaluation_transform(vit.image_size)(sample).image
    ours = normalise(cropped[None], MEAN, STD)[0]
    picture = Image.fromarray(pixels)
    if form is Form.timm:
        theirs = names["transform"](picture)
    else:
        theirs = names["processor"](picture, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == ours.shape
    grey = 1 / 255 / min(STD)
    assert (theirs - ours).abs().max() <= (1e-5 if whole else 2 * grey)


def test_onnx_runtime_gives_cls_mean_and_patches_for_any_batch(tmp_path: Path) -> None:
    vit = VITS["patch 4"]
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = drawn(vit)
    names = export(encoder, Form.onnx, tmp_path)
    with torch.no_grad():
        ours = encoder(images(vit))
    torch.testing.assert_close(torch.from_numpy(names["cls"]), ours[:, 0], **CLOSE)
    torch.testing.assert_close(torch.from_numpy(names["patch_tokens"]), ours[:, 1:], **CLOSE)
    session = onnxruntime.InferenceSession(tmp_path / WEIGHTS[Form.onnx])
    for count in (1, 5):
        with torch.no_grad():
            pooled = frozen_features(encoder, images(vit, count), ("cls", "mean"))
        found = session.run(["cls", "mean_pooled"], {"pixel_values": images(vit, count).numpy()})
        theirs = torch.from_numpy(np.stack(found, axis=1))
        torch.testing.assert_close(theirs, pooled, **CLOSE)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["mean"]) == list(MEAN)
    assert json.loads(said["std"]) == list(STD)
    assert (said["image_size"], said["interpolation"]) == (str(vit.image_size), "bicubic")


ODD = VITS["odd"]
UNUSUAL = {
    "LayerScale, a gated MLP, registers": (
        dataclasses.replace(ODD, registers=2, layer_scale=0.1, mlp="swiglu"), PLAIN,
    ),
    "no bias of keys, relative position bias": (
        ODD, EncoderParts(key_bias=False, relative_positions=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "made"), UNUSUAL.items(), ids=["DINOv2", "BEiT"])
def test_what_a_form_cannot_hold_is_refused_and_a_graph_holds_it(
    tmp_path: Path, parts: str, made: tuple[Vit, EncoderParts]
) -> None:
    encoder = drawn(*made)
    for form in (Form.timm, Form.mae, Form.huggingface):
        with pytest.raises(InputError, match=f"has {parts}, and {form} is written for plain"):
            export_encoder(encoder, form, tmp_path, prepared(made[0]))
    assert not list(tmp_path.iterdir())
    if importlib.util.find_spec("onnxruntime"):
        export_encoder(encoder, Form.onnx, tmp_path, prepared(made[0]))
        assert compare_with_reader(encoder, Form.onnx, tmp_path).difference < 1e-5


def test_a_part_that_no_field_tells_of_is_refused_by_its_tensor() -> None:
    encoder = drawn(VITS["odd"])
    encoder.register_buffer("extra_table", torch.zeros(3))
    with pytest.raises(InputError, match="has extra_table, and timm"):
        check_holds(encoder, Form.timm)


def test_a_reader_that_computes_something_else_is_noticed(tmp_path: Path) -> None:
    encoder = drawn(VITS["odd"])
    export_encoder(encoder, Form.timm, tmp_path, prepared(VITS["odd"]))
    assert compare_with_reader(encoder, Form.timm, tmp_path).difference < 1e-5
    with torch.no_grad():
        encoder.norm.bias[0] += 0.1
    with pytest.raises(InputError, match=r"timm [\d.]+ reads another encoder .* timm: .* 1\.0e-01"):
        compare_with_reader(encoder, Form.timm, tmp_path)


def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = drawn(VITS["odd"])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    with pytest.raises(InputError, match=r"as onnx needs onnx; pip install 'asl-pipe\[onnx\]'"):
        graph.write_graph(encoder, tmp_path / "model.onnx", prepared(VITS["odd"]))
    export_encoder(encoder, Form.huggingface, tmp_path, prepared(VITS["odd"]))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers, .*asl-pipe\[huggingface\]"):
        compare_with_reader(encoder, Form.huggingface, tmp_path)
