"""The knn stage, from a packed dataset and an encoder to its files and its column."""

from pathlib import Path
from typing import Any

import torch
from torchvision.io import decode_image

from asl_core.data.prepare import prepare
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.datasets import Icons
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from pipeline.stages import knn
from pipeline.stages.request import StageRequest, StoredRun
from pipeline.stages.table import STAGES
from pipeline.tables.layout import lay_out
from pipeline.tables.paper import load_paper
from pipeline.tables.render import notes

VIT = Vit(image_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3,
          decoder_embed_dim=16, decoder_num_heads=4)  # fmt: skip
RECIPE = NearestNeighbours(dataset="icons", k=3)
CPU = Resources(device="cpu")


def test_the_stage_returns_two_accuracies_and_its_pictures_and_finds_them_again(
    tmp_path: Path,
) -> None:
    icons, encoder, out = (tmp_path / name for name in ("icons", "encoder", "out"))
    prepare(Icons(image_size=16, train=30, test=12), icons, icons, name="icons")
    encoder.mkdir()
    out.mkdir()
    torch.manual_seed(0)
    save_encoder(encoder, Encoder(VIT).state_dict(), VIT)
    inputs = {"dataset": icons, "encoder": encoder}
    with Journal.open(tmp_path / "work/journal") as journal:
        metrics = knn.run(
            StageRequest(
                stage="knn", key="mae", recipe=RECIPE, inputs=inputs, work=tmp_path / "work",
                outputs={"details": out}, journal=journal, resources=CPU,
            )
        )  # fmt: skip
    assert list(metrics) == ["knn_acc1", "knn_acc5"]
    assert 0 <= metrics["knn_acc1"] <= metrics["knn_acc5"] <= 100
    pictures = {path.stem for path in (out / "pictures").iterdir()}
    assert pictures == set(STAGES["knn"].captions)
    for name in pictures:
        assert decode_image(str(out / f"pictures/{name}.png")).shape[0] >= 3
    assert knn.reevaluate(StoredRun(RECIPE, out, inputs, CPU)) == metrics


def test_a_suite_that_asks_for_it_has_its_column_and_says_what_was_read_out(results: Any) -> None:
    section = "knn:\n  mae: {dataset: icons}\n  asl: {dataset: icons, pooling: mean}\n"
    results.edit("finetune:\n", f"{section}finetune:\n")
    results.result("knn", "mae", knn_acc1=51.0, knn_acc5=80.0)
    paper = load_paper()
    (table,) = lay_out(results.suite, paper)
    headers = [heading.header for heading in table.headings]
    assert headers == ["LP", "k-NN", "FT", "token similarity"]
    cells = {line.label: line.cells[1] for line in table.lines}
    assert cells["MAE"].ours == 51.0
    assert (cells["ASL (AEE)"].status, cells["MAE"].paper) == ("missing", None)
    said = "k-NN of ASL (AEE): of the mean of the patch tokens; of the other rows: of [cls]."
    assert said in notes(table)
