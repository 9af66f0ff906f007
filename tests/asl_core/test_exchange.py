"""Encoders of others become ours with the same features, and ours theirs; what cannot, is named."""

import argparse
import hashlib
import importlib
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.exporting import WEIGHTS, export_encoder, usage
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import Branch, Convention, Form, ImportOptions
from asl_core.exchange.preprocessing import Preprocessing
from asl_core.methods.imported import adopt_encoder
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.modules.positions import resize_positions
from asl_core.recipes.imported import ImportedRecipe, encoder_differences
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.normalisation import NORMALISATIONS

# read when the file is: the tests hide such variables from each other
MAE_REPOSITORY = os.environ.get("ASL_MAE_REPO")

SIZES: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 3,
}  # fmt: skip
VIT = Vit(image_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_ratio=3)
GRID = 4

State = dict[str, Tensor]


def randomise(state: State, seed: int) -> State:
    """Return tensors of the same shapes of which no two are alike, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.15 * torch.randn(tensor.shape, generator=generator) + (tensor.ndim == 1)
        for name, tensor in state.items()
    }


def timm_model(seed: int = 0, **changes: Any) -> torch.nn.Module:
    model = timm.create_model("vit_base_patch16_224", **{**SIZES, "num_classes": 0, **changes})
    model.load_state_dict(randomise(model.state_dict(), seed))
    return model.eval()


def encoder_state(seed: int = 0) -> State:
    return timm_model(seed).state_dict()


def images(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(9))


def features(path: Path, folder: Path, **options: Any) -> Tensor:
    """Import a checkpoint, save it and load it as a transfer stage does, and run it."""
    state, vit, _ = import_encoder(path, ImportOptions(**options))
    folder.mkdir(exist_ok=True)
    save_encoder(folder, state, vit)
    return load_encoder(folder).eval()(images(vit.image_size))


def sincos(width: int, grid: int, row_first: bool) -> Tensor:
    """Return sin-cos positions written out number by number, (1, 1 + grid^2, width)."""
    rows = [[0.0] * width]
    for row in range(grid):
        for column in range(grid):
            axes = (row, column) if row_first else (column, row)
            rows.append([
                wave(axis * 10000 ** (-k / (width / 4)))
                for axis in axes for wave in (math.sin, math.cos) for k in range(width // 4)
            ])  # fmt: skip
    return torch.tensor([rows])


def mae_checkpoint(*, full: bool) -> dict[str, Any]:
    """Return a checkpoint in the format of the official MAE, with random weights."""
    state = encoder_state() | {"pos_embed": sincos(128, GRID, row_first=False)}
    if not full:
        return {"model": state}
    block = timm_vit.Block(32, 2, qkv_bias=True).state_dict()
    decoder = {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_embed.weight": torch.zeros(32, 128),
        "decoder_embed.bias": torch.zeros(32),
        "decoder_pos_embed": sincos(32, GRID, row_first=False),
        **{f"decoder_blocks.{i}.{name}": tensor for i in (0, 1) for name, tensor in block.items()},
        "decoder_norm.weight": torch.ones(32),
        "decoder_norm.bias": torch.zeros(32),
        "decoder_pred.weight": torch.zeros(192, 32),
        "decoder_pred.bias": torch.zeros(192),
    }
    arguments = argparse.Namespace(mask_ratio=0.75, device="cuda")
    return {"model": state | decoder, "optimizer": {}, "epoch": 799, "args": arguments}


# --- what comes in ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [0, 10], ids=["headless", "with-head"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_timm_vit_with_random_weights_has_equal_features(
    tmp_path: Path, num_classes: int, suffix: str
) -> None:
    model = timm_model(num_classes=num_classes)
    path = tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    torch.testing.assert_close(
        features(path, tmp_path / "ours"), model.forward_features(images()), atol=1e-5, rtol=0
    )
    _, vit, origin = import_encoder(path, ImportOptions())
    assert vit == VIT
    assert (origin.container, origin.prefix) == ("", "")
    assert origin.dropped == ({"head": 2} if num_classes else {})
    assert origin.positions == "learned"


@pytest.mark.parametrize("full", [True, False], ids=["full", "encoder-only"])
def test_an_official_mae_checkpoint_has_equal_features(tmp_path: Path, full: bool) -> None:
    checkpoint = mae_checkpoint(full=full)
    path = tmp_path / "mae_pretrain.pth"
    torch.save(checkpoint, path)
    reference = timm_model()
    reference.load_state_dict({name: checkpoint["model"][name] for name in reference.state_dict()})
    torch.testing.assert_close(
        features(path, tmp_path / "ours"), reference.forward_features(images()), atol=1e-5, rtol=0
    )
    _, _, origin = import_encoder(path, ImportOptions())
    assert origin.container == "model"
    assert origin.positions == "sin-cos, x-first"
    assert origin.beside == (("args", "epoch", "optimizer") if full else ())
    assert origin.dropped == (
        {"decoder_blocks": 24, "decoder_embed": 2, "decoder_norm": 2, "decoder_pos_embed": 1,
         "decoder_pred": 2, "mask_token": 1} if full else {}
    )  # fmt: skip


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(3, 128), "head.last_layer.weight_g": torch.ones(3, 1)}
TEACHER, STUDENT = 1, 2  # seeds
DINO = {
    "student": prefixed("module.backbone.", encoder_state(STUDENT)) | prefixed("module.", HEAD),
    "teacher": prefixed("backbone.", encoder_state(TEACHER)) | HEAD,
    "optimizer": {"param_groups": [{"lr": np.float64(0.1), "step": np.int64(3)}]},
    "args": argparse.Namespace(arch="vit_small", lr=5e-4),
    "dino_loss": {"center": torch.zeros(1, 3)},
    "epoch": 100,
}
IBOT = {
    "teacher": prefixed("backbone.", encoder_state(TEACHER) | {"masked_embed": torch.zeros(1, 128)})
    | HEAD,
    "student": prefixed("module.backbone.", encoder_state(STUDENT)),
}
MOCO = {
    "arch": "vit_base",
    "state_dict": prefixed(
        "module.base_encoder.", encoder_state(STUDENT) | {"head.0.weight": torch.zeros(4, 128)}
    )
    | prefixed("module.momentum_encoder.", encoder_state(TEACHER))
    | prefixed("module.predictor.", {"1.num_batches_tracked": torch.tensor(5)}),
}
LINEAR = {"state_dict": prefixed("module.", encoder_state(STUDENT) | {"head.bias": torch.ones(5)})}


@pytest.mark.parametrize(
    ("checkpoint", "branch", "seed", "place", "dropped"),
    [
        (DINO, None, TEACHER, ("teacher", "backbone."), {"head": 2}),
        (DINO, Branch.teacher, TEACHER, ("teacher", "backbone."), {"head": 2}),
        (DINO, Branch.student, STUDENT, ("student", "module.backbone."), {"module.head": 2}),
        (IBOT, None, TEACHER, ("teacher", "backbone."), {"backbone.masked_embed": 1, "head": 2}),
        (MOCO, None, STUDENT, ("state_dict", "module.base_encoder."),
         {"module.base_encoder.head": 1, "module.momentum_encoder": 30, "module.predictor": 1}),
        (MOCO, Branch.teacher, TEACHER, ("state_dict", "module.momentum_encoder."),
         {"module.base_encoder": 31, "module.predictor": 1}),
        (LINEAR, None, STUDENT, ("state_dict", "module."), {"module.head": 1}),
        ({"model": encoder_state(2), "model_ema": encoder_state(1)}, None, 1, ("model_ema", ""),
         {}),
    ],
    ids=["dino", "dino-teacher", "dino-student", "ibot", "moco", "moco-teacher", "linear", "ema"],
)  # fmt: skip
def test_the_right_encoder_is_found_in_its_containers(
    tmp_path: Path,
    checkpoint: dict[str, Any],
    branch: Branch | None,
    seed: int,
    place: tuple[str, str],
    dropped: dict[str, int],
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path)
    state, vit, origin = import_encoder(path, ImportOptions(branch=branch))
    expected = encoder_state(seed)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert vit == VIT
    assert (origin.container, origin.prefix) == place
    assert origin.dropped == dropped


def test_a_branch_that_is_not_there_and_encoders_that_cannot_be_told_apart_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.pth"
    torch.save(mae_checkpoint(full=False), path)
    with pytest.raises(InputError, match=r"has no teacher: it holds one encoder: model \(30 ten"):
        import_encoder(path, ImportOptions(branch=Branch.teacher))
    own = prefixed("encoder.", encoder_state(1)) | prefixed("teacher_encoder.", encoder_state(2))
    torch.save(own, path)
    for branch, seed in ((Branch.student, 1), (Branch.teacher, 2)):
        state, _, _ = import_encoder(path, ImportOptions(branch=branch))
        assert torch.equal(state["cls_token"], encoder_state(seed)["cls_token"])
    torch.save(prefixed("left.", encoder_state()) | prefixed("right.", encoder_state()), path)
    with pytest.raises(InputError, match=r"2 encoders: left\. \(30 tensors\), right\."):
        import_encoder(path, ImportOptions())


# --- positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("row_first", [False, True], ids=["x-first", "y-first"])
def test_stored_positions_of_either_convention_are_kept_as_they_are(
    tmp_path: Path, row_first: bool
) -> None:
    stored = sincos(128, GRID, row_first)
    torch.save(encoder_state() | {"pos_embed": stored}, tmp_path / "x.pth")
    state, _, origin = import_encoder(tmp_path / "x.pth", ImportOptions())
    assert torch.equal(state["pos_embed"], stored)
    assert origin.positions == f"sin-cos, {'y' if row_first else 'x'}-first"
    with pytest.raises(InputError, match="stores its positions; drop --positions"):
        import_encoder(tmp_path / "x.pth", ImportOptions(positions=Convention.x_first))


@pytest.mark.parametrize(
    ("checkpoint", "given", "row_first"),
    [
        (MOCO, None, True),
        (mae_checkpoint(full=True), None, False),
        (LINEAR, Convention.y_first, True),
        (LINEAR, Convention.x_first, False),
    ],
    ids=["moco", "mae", "given-y", "given-x"],
)
def test_missing_positions_are_rebuilt_in_the_convention_of_their_origin(
    tmp_path: Path, checkpoint: dict[str, Any], given: Convention | None, row_first: bool
) -> None:
    (container,) = {"state_dict", "model"} & checkpoint.keys()
    kept = {n: t for n, t in checkpoint[container].items() if not n.endswith(".pos_embed")}
    kept.pop("pos_embed", None)
    torch.save({container: kept}, tmp_path / "x.pth")
    options = ImportOptions(positions=given, image_size=24)
    state, vit, origin = import_encoder(tmp_path / "x.pth", options)
    assert vit.image_size == 24
    torch.testing.assert_close(state["pos_embed"], sincos(128, 3, row_first))
    assert origin.positions == f"sin-cos, {'y' if row_first else 'x'}-first, rebuilt"


def test_positions_are_resized_to_another_input(tmp_path: Path) -> None:
    torch.save(encoder_state(), tmp_path / "x.pth")
    state, vit, origin = import_encoder(tmp_path / "x.pth", ImportOptions(image_size=56))
    assert (vit.image_size, vit.grid_size) == (56, 7)
    expected = resize_positions(encoder_state()["pos_embed"], (7, 7))
    assert torch.equal(state["pos_embed"], expected)
    assert any("4x4" in note for note in origin.notes)


def test_positions_without_a_row_for_cls_give_equal_features(tmp_path: Path) -> None:
    model = timm_model(no_embed_class=True)
    assert model.state_dict()["pos_embed"].shape == (1, 16, 128)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    torch.testing.assert_close(
        features(tmp_path / "x.pth", tmp_path / "ours"),
        model.forward_features(images()),
        atol=1e-5,
        rtol=0,
    )


# --- what cannot come in ---------------------------------------------------------------------


def without(*names: str) -> State:
    return {name: tensor for name, tensor in encoder_state().items() if name not in names}


REFUSED: dict[str, tuple[State, str]] = {
    "layer scale": (
        encoder_state() | {"blocks.1.ls2.gamma": torch.full((128,), 0.1)},
        "blocks.0.ls1.gamma is missing",
    ),
    "registers": (
        encoder_state() | {"reg_token": torch.zeros(4, 128)},
        "reg_token has no place in this encoder",
    ),
    "distillation": (
        encoder_state() | {"dist_token": torch.zeros(1, 1, 128)},
        "dist_token: a distillation token",
    ),
    "qk norm": (
        encoder_state() | {"blocks.0.attn.q_norm.weight": torch.ones(64)},
        "blocks.0.attn.q_norm.weight: normalised queries and keys",
    ),
    "relative positions": (
        encoder_state() | {"blocks.0.attn.relative_position_bias_table": torch.zeros(49, 2)},
        "relative_position_bias_table: relative position bias",
    ),
    "shared relative positions": (
        encoder_state() | {"rel_pos_bias.relative_position_bias_table": torch.zeros(49, 2)},
        "rel_pos_bias.relative_position_bias_table: relative position bias",
    ),
    "no qkv bias": (without("blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias is missing"),
    "beit": (
        without("blocks.0.attn.qkv.bias") | {"blocks.0.attn.q_bias": torch.zeros(128)},
        "blocks.0.attn.q_bias: biases of queries and values apart",
    ),
    "clip": (
        encoder_state() | {"norm_pre.weight": torch.ones(128)},
        "norm_pre.weight: a norm before the blocks",
    ),
    "unknown": (
        encoder_state() | {"blocks.0.adapter.weight": torch.zeros(2, 2)},
        "blocks.0.adapter.weight: an unknown part",
    ),
    "fine-tuned": (
        without("norm.weight", "norm.bias")
        | {"fc_norm.weight": torch.ones(128), "fc_norm.bias": torch.ones(128)},
        "norm.weight is missing, fc_norm.weight stands in its place",
    ),
    "no norm": (without("norm.weight", "norm.bias"), "norm.weight is missing"),
    "no cls": (without("cls_token"), "cls_token is missing"),
    "no blocks": ({n: t for n, t in encoder_state().items() if "blocks" not in n}, "depth must be"),
    "a gap": (
        {n.replace("blocks.1.", "blocks.2."): t for n, t in encoder_state().items()},
        "blocks.1.norm1.weight is missing",
    ),
    "four channels": (
        encoder_state() | {"patch_embed.proj.weight": torch.zeros(128, 4, 8, 8)},
        "patch_embed.proj.weight is (128, 4, 8, 8), expected (D, 3, p, p)",
    ),
    "a projection of another rank": (
        encoder_state() | {"patch_embed.proj.weight": torch.zeros(())},
        "patch_embed.proj.weight is (), expected (D, 3, p, p)",
    ),
    "a layer of another rank": (
        encoder_state() | {"blocks.0.mlp.fc1.weight": torch.zeros(())},
        "blocks.0.mlp.fc1.weight is (), expected (512, 128)",
    ),
    "other blocks": (
        encoder_state() | {"blocks.1.mlp.fc1.weight": torch.zeros(512, 128)},
        "blocks.1.mlp.fc1.weight is (512, 128), expected (384, 128)",
    ),
    "oblong": (
        encoder_state() | {"pos_embed": torch.zeros(1, 13, 128)},
        "pos_embed is (1, 13, 128), expected (1, 1 + N, 128)",
    ),
    "not finite": (
        encoder_state() | {"norm.bias": torch.full((128,), math.nan)},
        "norm.bias is not finite",
    ),
    "no positions": (without("pos_embed"), "has no pos_embed and nothing says whose it is"),
    "no vit": ({"conv1.weight": torch.zeros(2)}, "no patch_embed.proj.weight (it holds conv1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_encoder_cannot_hold_is_refused_by_name_in_one_line(
    tmp_path: Path, case: str
) -> None:
    state, said = REFUSED[case]
    path = tmp_path / "x.pth"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        import_encoder(path, ImportOptions())
    message = str(caught.value)
    assert said in message
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "; " in message  # what to do


def test_layer_scale_of_ones_does_nothing_and_is_dropped(tmp_path: Path) -> None:
    model = timm_model(init_values=1.0)
    state = model.state_dict()
    ones = {name: torch.ones(128) for name in state if name.endswith("gamma")}
    model.load_state_dict(state | ones)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    torch.testing.assert_close(
        features(tmp_path / "x.pth", tmp_path / "ours"),
        model.forward_features(images()),
        atol=1e-5,
        rtol=0,
    )


class Malicious:
    """An object that asks its reader to write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "x.pth", tmp_path / "trace"
    torch.save(
        {"model": encoder_state(), "args": Malicious(trace)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        InputError, match=r"is refused: reading it would call posix\.mkdir"
    ) as caught:
        import_encoder(path, ImportOptions())
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / "x"
    if form == "safetensors":
        safetensors.torch.save_file(encoder_state(), path)
    else:
        torch.save(encoder_state(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    import_encoder(path, ImportOptions())
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cannot read .*truncated") as caught:
        import_encoder(path, ImportOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not found", b"PK", b"\x80\x04}q"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read") as caught:
        import_encoder(path, ImportOptions())
    assert "\n" not in str(caught.value)


def test_a_folder_a_missing_file_and_a_lone_tensor_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(InputError, match="is not a file"):
            import_encoder(path, ImportOptions())
    torch.save(torch.zeros(3), tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds a Tensor, expected tensors by name"):
        import_encoder(tmp_path / "x.pth", ImportOptions())


# --- heads -----------------------------------------------------------------------------------


def vit_state(width: int, patch: int = 4, grid: int = 2) -> State:
    vit = Vit(image_size=patch * grid, patch_size=patch, embed_dim=width, depth=1, num_heads=1,
              mlp_ratio=8 / width)  # fmt: skip
    with torch.device("meta"):
        shapes = Encoder(vit).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)]
)
def test_heads_follow_from_the_width(tmp_path: Path, width: int, heads: int) -> None:
    torch.save(vit_state(width), tmp_path / "x.pth")
    _, vit, origin = import_encoder(tmp_path / "x.pth", ImportOptions())
    assert vit.num_heads == heads
    assert origin.num_heads_from == f"assumed: {width // heads} per head"
    assert any("--num-heads" in note for note in origin.notes) == (width == 384)


def test_the_small_vit_of_moco_v3_has_twelve_heads(tmp_path: Path) -> None:
    torch.save(prefixed("module.base_encoder.", vit_state(384)), tmp_path / "x.pth")
    _, vit, origin = import_encoder(tmp_path / "x.pth", ImportOptions())
    assert (vit.num_heads, origin.num_heads_from) == (12, "assumed: MoCo v3's ViT-S")


def test_heads_that_are_given_count_and_must_divide_the_width(tmp_path: Path) -> None:
    torch.save(vit_state(384), tmp_path / "x.pth")
    _, vit, origin = import_encoder(tmp_path / "x.pth", ImportOptions(num_heads=12))
    assert (vit.num_heads, origin.num_heads_from) == (12, "given")
    with pytest.raises(InputError, match="not divisible by num_heads"):
        import_encoder(tmp_path / "x.pth", ImportOptions(num_heads=7))
    torch.save(vit_state(96), tmp_path / "x.pth")
    with pytest.raises(InputError, match="give --num-heads"):
        import_encoder(tmp_path / "x.pth", ImportOptions())


# --- what goes out ---------------------------------------------------------------------------


def preprocessing(vit: Vit) -> Preprocessing:
    mean, std = NORMALISATIONS["imagenet"]
    return Preprocessing(image_size=vit.image_size, mean=mean, std=std, whole=True)


def our_encoder(vit: Vit) -> Encoder:
    encoder = Encoder(vit).eval()
    encoder.load_state_dict(randomise(encoder.state_dict(), 5))
    return encoder


OWN = [
    MODELS["vit-demo"],
    Vit(image_size=24, patch_size=8, embed_dim=36, depth=3, num_heads=3, mlp_ratio=2.5),
]


@pytest.mark.parametrize("vit", OWN, ids=["vit-demo", "odd"])
@pytest.mark.parametrize("form", [Form.timm, Form.mae])
def test_ours_to_timms_names_and_back(tmp_path: Path, vit: Vit, form: Form) -> None:
    encoder = our_encoder(vit)
    export_encoder(encoder, form, tmp_path, preprocessing(vit))
    state, again, origin = import_encoder(tmp_path / WEIGHTS[form], ImportOptions())
    assert encoder_differences(again, vit) == {}
    assert origin.num_heads_from == "stored"
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())


# --- as an experiment ------------------------------------------------------------------------


def test_an_imported_encoder_is_adopted_only_if_it_is_the_one_that_is_named(tmp_path: Path) -> None:
    source, out = tmp_path / "encoder", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    save_encoder(source, encoder_state(), VIT)
    weights = source / "encoder.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    recipe = ImportedRecipe(path="unused", sha256=digest, dataset="icons", model=VIT)
    adopt_encoder(source, recipe, out)
    assert (out / "encoder.safetensors").read_bytes() == weights.read_bytes()
    assert encoder_differences(load_encoder(out).vit, VIT) == {}

    other = ImportedRecipe(path="unused", sha256=digest, dataset="icons")
    with pytest.raises(InputError, match=r"has image_size 32, .*embed_dim 128.* `model` in params"):
        adopt_encoder(source, other, out)
    save_encoder(source, encoder_state(3), VIT)
    with pytest.raises(InputError, match=f"sha256 .*, params.yaml says {digest}") as caught:
        adopt_encoder(source, recipe, out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"path": ""}, "path is empty"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_a_wrong_field_of_the_recipe_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImportedRecipe(**{"path": "x", "sha256": "0" * 64, "dataset": "icons", **fields})


# --- beside the official code ----------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.skipif(
    MAE_REPOSITORY is None, reason="set ASL_MAE_REPO to a checkout of the official MAE repository"
)
def test_the_official_mae_and_ours_read_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Block(timm_vit.Block):
        """As in the timm of that time, which had one more argument."""

        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert MAE_REPOSITORY is not None
    monkeypatch.setattr(timm_vit, "Block", Block)
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.syspath_prepend(MAE_REPOSITORY)
    for name in ("models_mae", "models_vit", "util", "util.pos_embed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    official = importlib.import_module("models_mae").MaskedAutoencoderViT(
        **SIZES, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, norm_layer=norm
    )
    state = randomise(official.state_dict(), 3)
    state |= {name: t for name, t in official.state_dict().items() if name.endswith("pos_embed")}
    official.load_state_dict(state)
    torch.save({"model": official.state_dict(), "epoch": 799}, tmp_path / "mae.pth")
    latent, _, restore = official.forward_encoder(images(), 0.0)
    patches = torch.gather(latent[:, 1:], 1, restore[..., None].expand(-1, -1, 128))
    ours = features(tmp_path / "mae.pth", tmp_path / "ours")
    torch.testing.assert_close(ours[:, 0], latent[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[:, 1:], patches, atol=1e-5, rtol=0)
    origin = import_encoder(tmp_path / "mae.pth", ImportOptions())[2]
    assert origin.positions == "sin-cos, x-first"

    export_encoder(load_encoder(tmp_path / "ours"), Form.mae, tmp_path, preprocessing(VIT))
    back = tmp_path / WEIGHTS[Form.mae]
    models_vit = importlib.import_module("models_vit")
    model = models_vit.VisionTransformer(**SIZES, qkv_bias=True, norm_layer=norm)
    stored = torch.load(back, weights_only=True)["model"]
    left = model.load_state_dict(stored, strict=False)
    assert (set(left.missing_keys), left.unexpected_keys) == ({"head.weight", "head.bias"}, [])
    names: dict[str, Any] = {"models_vit": models_vit, "torch": torch, "partial": partial}
    exec(usage(VIT, Form.mae, str(tmp_path), preprocessing(VIT)), names)  # as it is printed
    for reader in (model, names["model"]):
        cls = reader.eval().forward_features(images())
        torch.testing.assert_close(cls, ours[:, 0], atol=1e-5, rtol=0)
