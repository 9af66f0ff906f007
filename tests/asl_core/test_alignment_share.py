"""How much the alignment of two branches is, against gradients in float64."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import SHORT

from asl_core.analysis import watched
from asl_core.analysis.alignment import measure_alignment
from asl_core.data.shards import PackedDataset
from asl_core.held_out import HELD_OUT_DRAW
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.pretrain import build_method
from asl_core.protocol import Aligning, Views
from asl_core.recipes.asl import AslRecipe


def asl(icons: Path, **fields: Any) -> ArbitrarySelfSupervised:
    return build_method(AslRecipe(**SHORT, **fields), PackedDataset(icons, "train"))


def images_of(icons: Path, count: int) -> Views:
    dataset = PackedDataset(icons, "train")
    return Views((torch.stack([dataset.read_image(i) for i in range(count)]),), torch.arange(count))


@pytest.mark.parametrize(
    "fields",
    [
        {"design": "dle", "dle_rate": 0.3, "sem_weight": 0.7},
        {"sem_weight": 2.0, "mae_on": "ori"},
        {"cls_align": "decoder_pred"},
        {"share_decoder": False, "sem_reduction": "sum"},
    ],
)
def test_the_alignments_share_is_that_of_gradients_in_float64(
    fields: dict[str, Any], icons: Path
) -> None:
    method = asl(icons, **fields)
    views = images_of(icons, 20)  # in parts of 16 and 4
    found = measure_alignment(method, views)
    method.double().train()
    images, mask = method.masked(views, HELD_OUT_DRAW)
    noise = method.draw_dropout(views.indices, mask, HELD_OUT_DRAW)
    features = method.features(images.double(), mask, noise)
    pred = method.head(method.decode(features, mask)[:, features.shape[1] :])
    ori, aug = pred.chunk(2)  # (B, R, P)
    distance = (ori - aug).abs().sum() / ori.abs().sum()
    assert found[watched.DISTANCE] == pytest.approx(distance.item(), rel=1e-4)

    target = method.target(images.double(), mask)
    mae = [(x - target).square().mean() for x in (ori, aug)]
    pixels = mae[0] if fields.get("mae_on") == "ori" else sum(mae) / 2
    decoded = method.decode(features, mask)
    pairs = [(ori, aug)]
    if "cls_align" in fields:
        pairs.append(tuple(method.head(decoded[:, :1]).chunk(2)))
    aligned = 0.0
    for a, b in pairs:  # plain L1 has the gradient of Eq. 9
        l1 = (a - b).abs()
        aligned = aligned + (l1.sum(-1).mean() if "sem_reduction" in fields else l1.mean())
    aligned = aligned * fields.get("sem_weight", 1.0)
    encoder = [p for p in method.encoder.parameters() if p.requires_grad]

    def norm(loss: torch.Tensor) -> float:
        gradients = torch.autograd.grad(loss, encoder, retain_graph=True)
        return math.sqrt(sum(g.square().sum().item() for g in gradients))

    expected = norm(aligned) / norm(pixels)
    assert found[watched.GRADIENT_SHARE] == pytest.approx(expected, rel=1e-3)


def test_without_alignment_only_the_distance_is_measured(icons: Path) -> None:
    views = images_of(icons, 8)
    assert measure_alignment(asl(icons, sem_weight=0.0), views).keys() == {watched.DISTANCE}
    silent = measure_alignment(asl(icons, design="dle", dle_rate=0.0), views)
    assert silent == {watched.DISTANCE: 0.0, watched.GRADIENT_SHARE: 0.0}


def test_branches_predict_what_a_step_aligns(icons: Path) -> None:
    method = asl(icons, design="dle", dle_rate=0.3).train()
    assert isinstance(method, Aligning)
    views = images_of(icons, 8)
    ori, aug = method.branch_predictions(views, HELD_OUT_DRAW)
    loss = method(views, HELD_OUT_DRAW).terms["loss_sem"]
    torch.testing.assert_close(2 * (ori - aug).abs().mean(), loss)
