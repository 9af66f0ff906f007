"""The contrastive view measured on files of predictions."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from asl_core.analysis.contrast import measure_contrast
from asl_core.analysis.contrastive_view import contrast_patches, pearson, spearman
from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.optimisation import Resources

IMAGES, REMOVED, VALUES = 5, 3, 6
RESOURCES = Resources(device="cpu", threads=1)
RECIPE = TokenAnalysis(
    dataset="none", contrast_batches=(4, 2, 64), contrast_temperatures=(0.5, 1, 30)
)


def predictions(error: float, **others: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(IMAGES, REMOVED, VALUES, generator=generator)
    tensors = {"target": target}
    for name, scale in {"ori": error, **others}.items():
        tensors[name] = target + scale * torch.randn(target.shape, generator=generator)
    return tensors


def write(folder: Path, step: int, tensors: dict[str, Tensor]) -> dict[int, Path]:
    path = folder / f"step-{step:06d}.safetensors"
    safetensors.torch.save_file(tensors, path)
    return {step: path}


def test_report_equals_eq8_on_the_patches_of_the_batch(tmp_path: Path) -> None:
    held_out = predictions(1.0)
    report = measure_contrast(write(tmp_path, 9, held_out), RECIPE, RESOURCES)["ori"]
    pred, target = (held_out[name].flatten(0, 1).double() for name in ("ori", "target"))
    mse = (pred - target).square().mean(dim=-1)
    temperature = 2 * mse.mean().item()
    expected = contrast_patches(pred, target, [temperature])
    torch.testing.assert_close(report.mse, mse)
    torch.testing.assert_close(report.contrast, expected.losses[0])
    assert report.metrics == pytest.approx(
        {
            "contrast_correlation": pearson(mse, expected.losses[0]),
            "contrast_spearman": spearman(mse, expected.losses[0]),
            "patch_retrieval_acc1": 100 * expected.retrieved.mean().item(),
            "patch_retrieval_chance": 100 / (IMAGES * REMOVED),
        }
    )
    assert [point.factor for point in report.by_temperature] == [0.5, 1, 30]
    unit = report.by_temperature[1]
    assert unit.temperature == pytest.approx(temperature)
    assert unit.pearson == pytest.approx(report.metrics["contrast_correlation"])
    assert report.over_training == []


def test_a_batch_has_its_own_candidates_only(tmp_path: Path) -> None:
    held_out = predictions(1.0)
    report = measure_contrast(write(tmp_path, 9, held_out), RECIPE, RESOURCES)["ori"]
    # more images than there are: all of them
    assert [(point.batch, point.patches) for point in report.by_batch] == [(2, 6), (4, 12), (5, 15)]
    temperature = report.by_temperature[1].temperature
    losses = [
        contrast_patches(
            held_out["ori"][i : i + 2].flatten(0, 1),
            held_out["target"][i : i + 2].flatten(0, 1),
            [temperature],
        ).losses[0]
        for i in (0, 2)  # the fifth image fills no batch
    ]
    assert report.by_batch[0].loss_contrast == pytest.approx(torch.cat(losses).mean().item())


def test_retrieval_follows_the_training_in_both_branches(tmp_path: Path) -> None:
    files = write(tmp_path, 10, predictions(9.0, aug=9.0))
    files |= write(tmp_path, 20, predictions(1.0, aug=2.0))
    files |= write(tmp_path, 30, predictions(1e-3, aug=0.5))
    reports = measure_contrast(files, RECIPE, RESOURCES)
    assert list(reports) == ["ori", "aug"]
    points = reports["ori"].over_training
    assert [point.step for point in points] == [10, 20, 30]
    accuracies = [point.retrieval_acc1 for point in points]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == 100 == reports["ori"].metrics["patch_retrieval_acc1"]
    assert points[1].loss_mae == pytest.approx(1, rel=0.3)
    assert reports["aug"].over_training[1].loss_mae == pytest.approx(4, rel=0.3)


def test_losses_that_do_not_vary_have_no_correlation(tmp_path: Path) -> None:
    target = 100 * torch.arange(IMAGES * REMOVED * VALUES).reshape(IMAGES, REMOVED, VALUES).float()
    files = write(tmp_path, 1, {"target": target, "ori": target + 1})  # each patch off by one
    report = measure_contrast(files, RECIPE, RESOURCES)["ori"]
    assert report.mse.tolist() == [1] * (IMAGES * REMOVED)
    assert math.isnan(report.metrics["contrast_correlation"])
    assert report.metrics["patch_retrieval_acc1"] == 100


@pytest.mark.parametrize("name", ["contrast_batches", "contrast_temperatures"])
@pytest.mark.parametrize("values", [(), (0,), (4, -1)])
def test_batches_and_temperatures_are_positive(name: str, values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name} needs at least one value"):
        TokenAnalysis(dataset="none", **{name: values})  # type: ignore[arg-type]
