"""Checkpoints as people have them: each is imported with equal weights, or refused in one line."""

import argparse
import json
import shlex
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import Branch, ImportOptions, Origin
from asl_core.modules.encoder import Encoder
from asl_core.modules.positions import sincos_positions
from asl_core.recipes.models import Vit

VIT = Vit(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
WIDTH = VIT.embed_dim
State = dict[str, Tensor]


def weights(seed: int = 1) -> State:
    with torch.device("meta"):
        shapes = Encoder(VIT).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in shapes.items()}


OURS, OTHER = weights(1), weights(2)


def under(prefix: str, state: State = OURS) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def changed(change: Callable[[Tensor], Tensor]) -> State:
    return {name: change(tensor) for name, tensor in OURS.items()}


def oblong_sincos(rows: int, columns: int) -> Tensor:
    side = max(rows, columns)
    grid = sincos_positions(WIDTH, side)[:, 1:].unflatten(1, (side, side))[:, :rows, :columns]
    return torch.cat([torch.zeros(1, 1, WIDTH), grid.flatten(1, 2)], dim=1)


def read(path: Path, **options: Any) -> tuple[State, Origin]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, vit, origin = import_encoder(path, ImportOptions(**options))
    assert vit == VIT
    return state, origin


# --- accepted ----------------------------------------------------------------------------------

PAIRS = {
    "momentum_backbone": (under("backbone.") | under("momentum_backbone.", OTHER), ()),
    "momentum_": (OURS | under("momentum_", OTHER), ()),
    "encoder_q and encoder_k": (under("m.encoder_q.") | under("m.encoder_k.", OTHER), ()),
    "online and target": (under("online_encoder.") | under("target_encoder.", OTHER), ()),
    "student_encoder": (under("student_encoder.") | under("teacher_encoder.", OTHER), ()),
    "student_": (under("student_") | under("teacher_", OTHER), "teacher_"),
    "student.": (under("student.") | under("teacher.", OTHER), "teacher."),
    "module.student.": (
        under("module.student.backbone.") | under("module.teacher.backbone.", OTHER),
        "module.teacher.backbone.",
    ),
    "model. and ema.": (under("model.") | under("ema.", OTHER), "ema."),
    "model and ema": ({"model": OURS, "ema": OTHER}, "ema"),
    "one in the other": (under("net.") | under("net.teacher_net.", OTHER), ()),
}


@pytest.mark.parametrize("case", PAIRS)
def test_of_two_encoders_each_can_be_had_and_a_choice_is_said(tmp_path: Path, case: str) -> None:
    """Where it is not clear which one counts, the options that the message names choose it."""
    content, preferred = PAIRS[case]
    path = tmp_path / "x.pth"
    torch.save(content, path)
    for branch, expected in ((Branch.student, OURS), (Branch.teacher, OTHER)):
        state, _ = read(path, branch=branch)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    if preferred:
        state, origin = read(path)
        assert all(torch.equal(state[name], OTHER[name]) for name in OTHER)
        assert any(f"took {preferred};" in note for note in origin.notes)
        return
    with pytest.raises(InputError, match="holds 2 encoders") as caught:
        read(path)
    said = str(caught.value)
    assert said.count(f"({len(OURS)} tensors)") == 2
    assert said.endswith("; give --branch student or --branch teacher")


@pytest.mark.parametrize(
    "content",
    [
        under("left.") | under("right.", OTHER),
        {"a": under("net."), "b": under("net.", OTHER)},
        OURS | under("_orig_mod.", OTHER),
    ],
    ids=["left and right", "two containers", "compiled and not"],
)
def test_prefixes_that_say_nothing_are_named_with_the_option_that_takes_them(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds 2 encoders") as caught:
        read(path)
    offered = shlex.split(str(caught.value).partition("; give ")[2].replace(" or ", " "))
    assert offered[::2] == ["--prefix", "--prefix"]
    for prefix, expected in zip(offered[1::2], (OURS, OTHER), strict=True):
        state, _ = read(path, prefix=prefix)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match="has no encoder at 'middle': it holds 2 encoders") as no:
        read(path, prefix="middle")
    assert str(no.value).endswith(str(caught.value).partition(";")[2])


ACCEPTED = {
    "module.": under("module."),
    "backbone.": under("backbone."),
    "_orig_mod.": under("_orig_mod."),
    "model.": under("model."),
    "ema.": under("ema."),
    "momentum_ alone": under("momentum_"),
    "all at once": under("module._orig_mod.backbone."),
    "sharded": {n.replace(".0.", ".0._fsdp_wrapped_module."): t for n, t in OURS.items()},
    "checkpointed": {
        n.replace(".1.", ".1._checkpoint_wrapped_module."): t for n, t in OURS.items()
    },
    "containers in containers": {"state": {"last": {"net": OURS}}, "step": 3},
    "parameters": changed(torch.nn.Parameter),
    "names that are numbers beside it": {**OURS, 3: torch.zeros(2)},
    "the argument None": {"model": OURS, "model_ema": None, "args": {"img_size": None}},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_known_form_is_imported_with_equal_weights(tmp_path: Path, case: str) -> None:
    torch.save(ACCEPTED[case], tmp_path / "x.pth")
    state, _ = read(tmp_path / "x.pth")
    assert state.keys() == OURS.keys()
    assert all(torch.equal(state[name], OURS[name]) for name in OURS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_precision_is_converted_and_said(
    tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    stored, path = changed(lambda t: t.to(dtype)), tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(stored, path)
    else:
        safetensors.torch.save_file(stored, path)
    state, origin = read(path)
    assert all(torch.equal(state[name], stored[name].float()) for name in OURS)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    kind = str(dtype).removeprefix("torch.")
    assert f"stored in {kind}, converted to float32" in origin.notes


def test_a_square_grid_is_stated_or_said_to_be_taken_for_one(tmp_path: Path) -> None:
    torch.save(OURS, tmp_path / "x.pth")
    assumed = "positions taken for a square grid, 4x4: the file does not say"
    assert assumed in read(tmp_path / "x.pth")[1].notes
    for arguments in ({"img_size": 32}, argparse.Namespace(input_size=(3, 32, 32))):
        torch.save({"model": OURS, "args": arguments}, tmp_path / "x.pth")
        assert not any("4x4" in note for note in read(tmp_path / "x.pth")[1].notes)
    torch.save({"model": OURS, "args": {"img_size": 224}}, tmp_path / "x.pth")
    other = "the file states images of 224x224 pixels, its positions are 4x4"
    assert other in read(tmp_path / "x.pth")[1].notes
    safetensors.torch.save_file(OURS, tmp_path / "x.safetensors", {"img_size": "32"})
    assert assumed not in read(tmp_path / "x.safetensors")[1].notes


# --- refused -----------------------------------------------------------------------------------

ONE = torch.zeros(1)
REFUSED_CONTENT: dict[str, tuple[Any, str]] = {
    "2x8 stated": ({"model": OURS, "args": argparse.Namespace(img_size=[16, 64])},
                   "states images of 16x64 pixels: its positions are for 2x8 patches; only square"),
    "2x8 sin-cos": (OURS | {"pos_embed": oblong_sincos(2, 8)},
                    "pos_embed are sin-cos positions of 2x8 patches; only square grids"),
    "8x2 sin-cos": (OURS | {"pos_embed": oblong_sincos(8, 2)}, "sin-cos positions of 8x2 patches"),
    "3x4": (OURS | {"pos_embed": torch.zeros(1, 13, WIDTH)}, "only square grids can be imported"),
    "no positions left": (OURS | {"pos_embed": torch.zeros(1, 0, WIDTH)}, "only square grids"),
    "flat positions": (OURS | {"pos_embed": torch.zeros(17, WIDTH)}, "expected (1, 1 + N, 64)"),
    "8-bit numbers": (changed(lambda t: t.to(torch.int8)), "is of the kind int8, expected dense"),
    "complex numbers": (changed(lambda t: t.to(torch.complex64)), "is of the kind complex64"),
    "sparse": (changed(lambda t: t.to_sparse() if t.ndim == 2 else t), "of the kind sparse_coo"),
    "without data": (changed(lambda t: t.to("meta")), "is of the kind meta"),
    "one number repeated": (OURS | {"blocks.0.mlp.fc1.weight": ONE.expand(10**6, 10**6)},
                            "claims (1000000, 1000000), the file has fewer numbers"),
    "infinite in half": (changed(lambda t: (t * 1e6).half()), "is not finite"),
    "not a number": (OURS | {"norm.bias": torch.full((WIDTH,), torch.nan)}, "norm.bias is not fin"),
    "no width": (OURS | {"cls_token": torch.zeros(1, 1, 0)}, "cls_token is (1, 1, 0), expected"),
    "no filters": (OURS | {"patch_embed.proj.weight": torch.zeros(0, 3, 8, 8)}, "expected (D, 3"),
    "oblong patches": (OURS | {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)}, "square patc"),
    "a narrower block": (OURS | {"blocks.1.norm1.weight": torch.zeros(32)}, "(32,), expected (64,"),
    "blocks missing": ({n.replace(".1.", ".7."): t for n, t in OURS.items()},
                       "blocks.1.norm1.weight is missing, though there are blocks up to 7"),
    "block 999999999": (OURS | {"blocks.999999999.norm1.weight": ONE}, "an unknown part"),
    "twice after unwrapping": (OURS | {"blocks.0._orig_mod.norm1.bias": ONE},
                               "holds blocks.0.norm1.bias twice, wrapped and not"),
    "no [cls]": ({n: t for n, t in OURS.items() if n != "cls_token"}, "cls_token is missing"),
    "registers": (OURS | {"reg_token": torch.zeros(4, WIDTH)}, "reg_token has no place in this"),
    "wide registers": (OURS | {"reg_token": torch.zeros(1, 4, 32)}, "reg_token is (1, 4, 32), exp"),
    "SwiGLU": (OURS | {"blocks.0.mlp.w1.weight": ONE}, "a gated MLP, which this encoder"),
    "half of SwiGLU": (OURS | {"blocks.0.mlp.w12.weight": ONE}, "mlp.fc1.weight under two names"),
    "LayerScale": (OURS | {"blocks.0.ls1.gamma": torch.full((WIDTH,), 0.1)}, "gamma is missing"),
    "no bias": ({n: t for n, t in OURS.items() if "qkv.bias" not in n}, "qkv.bias is missing"),
    "a ResNet": ({"layer1.0.conv1.weight": ONE, "layer1.1.conv1.weight": ONE, "fc.bias": ONE},
                 "(it holds layer1: 2 tensors, fc: 1 tensor): not a ViT under timm's names"),
    "only an optimizer": ({"optimizer": {"state": {0: {"step": 3}}}, "epoch": 3},
                          "(it holds optimizer, epoch): not a ViT"),
    "nothing": ({}, "(it holds nothing)"),
    "a list": ([1, 2], "holds a list, expected tensors by name; save model.state_dict()"),
    "None": (None, "holds a NoneType, expected tensors by name"),
    "names that are numbers": ({0: ONE}, "(it holds 0)"),
    "a line end in a name": ({"a\nb": ONE}, "holds the name 'a\\nb'"),
}  # fmt: skip


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    said = str(caught.value)
    assert said.startswith((str(path), f"cannot read {path}"))
    assert said.isprintable()
    assert "; " in said  # what to do
    return said


@pytest.mark.parametrize("case", REFUSED_CONTENT)
def test_what_an_encoder_cannot_be_made_of_is_one_line(tmp_path: Path, case: str) -> None:
    content, said = REFUSED_CONTENT[case]
    torch.save(content, tmp_path / "x.pth")
    assert said in refusal(tmp_path / "x.pth")


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + b"\0" * 12


REFUSED_BYTES = {
    "empty": (b"", "(it is empty)"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "is a web page or XML and no checkpoint; fetch"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
    "gzip": (b"\x1f\x8b\x08" + b"0" * 90, "is compressed; unpack it with gunzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"0" * 90, "is an HDF5 file; load it"),
    "NumPy": (b"\x93NUMPY" + b"0" * 90, "is a NumPy array, expected tensors by name"),
    "text": (b"hello, world", "no torch file); it is truncated or no torch or safetensors file"),
    "JSON": (json.dumps({"model": 1}).encode(), "cannot read"),
    "a long header": (struct.pack("<Q", 2**60) + b"{}", "header too large"),
    "a torn header": (header("{x"), "invalid JSON in header"),
    "a negative size": (
        header('{"x":{"dtype":"F32","shape":[-3],"data_offsets":[0,12]}}'), "integer `-3`"
    ),
    "offsets outside": (
        header('{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'), "cannot read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_BYTES)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, case: str) -> None:
    content, said = REFUSED_BYTES[case]
    (tmp_path / "x.pth").write_bytes(content)
    assert said in refusal(tmp_path / "x.pth")


class Small(torch.nn.Module):
    """A program."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_programs_archives_and_folders_are_one_line(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Small()), tmp_path / "script.pt")
    assert "is a TorchScript archive, a program" in refusal(tmp_path / "script.pt")
    torch.save(Small(), tmp_path / "module.pth")
    assert "is refused: reading it would call " in refusal(tmp_path / "module.pth")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "truncated or no torch or safetensors file" in refusal(tmp_path / "x.zip")
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        packed.add(tmp_path / "x.zip", "x.zip")
    assert "truncated or no torch or safetensors file" in refusal(tmp_path / "x.tar")
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read: Too many levels" in refusal(tmp_path / "loop")


def test_a_changed_bit_is_found_and_a_file_without_sums_is_read(tmp_path: Path) -> None:
    """Without a look at the sums torch reads over it: the weights would silently be others."""
    path = tmp_path / "x.pth"
    torch.save(OURS, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is damaged); it is truncated" in refusal(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(OURS, path)
    finally:
        torch.serialization.set_crc32_options(True)
    state, _ = read(path)
    assert all(torch.equal(state[name], OURS[name]) for name in OURS)
