"""The pretrain stage: what it leaves for the stages after it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import OTHERS
from safetensors.torch import load_file

from asl_core.analysis.cost import count_flops
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.engine.journal import Journal
from asl_core.held_out import held_out_files, read_held_out
from asl_core.methods import method_class
from asl_core.modules.encoder import load_encoder
from asl_core.pretrain import build_method
from asl_core.protocol import Reconstructing
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.datasets import Icons, Regions
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.supervised import SupervisedRecipe
from asl_core.recipes.tokenizers import KMeansTokenizer
from asl_core.recipes.untrained import UntrainedRecipe
from asl_core.tokenizers.fitting import fit_clusters
from asl_core.tokenizers.store import save_tokenizer
from pipeline.jobs.journal import effective_points
from pipeline.stages import pretrain
from pipeline.stages.request import StageRequest, StoredRun

VIT = Vit(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2,
          decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=2)  # fmt: skip
RECIPE = AslRecipe(dataset="icons", model=VIT, epochs=2, batch_size=8, warmup_epochs=0,
                   precision="fp32", snapshots=2, held_out_images=3)  # fmt: skip


@pytest.fixture
def request_(tmp_path: Path) -> StageRequest:
    icons = tmp_path / "icons"
    outputs = {role: tmp_path / "out" / role for role in ("encoder", "held_out", "details")}
    regions = Regions(scales=(8,))
    prepare(Icons(image_size=16, train=16, test=8, regions=regions), icons, icons, name="icons")
    tokenizer = KMeansTokenizer(
        dataset="icons", num_codes=12, patch_size=4, image_size=16, images=16, epochs=1
    )
    save_tokenizer(fit_clusters(tokenizer, PackedDataset(icons, "train")), icons)
    for folder in outputs.values():
        folder.mkdir(parents=True)
    return StageRequest(
        stage="pretrain", key="asl", recipe=RECIPE, inputs={"dataset": icons},
        work=tmp_path / "work", outputs=outputs, journal=Journal.open(tmp_path / "work/journal"),
        resources=Resources(device="cpu"),
    )  # fmt: skip


def test_weights_predictions_pictures_and_costs(request_: StageRequest) -> None:
    metrics = pretrain.run(request_)
    request_.journal.close()
    top = request_.out.parent
    written = {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
    assert written == {
        "encoder/encoder.json", "encoder/encoder.safetensors", "details/method.safetensors",
        "held_out/step-000002.safetensors", "held_out/step-000004.safetensors",
        "details/pictures/reconstructions.png",
        "details/pictures/reconstructions/step-000002.png",
        "details/pictures/reconstructions/step-000004.png",
    }  # fmt: skip
    pictures = request_.out / "pictures"
    first, last = ((pictures / f"reconstructions/step-00000{n}.png").read_bytes() for n in (2, 4))
    assert first != last == (pictures / "reconstructions.png").read_bytes()
    last = read_held_out(held_out_files(request_.outputs["held_out"])[4])
    assert {name: tuple(tensor.shape) for name, tensor in last.items()} == dict.fromkeys(
        ("target", "ori", "aug"), (3, 12, 48)
    )
    assert {"pretrain/loss_mae", "pretrain/loss_sem", "pretrain/branch_distance"} <= metrics.keys()
    assert metrics["flops_forward_g"] == count_flops(RECIPE).forward_g
    assert metrics["flops_train_g"] > 2 * metrics["flops_forward_g"]
    assert metrics["parameters_m"] > metrics["encoder_parameters_m"] > 0
    assert metrics["activation_mib_per_image"] > 0


SMALL: dict[str, Any] = {
    "dataset": "icons", "model": VIT, "epochs": 2, "batch_size": 8, "warmup_epochs": 0,
    "precision": "fp32",
}  # fmt: skip


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_leaves_an_encoder_that_loads_pictures_and_costs(
    method: str, request_: StageRequest, tmp_path: Path
) -> None:
    metrics = pretrain.run(dataclasses.replace(request_, recipe=OTHERS[method]))
    request_.journal.close()
    tokens = load_encoder(request_.outputs["encoder"])(torch.zeros(2, 3, 16, 16))
    assert tokens.shape == (2, 17, 16)
    assert tokens.isfinite().all()
    kind: Any = method_class(method)
    reconstructs = issubclass(kind, Reconstructing)
    picture = "reconstructions" if reconstructs else "views"
    assert (request_.out / f"pictures/{picture}.png").is_file()
    assert bool(held_out_files(request_.outputs["held_out"])) == reconstructs
    assert metrics["pretrain/loss"] > 0
    assert metrics["flops_train_g"] > metrics["flops_forward_g"] > 0
    assert metrics["activation_mib_per_image"] > 0
    assert ("supervised_acc1" in metrics) == (method == "supervised")
    stored = _stored(OTHERS[method], request_, tmp_path / "again")
    assert pretrain.reevaluate(stored) == metrics
    written = [file for file in (tmp_path / "again").rglob("*") if file.is_file()]
    assert {file.parent.name for file in written} == {"encoder", *["held_out"] * reconstructs}
    for file in written:
        assert file.read_bytes() == (request_.outputs[file.parent.name] / file.name).read_bytes()


def _stored(recipe: Any, request_: StageRequest, again: Path) -> StoredRun[Any]:
    shutil.copytree(request_.work / "journal", request_.out / "journal")
    folders = {role: again / role for role in ("encoder", "held_out")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    return StoredRun(
        recipe, request_.out, request_.inputs, request_.resources, request_.outputs, folders
    )


def test_a_classifier_is_measured_on_the_test_split_and_can_be_again(
    request_: StageRequest, tmp_path: Path
) -> None:
    recipe = SupervisedRecipe(**{**SMALL, "epochs": 4, "lr": 3e-3, "mixup": 0.0, "cutmix": 0.0})
    metrics = pretrain.run(dataclasses.replace(request_, recipe=recipe))
    request_.journal.close()
    icons = request_.inputs["dataset"]
    test = PackedDataset(icons, "test")
    method = build_method(recipe, PackedDataset(icons, "train")).eval()
    method.load_state_dict(load_file(request_.out / "method.safetensors"))
    images = torch.stack([test[i].image for i in range(8)]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (test.manifest.mean, test.manifest.std))
    guesses = method.logits((images - mean) / std).argmax(1)
    right = sum(int(guesses[i]) == test[i].label for i in range(8))
    assert metrics["supervised_acc1"] == 100 * right / 8
    assert pretrain.reevaluate(_stored(recipe, request_, tmp_path / "again")) == metrics


def test_an_untrained_encoder_costs_no_step_and_reads_no_image(
    request_: StageRequest, tmp_path: Path
) -> None:
    recipe = UntrainedRecipe(dataset="icons", model=VIT, seed=RECIPE.seed)
    untrained = dataclasses.replace(request_, recipe=recipe, inputs={})
    metrics = pretrain.run(untrained)
    request_.journal.close()
    assert metrics.keys() == {"encoder_parameters_m"}
    assert not effective_points(request_.work / "journal")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert written == {"encoder/encoder.json", "encoder/encoder.safetensors"}
    begun = build_method(RECIPE, PackedDataset(request_.inputs["dataset"], "train"))
    drawn = load_file(request_.outputs["encoder"] / "encoder.safetensors")
    assert all(torch.equal(drawn[key], value) for key, value in begun.encoder_state().items())
    assert pretrain.reevaluate(_stored(recipe, untrained, tmp_path / "again")) == metrics
    for name in ("encoder.json", "encoder.safetensors"):
        again = tmp_path / "again/encoder" / name
        assert again.read_bytes() == (request_.outputs["encoder"] / name).read_bytes()
