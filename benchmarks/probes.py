"""Accuracy and seconds of each probe on the same frozen features.

    python benchmarks/probes.py FOLDER_OF_CIFAR10 [--encoder FOLDER] [--train 20000] [--test 5000]
                                [--rates 1.6 6.4 25.6 102.4] [--epochs 90]
                                [--only TEXT]

The folder has train.parquet and test.parquet, of which the first images are taken. Without an
encoder an untrained one is probed: six blocks of 128, patches of 4. One thread. Features are
computed by the first probe that reads them; the attentive probe computes its patches itself.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from asl_core.data.prepare import prepare
from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.datasets import Parquet
from asl_core.recipes.fewshot import FewShot
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.models import Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import LinearProbe
from asl_core.transfer.attentive import attentive_probe
from asl_core.transfer.feature_files import split_features
from asl_core.transfer.features import labelled_dataset
from asl_core.transfer.fewshot import few_shot
from asl_core.transfer.knn import classify_by_neighbours, voted_accuracy
from asl_core.transfer.linear_heads import heads_of
from asl_core.transfer.linprobe import linprobe

VIT = Vit(image_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4,
          decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=2)  # fmt: skip
RESOURCES = Resources(device="cpu", threads=1, checkpoint_minutes=60)


class Bench:
    """One encoder, one dataset, one folder of features."""

    def __init__(self, work: Path, encoder: Path, dataset: Path) -> None:
        self.work, self.encoder, self.dataset = work, encoder, dataset
        self.features = work / "features"

    def line(self, name: str, began: float, text: str) -> None:
        print(f"{name:34s} {time.perf_counter() - began:7.1f} s  {text}", flush=True)

    def extract(self) -> None:
        began = time.perf_counter()
        encoder = load_encoder(self.encoder)
        for split in ("train", "test"):
            split_features(
                encoder, labelled_dataset(self.dataset, split), precision="fp32",
                resources=RESOURCES, folder=self.features,
            )  # fmt: skip
        self.line("features of both splits", began, "")

    def linear(self, name: str, recipe: LinearProbe) -> None:
        began = time.perf_counter()
        with Journal.open(self.work / name / "journal") as journal:
            context = RunContext(self.work / name / "ckpt", journal, RESOURCES)
            _, result = linprobe(recipe, self.encoder, self.dataset, context, self.features)
        before, last = result.training[:, heads_of(recipe).index(result.chosen)].tolist()
        test = result.predictions[result.chosen.name].accuracy()
        by_pooling = ", ".join(f"{p} {result.of(p).accuracy():.1f}" for p in result.by_pooling)
        chosen = f"{result.chosen.pooling}, {result.chosen.blocks} blocks, {result.chosen.rate:g}"
        self.line(name, began, f"test {test:.1f}  train {last:.1f} (rise {last - before:+.2f})  "
                               f"chosen {chosen}  [{by_pooling}]")  # fmt: skip

    def neighbours(self, name: str, recipe: NearestNeighbours) -> None:
        began = time.perf_counter()
        vote = classify_by_neighbours(recipe, self.encoder, self.dataset, RESOURCES, self.features)
        by_pooling = ", ".join(
            f"{p} {voted_accuracy(each):.1f}" for p, each in vote.by_pooling.items()
        )
        accuracy = voted_accuracy(vote.predictions)
        self.line(name, began, f"test {accuracy:.1f}  {vote.pooling}, k {vote.k}  [{by_pooling}]")

    def attentive(self, name: str, recipe: AttentiveProbe) -> None:
        began = time.perf_counter()
        with Journal.open(self.work / name / "journal") as journal:
            context = RunContext(self.work / name / "ckpt", journal, RESOURCES)
            _, result = attentive_probe(recipe, self.encoder, self.dataset, context)
        before, last = result.training[:, result.place].tolist()
        test = result.predictions.accuracy()
        self.line(name, began, f"test {test:.1f}  train {last:.1f} (rise {last - before:+.2f})  "
                               f"rate {result.rate:g}")  # fmt: skip

    def few(self, name: str, recipe: FewShot) -> None:
        began = time.perf_counter()
        fits = few_shot(recipe, self.encoder, self.dataset, RESOURCES, self.features)
        parts = []
        for subset, draws in fits.items():
            found = torch.tensor([fit.accuracy for fit in draws])
            solved = "" if all(fit.converged for fit in draws) else " (not solved)"
            parts.append(f"{subset} {found.mean():.1f} +- {found.std():.1f}{solved}")
        self.line(name, began, ", ".join(parts))


def main() -> None:
    """Print a line for each probe."""
    parser = argparse.ArgumentParser(description="Compare probes on one encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.6, 6.4, 25.6, 102.4])
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--only", default="", help="Of a line's name, to see no other.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "source").mkdir()
        for split, count in (("train", arguments.train), ("test", arguments.test)):
            table = pq.read_table(arguments.folder / f"{split}.parquet").slice(0, count)
            pq.write_table(table, work / "source" / f"{split}.parquet")
        source = Parquet(path=str(work / "source"), normalisation="cifar10")
        prepare(source, work / "source", work / "cifar10", name="cifar10")
        encoder = arguments.encoder
        if encoder is None:
            encoder = work / "encoder"
            encoder.mkdir()
            torch.manual_seed(0)
            save_encoder(encoder, Encoder(VIT).state_dict(), VIT)
        bench = Bench(work, encoder, work / "cifar10")
        if "attentive" not in arguments.only:
            bench.extract()
        for name, run, recipe in lines(bench, arguments.epochs, tuple(arguments.rates)):
            if arguments.only in name:
                run(name, recipe)


def lines(
    bench: Bench, epochs: int, rates: tuple[float, ...]
) -> list[tuple[str, Callable[..., None], object]]:
    """Return what is compared: a name, what runs it, its recipe."""
    short: dict[str, Any] = {
        "dataset": "cifar10", "batch_size": 512, "augment": False, "precision": "fp32",
    }  # fmt: skip
    linear = {**short, "epochs": epochs, "warmup_epochs": epochs / 9}
    attentive = {**short, "epochs": max(epochs // 3, 1), "warmup_epochs": epochs / 27}
    ks = (10, 20, 100, 200)
    return [
        ("linear, published rate, [cls]", bench.linear, LinearProbe(**linear)),
        ("linear, published rate, mean", bench.linear, LinearProbe(**linear, pooling="mean")),
        ("linear, grid", bench.linear, LinearProbe(**linear, grid_rates=rates)),
        ("k-NN, k 20, [cls]", bench.neighbours, NearestNeighbours(dataset="cifar10")),
        ("k-NN, grid", bench.neighbours, NearestNeighbours(dataset="cifar10", grid_k=ks)),
        ("few-shot, [cls]", bench.few, FewShot(dataset="cifar10")),
        ("few-shot, mean", bench.few, FewShot(dataset="cifar10", pooling="mean")),
        ("attentive, published rate", bench.attentive, AttentiveProbe(**attentive)),
        ("attentive, grid", bench.attentive, AttentiveProbe(**attentive, grid_rates=rates)),
    ]


if __name__ == "__main__":
    main()
