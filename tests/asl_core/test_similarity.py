import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.analysis.cka import unbiased_cka
from asl_core.analysis.similarity import (
    effective_rank,
    inside_and_across,
    mean_token_cosine,
    patch_objects,
)
from asl_core.analysis.tokens import _Whole, analyse_tokens, spread
from asl_core.data.prepare import prepare
from asl_core.data.samples import Instances, Sample
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from pipeline.jobs.journal import read_records
from pipeline.stages import analyze
from pipeline.stages.request import StageRequest

RESOURCES = Resources(device="cpu", threads=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    prepare(Scenes(image_size=32, train=2, test=9), folder, folder, name="scenes")
    return folder


def small_encoder(image_size: int = 32) -> Encoder:
    torch.manual_seed(0)
    return Encoder(Vit(image_size=image_size, patch_size=4, embed_dim=16, depth=3, num_heads=2))


def cosine_by_pairs(tokens: Tensor) -> Tensor:
    """Average over all ordered pairs of different tokens, one at a time; (N, D) to a scalar."""
    values = [
        F.cosine_similarity(tokens[i], tokens[j], dim=0)
        for i in range(len(tokens)) for j in range(len(tokens)) if i != j
    ]  # fmt: skip
    return torch.stack(values).mean()


def test_closed_form_equals_the_double_sum() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 7, 5) + 0.3
    expected = torch.stack([cosine_by_pairs(image) for image in tokens])
    torch.testing.assert_close(mean_token_cosine(tokens), expected)


def test_identical_tokens_have_similarity_one() -> None:
    tokens = torch.randn(2, 1, 5).expand(-1, 6, -1)
    torch.testing.assert_close(mean_token_cosine(tokens), torch.ones(2))


def test_orthogonal_tokens_have_similarity_zero_whatever_their_lengths() -> None:
    tokens = torch.diag(torch.arange(1.0, 7.0))[None]
    torch.testing.assert_close(mean_token_cosine(tokens), torch.zeros(1))


@pytest.mark.parametrize("count", [2, 6, 10])
def test_two_antipodal_groups_have_similarity_minus_one_over_n_minus_one(count: int) -> None:
    direction = torch.randn(1, 5)
    tokens = torch.cat([direction.expand(count // 2, -1), -direction.expand(count // 2, -1)])[None]
    torch.testing.assert_close(mean_token_cosine(tokens), torch.tensor([-1 / (count - 1)]))


def test_effective_rank_counts_equal_directions() -> None:
    equal = torch.eye(6)[:4][None] * 3
    torch.testing.assert_close(effective_rank(equal), torch.tensor([4.0]))
    one = torch.randn(1, 1, 5).expand(-1, 7, -1)
    torch.testing.assert_close(effective_rank(one), torch.ones(1), rtol=1e-3, atol=1e-3)


def test_effective_rank_equals_its_definition() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 6)
    for image, rank in zip(tokens, effective_rank(tokens), strict=True):
        shares = torch.linalg.svdvals(image) / torch.linalg.svdvals(image).sum()
        torch.testing.assert_close(rank, (-(shares * shares.log()).sum()).exp())


def test_patches_belong_to_the_object_that_covers_half_of_them() -> None:
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, :, :3] = True  # all of patch (0, 0), half of (0, 1)
    masks[1, 2:, 5:] = True  # one half of (1, 2), all of (1, 3)
    assert patch_objects(masks, 2).tolist() == [0, 0, -1, -1, 0, 0, 1, 1]
    assert patch_objects(masks[:0], 2).tolist() == [-1] * 8


def test_inside_and_across_equal_the_mean_over_their_pairs() -> None:
    torch.manual_seed(0)
    tokens, objects = torch.randn(9, 4), torch.tensor([0, 1, -1, 1, 0, 2, -1, 1, 2])
    (inside, inside_pairs), (across, across_pairs) = inside_and_across(tokens, objects)
    expected: dict[bool, list[Tensor]] = {True: [], False: []}
    for i in range(9):
        for j in range(9):
            if i != j and objects[i] >= 0 and objects[j] >= 0:
                cosine = F.cosine_similarity(tokens[i], tokens[j], dim=0)
                expected[bool(objects[i] == objects[j])].append(cosine)
    assert (inside_pairs, across_pairs) == (len(expected[True]), len(expected[False]))
    torch.testing.assert_close(inside, torch.stack(expected[True]).sum())
    torch.testing.assert_close(across, torch.stack(expected[False]).sum())


@pytest.mark.parametrize("count", [7, 35], ids=["one batch", "two batches"])
def test_report_equals_a_computation_from_all_tokens_at_once(count: int, icons: Path) -> None:
    encoder, dataset = small_encoder(16).eval(), PackedDataset(icons, "train")
    recipe = TokenAnalysis(dataset="icons", images=count)
    report = analyse_tokens(encoder, dataset, recipe, RESOURCES)
    images = torch.stack([dataset.read_image(i) for i in spread(count, len(dataset))])
    normalised = normalise(images, dataset.manifest.mean, dataset.manifest.std)
    with torch.no_grad():
        tokens = encoder(normalised)[:, 1:]
        layers = [x[:, 1:] for x in encoder.layers(normalised)]
        layers.insert(0, encoder.embed(normalised) + encoder.pos_embed[:, 1:])
    cosines = torch.stack([cosine_by_pairs(image) for image in tokens])
    centred = torch.stack([cosine_by_pairs(x) for x in tokens - tokens.mean(dim=(0, 1))])
    expected = {
        "token_similarity": cosines.mean(),
        "token_similarity_se": cosines.std() / count**0.5,
        "token_similarity_centred": centred.mean(),
        "token_similarity_centred_se": centred.std() / count**0.5,
        "effective_rank": effective_rank(tokens).mean(),
        "token_similarity_layer_0": mean_token_cosine(layers[0]).mean(),
    }
    for name, value in expected.items():
        assert report.metrics[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    curve = [mean_token_cosine(x).mean().item() for x in layers]
    assert report.per_layer == pytest.approx(curve, rel=1e-4)
    last = tokens.mean(dim=1).double()
    cka = [unbiased_cka(x.mean(dim=1).double(), last).item() for x in layers]
    assert report.cka_to_last == pytest.approx(cka, abs=1e-4)
    assert torch.equal(report.images, images[:8])
    assert report.maps.shape == (min(count, 8), 4, 4)
    torch.testing.assert_close(report.maps[:, 2, 2], torch.ones(min(count, 8)))


def test_pairs_of_all_images_are_pooled(scenes: Path) -> None:
    encoder, dataset = small_encoder().eval(), PackedDataset(scenes, "test")
    metrics = analyse_tokens(encoder, dataset, TokenAnalysis(dataset="scenes"), RESOURCES).metrics
    inside, across = torch.zeros(2), torch.zeros(2)
    for sample in (dataset[i] for i in range(len(dataset))):
        image = normalise(sample.image[None], dataset.manifest.mean, dataset.manifest.std)
        assert sample.instances is not None
        objects = patch_objects(sample.instances.masks, 4)
        with torch.no_grad():
            both = inside_and_across(encoder(image)[0, 1:], objects)
        inside, across = inside + both[0], across + both[1]
    assert metrics["similarity_inside"] == pytest.approx((inside[0] / inside[1]).item(), rel=1e-4)
    assert metrics["similarity_across"] == pytest.approx((across[0] / across[1]).item(), rel=1e-4)
    assert -1 <= metrics["similarity_across"] <= metrics["similarity_inside"] <= 1


def test_images_and_masks_of_another_size_are_resized_together() -> None:
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 8:32, 20:50] = True
    one = torch.zeros(1, dtype=torch.int64)
    objects = Instances(torch.tensor([[20.0, 8.0, 50.0, 32.0]]), one, mask, one.bool())
    sample = Sample(0, 0, 255 * mask.byte().expand(3, -1, -1), instances=objects)
    image, found = _Whole(24, 4)(sample)
    assert image.shape == (3, 24, 24)
    assert found is not None
    brightness = image[0].float().unfold(0, 4, 4).unfold(1, 4, 4).mean(dim=(2, 3)).flatten()
    bright, dark = brightness > 200, brightness < 55
    assert bright.sum() > 8
    assert dark.sum() > 8
    assert (found[bright] == 0).all()
    assert (found[dark] == -1).all()


@pytest.mark.parametrize(("count", "total"), [(9, 9), (5, 50), (500, 10_000), (5000, 50_000)])
def test_analysed_images_are_spread_over_the_split_and_so_are_the_first_of_them(
    count: int, total: int
) -> None:
    chosen = spread(count, total)
    assert sorted(chosen) == [i * total // count for i in range(count)]
    for beginning in (4, 5, max(5, count // 64), max(5, count // 5)):
        first = sorted(chosen[:beginning])
        gaps = [b - a for a, b in zip(first, [*first[1:], total], strict=True)]
        assert max(gaps) <= 3 * total / len(first)


def test_images_without_objects_give_no_split(icons: Path) -> None:
    metrics = analyse_tokens(
        small_encoder(16), PackedDataset(icons, "test"), TokenAnalysis(dataset="icons"), RESOURCES
    ).metrics
    assert "similarity_inside" not in metrics
    assert -1 <= metrics["cka_positions"] <= 1.01


def analyse(folder: Path, dataset: Path, **fields: Any) -> tuple[dict[str, float], list[str]]:
    """Run the stage on folder/encoder and return its metrics and pictures."""
    (folder / "out").mkdir()
    with Journal.open(folder / "journal") as journal:
        metrics = analyze.run(
            StageRequest(
                stage="analyze",
                key="mae",
                recipe=TokenAnalysis(dataset="scenes", images=5, **fields),
                inputs={
                    "dataset": dataset,
                    "encoder": folder / "encoder",
                    "held_out": folder / "held_out",
                },
                work=folder,
                outputs={"details": folder / "out"},
                journal=journal,
                resources=RESOURCES,
            )
        )
    artifacts = [r.body["path"] for r in read_records(folder / "journal") if r.kind == "artifact"]
    assert all((folder / "out" / path).is_file() for path in artifacts)
    return metrics, artifacts


@pytest.fixture
def saved_encoder(tmp_path: Path) -> Path:
    encoder = small_encoder()
    (tmp_path / "encoder").mkdir()
    save_encoder(tmp_path / "encoder", encoder.state_dict(), encoder.vit)
    return tmp_path / "encoder"


def test_stage_writes_numbers_and_pictures_of_an_encoder_without_decoder(
    scenes: Path, saved_encoder: Path, tmp_path: Path
) -> None:
    metrics, artifacts = analyse(tmp_path, scenes)
    assert {"token_similarity", "token_similarity_centred", "cka_positions"} <= metrics.keys()
    assert artifacts == [
        "pictures/similarity_per_layer.png", "pictures/token_similarity.png",
        "same_images/patch_pca.png", "same_images/attention.png", "same_images/neighbours.png",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out/similarity.json").read_text())
    assert len(written["per_layer"]) == len(written["cka_to_last"]) == 4
    assert not any(name.startswith(("contrast", "patch")) for name in metrics)
    assert not (tmp_path / "out/contrastive.json").exists()


@pytest.mark.parametrize("steps", [(9,), (3, 6, 9)], ids=["at the end", "over training"])
@pytest.mark.parametrize("branches", [("ori",), ("ori", "aug")], ids=["mae", "asl"])
def test_stage_measures_the_contrastive_view_of_what_pretraining_kept(
    steps: tuple[int, ...],
    branches: tuple[str, ...],
    scenes: Path,
    saved_encoder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "held_out").mkdir()
    torch.manual_seed(0)
    target = torch.randn(6, 4, 12).half()
    for step in steps:
        noise = {name: target + 3 / step * torch.randn(6, 4, 12).half() for name in branches}
        path = tmp_path / f"held_out/step-{step:06d}.safetensors"
        safetensors.torch.save_file({"target": target, **noise}, path)
    metrics, artifacts = analyse(tmp_path, scenes, contrast_batches=(3, 6))
    assert -1 <= metrics["contrast_correlation"] <= 1
    assert -1 <= metrics["contrast_spearman"] <= 1
    assert metrics["patch_retrieval_chance"] == pytest.approx(100 / 24)
    assert metrics["patch_retrieval_chance"] < metrics["patch_retrieval_acc1"] <= 100
    assert "pictures/contrastive_view.png" in artifacts
    written = json.loads((tmp_path / "out/contrastive.json").read_text())
    assert [point["batch"] for point in written["by_batch"]] == [3, 6]
    assert written["by_batch"][1]["pearson"] == metrics["contrast_correlation"]
    assert {"temperature", "pearson", "spearman", "loss_contrast"} < written["by_temperature"][
        0
    ].keys()
    assert [p["step"] for p in written["over_training"]] == ([] if len(steps) == 1 else [*steps])
    assert ("aug" in written) == ("aug" in branches)
