import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asl_core.analysis.similarity import (
    effective_rank,
    inside_and_across,
    mean_token_cosine,
    patch_objects,
)
from asl_core.analysis.tokens import analyse_tokens
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.data.views import normalise
from asl_core.engine.records import Journal, read_records
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Scenes
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import TokenAnalysis
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


def test_report_equals_a_computation_from_all_tokens_at_once(scenes: Path) -> None:
    encoder, dataset = small_encoder().eval(), PackedDataset(scenes, "test")
    recipe = TokenAnalysis(dataset="scenes", images=7)
    report = analyse_tokens(encoder, dataset, recipe, RESOURCES)
    images = torch.stack([dataset.read_image(i) for i in range(7)])
    with torch.no_grad():
        tokens = encoder(normalise(images, dataset.manifest.mean, dataset.manifest.std))[:, 1:]
        layers = encoder.layers(normalise(images, dataset.manifest.mean, dataset.manifest.std))
    cosines = torch.stack([cosine_by_pairs(image) for image in tokens])
    centred = tokens - tokens.mean(dim=(0, 1))
    expected = {
        "token_similarity": cosines.mean(),
        "token_similarity_se": cosines.std() / 7**0.5,
        "token_similarity_centred": torch.stack([cosine_by_pairs(x) for x in centred]).mean(),
        "effective_rank": effective_rank(tokens).mean(),
    }
    for name, value in expected.items():
        assert report.metrics[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    curve = [mean_token_cosine(x[:, 1:]).mean().item() for x in layers]
    assert report.per_layer == pytest.approx(curve, rel=1e-4)
    assert -1 <= report.metrics["similarity_across"] <= report.metrics["similarity_inside"] <= 1
    assert report.maps.shape == (7, 8, 8)
    torch.testing.assert_close(report.maps[:, 4, 4], torch.ones(7))


def test_images_and_masks_of_another_size_are_resized_together(scenes: Path) -> None:
    dataset = PackedDataset(scenes, "test")
    metrics = analyse_tokens(
        small_encoder(24), dataset, TokenAnalysis(dataset="scenes"), RESOURCES
    ).metrics
    assert 0 < metrics["effective_rank"] <= 16
    assert {"similarity_inside", "similarity_across"} <= metrics.keys()


def test_images_without_objects_give_no_split(icons: Path) -> None:
    metrics = analyse_tokens(
        small_encoder(16), PackedDataset(icons, "test"), TokenAnalysis(dataset="icons"), RESOURCES
    ).metrics
    assert "similarity_inside" not in metrics
    assert -1 <= metrics["cka_positions"] <= 1.01


def test_stage_writes_numbers_and_pictures(scenes: Path, tmp_path: Path) -> None:
    for name in ("encoder", "out"):
        (tmp_path / name).mkdir()
    encoder = small_encoder()
    save_encoder(tmp_path / "encoder", encoder.state_dict(), encoder.vit)
    with Journal.open(tmp_path / "journal") as journal:
        metrics = analyze.run(
            StageRequest(
                stage="analyze",
                key="mae",
                recipe=TokenAnalysis(dataset="scenes", images=5),
                inputs={"dataset": scenes, "encoder": tmp_path / "encoder"},
                work=tmp_path,
                out=tmp_path / "out",
                journal=journal,
                resources=RESOURCES,
            )
        )
    assert {"token_similarity", "token_similarity_centred", "cka_positions"} <= metrics.keys()
    artifacts = [r.body["path"] for r in read_records(tmp_path / "journal") if r.kind == "artifact"]
    assert "pictures/similarity_per_layer.png" in artifacts
    assert all((tmp_path / "out" / path).is_file() for path in artifacts)
    written = json.loads((tmp_path / "out/similarity.json").read_text())
    assert len(written["per_layer"]) == 3
