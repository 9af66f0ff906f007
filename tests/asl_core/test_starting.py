"""Runs that begin with weights: which they are, what is refused; a resume needs no file."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from asl_core.analysis.cost import measure_cost
from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.exchange.starting import read_all, read_encoder
from asl_core.methods import method_class
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.modules.starting import begin_with_all, begin_with_encoder
from asl_core.modules.weights import save_weights
from asl_core.pretrain import build_method, find_tokenizer, pretrain
from asl_core.protocol import Method
from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.pretraining import Pretraining
from tests.asl_core.miniatures import ASL, MAE, OTHERS, TINY

METHODS: dict[str, Pretraining] = {"mae": MAE, "asl": ASL, **OTHERS}
RICH = dataclasses.replace(TINY, registers=2, layer_scale=0.1, mlp="swiglu")


def drawn(vit: Vit, recipe: Pretraining = MAE) -> dict[str, Tensor]:
    """Return weights of which no two are alike."""
    generator = torch.Generator().manual_seed(5)
    state = Encoder(vit, recipe.encoder_parts).state_dict()
    return {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.items()}


def run(
    work: Path, dataset: Path, recipe: Pretraining, initialise: Any = None, kill_at: int = -1
) -> Method:
    """Train; killed, where asked to be, before the first step (0) or after a later one."""
    work.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    resources = Resources(device="cpu", num_workers=0, checkpoint_minutes=0, log_every_steps=1)
    with Journal.open(work / "journal") as journal:
        kind: Any = method_class(recipe.method)
        follow = getattr(kind, "after_step", lambda method, step: None)

        def after_step(self: Any, step: int) -> None:
            follow(self, step)
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def at_start(method: Method) -> None:
            if kill_at == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if kill_at > 0:
            kind.after_step = after_step
        context = RunContext(work / "ckpt", journal, resources)
        method = pretrain(recipe, dataset, context, initialise=initialise, at_start=at_start)
    digest = hashlib.sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    (work / "sha256").write_text(digest.hexdigest())
    return method


def losses(work: Path) -> list[float]:
    """Return the loss of every step."""
    lines = [json.loads(t) for f in sorted((work / "journal").glob("*.jsonl"))
             for t in f.read_text().splitlines()]  # fmt: skip
    return [line["values"]["train/loss"] for line in lines if "train/loss" in str(line)]


@pytest.mark.parametrize("name", METHODS)
def test_every_encoder_of_a_method_begins_with_the_weights(name: str, icons: Path) -> None:
    recipe = METHODS[name]
    method: Any = build_method(recipe, PackedDataset(icons, "train"))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    state = drawn(recipe.model, recipe)
    begin_with_encoder(method, state, Path("x"))
    encoders = {n: m for n, m in method.named_modules() if isinstance(m, Encoder)}
    for module in encoders.values():
        for part, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[part])
    for part, tensor in method.state_dict().items():  # what stands beside them is as drawn
        if not part.startswith(tuple(f"{each}." for each in encoders)):
            assert torch.equal(tensor, before[part])
    assert {n: t.shape for n, t in method.encoder_state().items()}.keys() >= {"cls_token"}


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_with_registers_layer_scale_and_gates(name: str, icons: Path) -> None:
    if name == "beit":
        with pytest.raises(InputError, match="registers have no offset"):
            Encoder(RICH, METHODS[name].encoder_parts)
        return
    recipe = dataclasses.replace(METHODS[name], model=RICH, epochs=1)
    method = build_method(recipe, PackedDataset(icons, "train"))
    registers = method.encoder.reg_token
    assert isinstance(registers, torch.nn.Parameter)
    tokenizer = find_tokenizer(recipe, icons)
    cost = measure_cost(recipe, PackedDataset(icons, "train").num_classes, tokenizer)
    assert cost.flops_train_g > 0


def test_registers_are_in_no_output_and_take_part_in_attention() -> None:
    torch.manual_seed(2)
    encoder = Encoder(RICH).eval()
    images = torch.randn(2, 3, 16, 16)
    keep = torch.tensor([[3, 1], [0, 2]])
    with torch.no_grad():
        before = [encoder(images), encoder(images, keep), encoder.layers(images)[-1]]
        assert [tuple(each.shape) for each in before] == [(2, 17, 16), (2, 3, 16), (2, 17, 16)]
        assert encoder.reg_token is not None
        encoder.reg_token.normal_()
        after = [encoder(images), encoder(images, keep), encoder.layers(images)[-1]]
    assert all(not torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_files_of_plain_encoders_are_what_they_were(tmp_path: Path) -> None:
    save_encoder(tmp_path, Encoder(TINY).state_dict(), TINY)
    fields = json.loads((tmp_path / "encoder.json").read_text())
    assert not {"registers", "layer_scale", "mlp", "parts"} & fields.keys()
    save_encoder(tmp_path, Encoder(RICH).state_dict(), RICH)
    fields = json.loads((tmp_path / "encoder.json").read_text())
    assert (fields["registers"], fields["layer_scale"], fields["mlp"]) == (2, 0.1, "swiglu")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"embed_dim": 32}, r"cls_token is \(1, 1, 32\), expected \(1, 1, 16\)"),
    "patch": ({"patch_size": 8}, r"patch_embed.proj.weight is \(16, 3, 8, 8\)"),
    "shallower": ({"depth": 1}, "blocks.1.norm1.weight is missing"),
    "deeper": ({"depth": 3}, "blocks.2.norm1.weight has no place"),
    "registers": ({"registers": 2}, "reg_token has no place"),
    "gates": ({"mlp": "swiglu"}, r"blocks.0.mlp.fc1.weight is \(128, 16\), expected \(64, 16\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit_are_refused_by_the_first_tensor(case: str, icons: Path) -> None:
    changes, said = REFUSED[case]
    method = build_method(MAE, PackedDataset(icons, "train"))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    state = drawn(dataclasses.replace(TINY, **changes))
    with pytest.raises(InputError, match=f"initialise: x.pth does not fit: {said}") as caught:
        begin_with_encoder(method, state, Path("x.pth"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())


def test_positions_of_another_grid_are_resized(icons: Path) -> None:
    method = build_method(MAE, PackedDataset(icons, "train"))
    state = drawn(dataclasses.replace(TINY, image_size=32))
    begin_with_encoder(method, state, Path("x"))
    assert method.encoder.pos_embed.shape == (1, 17, 16)


@pytest.mark.parametrize("name", ["mae", "ibot", "mocov3"])
def test_whole_goes_on_where_the_other_run_ended(name: str, icons: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(METHODS[name], epochs=12, lr=3e-3)
    ended = run(tmp_path / "a", icons, recipe)
    save_weights(tmp_path / "method.safetensors", ended.state_dict())

    def all_of_it(method: Method) -> None:
        begin_with_all(method, read_all(tmp_path / "method.safetensors"), tmp_path)
        for part, tensor in ended.state_dict().items():
            assert torch.equal(method.state_dict()[part], tensor)

    short = dataclasses.replace(recipe, epochs=1)
    run(tmp_path / "whole", icons, short, all_of_it)
    run(tmp_path / "fresh", icons, short)
    began, own, fresh = losses(tmp_path / "a"), losses(tmp_path / "whole"), losses(
        tmp_path / "fresh"
    )  # fmt: skip
    if name == "mae":
        assert abs(own[0] - began[-1]) < 0.25 * abs(fresh[0] - began[-1])


@pytest.mark.parametrize("kill_at", [0, 1, 3])
def test_a_killed_run_ends_with_the_same_weights_and_needs_no_file(
    kill_at: int, icons: Path, tmp_path: Path
) -> None:
    recipe = OTHERS["ibot"]
    folder = tmp_path / "given"
    folder.mkdir()
    save_encoder(folder, drawn(TINY), TINY)
    digest = hashlib.sha256((folder / "encoder.safetensors").read_bytes()).hexdigest()

    def initialise(method: Method) -> None:
        begin_with_encoder(method, read_encoder(folder, digest), folder)

    run(tmp_path / "undisturbed", icons, recipe, initialise)
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(tmp_path / "killed", icons, recipe, initialise, kill_at)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = any((tmp_path / "killed/ckpt").glob("*.pt"))
    assert resumed == (kill_at > 1)  # the checkpoint of a step follows what comes after it
    if resumed:
        (folder / "encoder.safetensors").unlink()
    run(tmp_path / "killed", icons, recipe, initialise)
    found = (tmp_path / "killed/sha256").read_text()
    assert found == (tmp_path / "undisturbed/sha256").read_text()


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, drawn(TINY), TINY)
    with pytest.raises(InputError, match=r"has sha256 .*, params.yaml says 0{64}"):
        read_encoder(tmp_path, "0" * 64)
    with pytest.raises(InputError, match="does not exist"):
        read_encoder(tmp_path / "nothing")
    (tmp_path / "some").mkdir()
    with pytest.raises(InputError, match=r"has no encoder\.safetensors"):
        read_encoder(tmp_path / "some")
    with pytest.raises(InputError, match=r"cannot read .*method.safetensors"):
        read_all(tmp_path / "method.safetensors")


def test_a_checkpoint_may_lie_alone_in_a_folder(tmp_path: Path) -> None:
    state = drawn(Vit(image_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1))
    safetensors.torch.save_file(state, tmp_path / "any.safetensors")
    found = read_encoder(tmp_path)
    assert torch.equal(found["cls_token"], state["cls_token"])


DIGEST = "a" * 64
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "name either a path or an experiment"),
    ({"path": "x", "experiment": "a", "sha256": DIGEST}, "name either"),
    ({"path": "x"}, "sha256 must be 64 hexadecimal digits, got None; `sha256sum FILE`"),
    ({"path": "../x", "sha256": DIGEST}, "absolute or below the suite's folder"),
    ({"path": "x", "sha256": DIGEST, "whole": True}, "whole goes with an experiment"),
    ({"experiment": "a", "sha256": DIGEST}, "sha256 goes with a path"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Initialise(**fields)
