"""Embed images into a file: names become places; what loads torch does the rest."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asl_core.data.manifest import FILE_NAME
from asl_core.recipes.embedding import LAST, Pooling, require_layer
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.recipes.optimisation import Resources
from pipeline.config.params import load_params
from pipeline.config.suggest import hint
from pipeline.errors import UserError
from pipeline.execution.encoder_place import encoder_named, project_here
from pipeline.execution.gpus import find_gpus
from pipeline.execution.output_place import refuse_file_in_the_way
from pipeline.garbage import collect_as_usual
from pipeline.project import Project
from pipeline.stages.embedding_job import Embedded, EmbeddingJob, EncoderPlace
from pipeline.stages.table import PREPARE, TOKENIZE

SUFFIXES = (".parquet", ".npz")
DEFAULT_NORMALISATION = "imagenet"


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What a person asks for; fields as those of `EmbeddingJob`, None where nothing was said.

    Attributes:
        layer: last, or -1, -2, ...
    """

    name: str
    images: Sequence[str]
    out: Path
    version: str
    pooling: Pooling = "cls"
    layer: str = "last"
    patch_tokens: bool = False
    image_size: int | None = None
    normalisation: str | None = None
    precision: str = "fp32"
    batch_size: int = 64
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    force: bool = False


@dataclass(frozen=True)
class EmbedOutcome:
    """What was made, and what a person should know of it.

    Attributes:
        made: The file.
        doubts: Of the encoder, a line each.
    """

    made: Embedded
    doubts: tuple[str, ...]


def embed_images(request: EmbedRequest, start: Path) -> EmbedOutcome:
    """Embed images.

    Args:
        request: What is asked for.
        start: The current folder.

    Raises:
        UserError: A name or an option is wrong, another file is there, or memory is too small.
        InputError: The encoder or the images cannot be used.
        NotFinishedError: Another process writes the same file.
    """
    if request.out.suffix not in SUFFIXES:
        raise UserError(f"{request.out}: a file of embeddings ends in {' or '.join(SUFFIXES)}")
    if request.out.is_dir():
        raise UserError(f"{request.out} is a folder; give the name of a file")
    refuse_file_in_the_way(request.out.parent)
    layer = layer_number(request.layer)
    project = project_here(start)
    named = encoder_named(request.name, project)
    images, datasets = _sorted_out(request.images, project)
    mean, std = NORMALISATIONS[normalisation_of(named.place, request.normalisation)]
    resources, workers = prepare_computing(request.device, request.threads, request.workers)
    job = EmbeddingJob(
        encoder=named.place, images=images, datasets=datasets, out=request.out,
        version=request.version, mean=mean, std=std, pooling=request.pooling, layer=layer,
        patch_tokens=request.patch_tokens, image_size=request.image_size,
        precision=request.precision, batch_size=request.batch_size, workers=workers,
        resources=resources, force=request.force,
    )  # fmt: skip
    embedding = importlib.import_module("pipeline.stages.embedding")  # loads torch
    collect_as_usual()
    try:
        return EmbedOutcome(embedding.make_embeddings(job), named.doubts)
    except (RuntimeError, MemoryError) as error:  # torch says so of memory as of other things
        if not is_of_memory(error):
            raise
        raise UserError(
            "not enough memory for the encoder and its images; take a smaller --batch or "
            "--image-size"
        ) from error


def is_of_memory(error: Exception) -> bool:
    """Say whether memory was refused, on a CPU or a GPU."""
    said = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def layer_number(text: str) -> int:
    """Return which block is meant, counted from the last, -1.

    Raises:
        UserError: It is neither `last` nor a negative number.
    """
    try:
        layer = LAST if text == "last" else int(text)
        require_layer(layer)
    except ValueError:
        raise UserError(f"--layer {text}: expected last, or -1, -2, ... from the end") from None
    return layer


def normalisation_of(place: EncoderPlace, asked: str | None) -> str:
    """Return the name of the constants that images are normalised with.

    Raises:
        UserError: There are none of that name.
    """
    if asked is not None and asked not in NORMALISATIONS:
        raise UserError(f"--normalisation {asked}: expected one of {', '.join(NORMALISATIONS)}")
    return asked or place.normalisation or DEFAULT_NORMALISATION


def prepare_computing(
    device: str, threads: int | None, workers: int | None
) -> tuple[Resources, int]:
    """Share the cores between what decodes and what computes, before torch is loaded.

    On a CPU each has half of them; beside a GPU all decode.
    """
    cores = len(os.sched_getaffinity(0))
    on_gpu = device == "cuda" or (device == "auto" and bool(find_gpus().uuids))
    if workers is None:
        workers = cores if on_gpu else max(1, cores // 2)
    if threads is None:
        threads = 1 if on_gpu else max(1, cores - workers)
    if "torch" not in sys.modules:  # as torch reads them when it is imported
        os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return Resources(device=device, threads=threads), workers  # type: ignore[arg-type]


def _sorted_out(
    given: Sequence[str], project: Project | None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return folders and files of images, and packed datasets; one of the two is empty.

    Raises:
        UserError: Something is not there, is not clear, or both kinds are mixed.
    """
    images: list[Path] = []
    datasets: list[Path] = []
    for text in given:
        packed = _packed(text, project)
        path = Path(text).expanduser()
        if packed is not None and path.exists() and not _is_packed(path):
            raise UserError(f"{text} is a dataset and a folder or file; write {packed} or ./{text}")
        if packed is not None:
            datasets.append(packed)
        elif not path.exists():
            raise UserError(f"{text} does not exist{_dataset_hint(text, project)}")
        else:
            images.append(path)
    if images and datasets:
        raise UserError(
            f"got files ({images[0]}) and packed datasets ({datasets[0]}); embed these apart"
        )
    return tuple(images), tuple(datasets)


def _packed(text: str, project: Project | None) -> Path | None:
    """Return the folder of a packed dataset, with a split or without, if that is meant."""
    path = Path(text).expanduser()
    if _is_packed(path):
        return path
    if project is None:
        return None
    name, _, split = text.rstrip("/").partition("/")
    params = load_params(project.params_file)
    if name not in (*params.datasets, *params.tokenizers) or split not in ("", "train", "test"):
        return None
    folder = project.suite / PREPARE.output_paths(name)["dataset"]
    if not (folder / FILE_NAME).is_file():
        maker = (TOKENIZE if name in params.tokenizers else PREPARE).run_name(name)
        if path.exists():
            return None
        raise UserError(f"{project.shown(folder)} does not exist; run `dvc repro {maker}`")
    return folder / split if split else folder


def _is_packed(path: Path) -> bool:
    """Say whether a path is a packed dataset, or one and a split."""
    return (path / FILE_NAME).is_file() or (
        path.name in ("train", "test") and not path.exists() and (path.parent / FILE_NAME).is_file()
    )


def _dataset_hint(text: str, project: Project | None) -> str:
    if project is None:
        return "; give folders of images, or image files"
    params = load_params(project.params_file)
    known = [*params.datasets, *params.tokenizers]
    return (
        f"{hint(text, known)}; give folders of images, image files, or a dataset of suite "
        f"{params.suite} (valid: {', '.join(known) or 'none'})"
    )
