"""Images a second that are embedded from files, beside decoding the same files alone.

    python benchmarks/embedding.py [FOLDER] [--models vit-coco-mini vit-s] [--images 256]
        [--rounds 3] [--workers N] [--threads N] [--batch 64] [--device auto] [--precision fp32]

Without a folder, JPEGs of 500x375 are generated. Every path takes its turn in every round, so that
what else the machine does meets all of them; what counts are the ratios of the best rounds. Where
the machine does much else, go by the CPU time.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from loader import read_pictures

from asl_core.data.decoding import decode_any
from asl_core.data.sources.files import read_file
from asl_core.modules.encoder import Encoder
from asl_core.recipes.models import MODELS
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.embedding import Pending, embed_pending, read_picture
from asl_core.transfer.embedding_vectors import InputForm, Reading

MEAN, STD = NORMALISATIONS["imagenet"]


def write_files(folder: Path, source: Path | None, count: int) -> list[Path]:
    """Write so many JPEGs, and return where they are."""
    paths = []
    for number, content in enumerate(read_pictures(source, count)):
        paths.append(folder / f"{number:05d}.jpg")
        paths[-1].write_bytes(content)
    return paths


def build_paths(files: list[Path], arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return, by name, functions that go through all files once."""
    resources = Resources(device=arguments.device, threads=arguments.threads)

    def decode() -> None:
        with ThreadPoolExecutor(arguments.workers) as pool:
            for _ in pool.map(lambda path: decode_any(read_file(path)), files):
                pass

    def embed(encoder: Encoder) -> None:
        images = [Pending(path.name, partial(read_picture, path)) for path in files]
        batches = embed_pending(
            encoder, images, Reading(), InputForm(encoder.vit.image_size, MEAN, STD),
            precision=arguments.precision, batch_size=arguments.batch,
            workers=arguments.workers, resources=resources,
        )  # fmt: skip
        for _ in batches:
            pass

    paths: dict[str, Callable[[], None]] = {"read and decode": decode}
    for name in arguments.models:
        encoder = Encoder(MODELS[name])
        paths[f"embed, {name}, {encoder.vit.image_size} px"] = partial(embed, encoder)
    return paths


def measure(
    paths: dict[str, Callable[[], None]], count: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return of each path the best images/s, and the least CPU milliseconds an image."""
    best = dict.fromkeys(paths, (0.0, float("inf")))
    for _ in range(rounds + 1):  # the first round warms up caches and counts as any other
        for name in random.sample(list(paths), len(paths)):
            start, cpu = time.perf_counter(), time.process_time()
            paths[name]()
            rate = count / (time.perf_counter() - start)
            spent = 1e3 * (time.process_time() - cpu) / count
            best[name] = max(best[name][0], rate), min(best[name][1], spent)
    return best


def main() -> None:
    """Measure and print a table."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="Images a second that are embedded from files.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--models", nargs="+", default=["vit-coco-mini", "vit-s"], choices=MODELS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(1, cores // 2))
    parser.add_argument("--threads", type=int, default=max(1, cores // 2))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), arguments.folder, arguments.images)
        size = sum(path.stat().st_size for path in files) / len(files) / 1e3
        load_before = os.getloadavg()[0]
        rates = measure(build_paths(files, arguments), len(files), arguments.rounds)
    device = (
        torch.cuda.get_device_name()
        if arguments.device != "cpu" and torch.cuda.is_available()
        else "CPU"
    )
    print(f"{len(files)} JPEGs, {size:.0f} kB on average; {device}, {arguments.precision}")
    print(f"{arguments.workers} decoding threads, {arguments.threads} computing, {cores} cores")
    print(f"load average {load_before:.2f} before, {os.getloadavg()[0]:.2f} after")
    decoding, spent = rates["read and decode"]
    for name, (rate, cpu) in rates.items():
        print(
            f"{name:30s} {rate:8.0f} images/s  {rate / decoding:5.2f} of decoding; "
            f"{cpu:7.1f} ms of CPU an image, {cpu / spent:5.1f} times that of decoding"
        )


if __name__ == "__main__":
    main()
