"""For people who do not want a pipeline: from images to an encoder, from an encoder to vectors.

Three functions, `pretrain`, `load_encoder` and `embed`, on the same code that the stages run. They
are here, and not at the top of `asl_core`, for two reasons: `asl_core.pretrain` is a module, which
the name of a function would hide or be hidden by, whichever is imported last; and what
`asl_core/__init__.py` says is part of the code of every stage, so that an edit to this interface
would make every recorded result stale.
"""

import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from asl_core.data.manifest import FILE_NAME, read_manifest
from asl_core.data.prepare import prepare
from asl_core.engine.context import RunContext
from asl_core.engine.devices import pick_device
from asl_core.engine.journal import Journal
from asl_core.errors import InputError
from asl_core.exchange.importing import import_encoder
from asl_core.exchange.origin import ImportOptions
from asl_core.exchange.starting import read_encoder
from asl_core.modules import encoder as encoder_files
from asl_core.modules.encoder import ARCHITECTURE_FILE, WEIGHTS_FILE, Encoder, save_encoder
from asl_core.modules.starting import begin_with_encoder
from asl_core.pretrain import pretrain as train
from asl_core.protocol import Method
from asl_core.recipes.catalogue import RECIPES
from asl_core.recipes.datasets import Dataset, Images, as_mapping, as_packed
from asl_core.recipes.initialise import Initialise
from asl_core.recipes.models import MODELS, Vit
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.packing import Packing
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.transfer.embedding import embed

__all__ = ["embed", "load_encoder", "pretrain"]

SETTINGS_FILE = "settings.json"
"""In the folder of an encoder: all that it was asked for with."""
CHECKPOINTS = "checkpoints"
_OF_THE_PIPELINE = ("method", "dataset", "snapshots", "watch", "held_out_images")
"""Fields of a recipe that mean nothing, or are given otherwise, where there is no pipeline."""


def pretrain(
    images: str | Path | Dataset,
    out: str | Path,
    *,
    method: str = "mae",
    model: str | Vit = "vit-s",
    epochs: int = 100,
    batch_size: int = 256,
    initialise: str | Path | None = None,
    resources: Resources | None = None,
    **settings: Any,
) -> Encoder:
    """Pre-train an encoder on images, and keep it in a folder of its own.

    The images are packed into `out/data` once; what becomes of their folder afterwards changes
    nothing. Training writes checkpoints: the same call goes on where it was stopped, by Ctrl-C, by
    a signal or by a crash, and ends with the same weights. Once it has ended, the same call
    returns what it left. Losses and rates are in `out/journal`, a line of JSON each.

    Args:
        images: A folder, with all below it, of which a twentieth is held out; or a source with
            options, such as `asl_core.recipes.datasets.Images(path=..., labels="folder")`.
        out: Where the encoder goes: a new folder, or that of the same call.
        method: A name in `asl_core.recipes.catalogue.RECIPES`.
        model: A name in `asl_core.recipes.models.MODELS`, or a size.
        epochs: Passes over the images.
        batch_size: Images of a step; at most as many as there are.
        initialise: Weights to begin with: a folder with encoder.safetensors, or a checkpoint as
            `load_encoder` reads it. Absent: drawn.
        resources: Device, threads, loader processes: they change rounding at most. Absent: a GPU
            where there is one; on a CPU one thread and no loader process.
        settings: Any other field of the method's recipe. What is not given is as published, but
            for a warm-up of a twentieth of the epochs, and float32 where there is no GPU.

    Returns:
        The encoder, in evaluation mode, on the CPU.

    Raises:
        InputError: There is no such method, model, setting or image; `out` holds something else,
            is another run's, or cannot be written.
        InterruptedRun: A signal stopped it at a checkpoint.
        TrainingError: The loss is not finite, or the memory is not enough.

    Examples:
        With images in the folder `photos`:

        >>> from asl_core.api import pretrain
        >>> encoder = pretrain(
        ...     "photos", "my-encoder", model="vit-demo-4", epochs=2, batch_size=16, lr=1e-3
        ... )
        >>> encoder.vit.embed_dim
        96
    """
    resources = resources or Resources()
    source = images if isinstance(images, Packing) else Images(path=str(Path(images).absolute()))
    settings.setdefault("warmup_epochs", epochs / 20)
    if pick_device(resources).type == "cpu":
        settings.setdefault("precision", "fp32")
    settings |= {"epochs": epochs, "batch_size": batch_size}
    recipe = _recipe(method, model, settings, initialise)
    folder = Path(out)
    with _own_folder(folder, source, recipe):
        if not (folder / ARCHITECTURE_FILE).is_file():  # which is written last
            _train(source, recipe, folder, resources)
        return load_encoder(folder)


def load_encoder(path: str | Path, *, image_size: int | None = None) -> Encoder:
    """Load an encoder of this project, or from a checkpoint of another one.

    Args:
        path: A folder with encoder.safetensors and encoder.json, as `pretrain`, the stage of that
            name (`runs/encoder/<name>`) and `asl-pipe import-encoder` leave it. Or a file that MAE,
            timm, DINO, DINOv2, iBOT or MoCo v3 wrote, .safetensors or .pth; none of its code runs.
        image_size: Side of the input in pixels, to which positions are resized. Absent: that of
            the weights.

    Returns:
        The encoder, in evaluation mode, on the CPU.

    Raises:
        InputError: There is none, it cannot be read, or it is no ViT that this encoder can hold;
            names the first tensor that stands against it.

    Examples:
        >>> from asl_core.api import load_encoder
        >>> encoder = load_encoder("my-encoder", image_size=64)
        >>> encoder.vit.grid_size
        16
        >>> load_encoder("nowhere")
        Traceback (most recent call last):
        asl_core.errors.InputError: nowhere does not exist; give an encoder's folder or a checkpoint
    """
    place = Path(path)
    if not place.exists():
        raise InputError(f"{place} does not exist; give an encoder's folder or a checkpoint")
    if place.is_dir():
        return encoder_files.load_encoder(place, image_size=image_size).eval()
    state, vit, _ = import_encoder(place, ImportOptions(image_size=image_size))
    encoder = Encoder(vit)
    encoder.load_state_dict(state)
    return encoder.eval()


def _recipe(
    method: str, model: str | Vit, settings: dict[str, Any], initialise: str | Path | None
) -> Pretraining:
    """Return a method's recipe, or say in one line what is wrong with it."""
    kind = _named(RECIPES, method, "method")
    size = model if isinstance(model, Vit) else _named(MODELS, model, "model")
    fields = [field.name for field in dataclasses.fields(kind)]
    for name in settings:
        _named({each: each for each in fields if each not in _OF_THE_PIPELINE}, name, "setting")
    start = None if initialise is None else _start(Path(initialise))
    try:
        recipe = kind(dataset="images", model=size, initialise=start, **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{method}: {error}") from None
    if isinstance(recipe, TokenPretraining):
        raise InputError(
            f"{method} predicts codes of a tokenizer, which only the stage tokenize makes; choose "
            "another method, or asl-pipe"
        )
    return recipe


def _named(table: dict[str, Any], name: str, what: str) -> Any:
    """Return a table's entry.

    Raises:
        InputError: It has none of this name; the nearest is named, or all are.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 1)
    remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(table)}"
    raise InputError(f"there is no {what} {name!r}; {remedy}")


def _start(place: Path) -> Initialise:
    """Return weights to begin with by what identifies them."""
    file = place / WEIGHTS_FILE if place.is_dir() else place
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"initialise: {file} cannot be read: {error.strerror}; give an encoder's folder or a "
            "checkpoint"
        ) from None
    return Initialise(path=str(place.resolve()), sha256=digest)


@contextmanager
def _own_folder(folder: Path, source: Dataset, recipe: Pretraining) -> Iterator[None]:
    """Make sure that a folder is this run's, and that no other process works in it.

    Raises:
        InputError: It is not, or one does, or it cannot be written.
    """
    asked = _plain({"images": as_mapping(source), "recipe": dataclasses.asdict(recipe)})
    settings = folder / SETTINGS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process trains in {folder}; wait for it") from None
            if not settings.is_file() and any(each.name != ".lock" for each in folder.iterdir()):
                (folder / ".lock").unlink()
                raise InputError(f"{folder} holds other files; name a new folder")
            if _has_steps(folder):
                _refuse_others(folder, json.loads(settings.read_bytes()), asked)
            else:
                _write_whole(settings, json.dumps(asked, indent=2, sort_keys=True) + "\n")
            yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: {error.strerror or error}; make it writable, and "
            "room on its disk"
        ) from error


def _has_steps(folder: Path) -> bool:
    """Say whether a run has got anywhere; before, a call may be corrected."""
    checkpoints = folder / CHECKPOINTS
    begun = checkpoints.is_dir() and any(checkpoints.iterdir())
    return begun or (folder / ARCHITECTURE_FILE).is_file()


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: with lists for tuples."""
    return json.loads(json.dumps(value))


def _refuse_others(folder: Path, made: Any, asked: Any) -> None:
    """Refuse to go on with other settings than a run began with; names the first."""
    for part, settings in asked.items():
        before = made.get(part, {})
        for name in sorted({*settings, *before}):
            if settings.get(name) != before.get(name):
                raise InputError(
                    f"{folder} is of another run: {part}.{name} is {before.get(name)!r} there and "
                    f"{settings.get(name)!r} here; name a new folder"
                )


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _train(source: Dataset, recipe: Pretraining, folder: Path, resources: Resources) -> None:
    """Pack, train, and leave the encoder; goes on where it was stopped."""
    data, checkpoints = folder / "data", folder / CHECKPOINTS
    manifest = read_manifest(data) if (data / FILE_NAME).is_file() else None  # written last
    if manifest is None or _plain(manifest.source) != _plain(as_packed(source)):
        rejected = folder / "rejected.txt"
        prepare(source, Path.cwd(), data, name="images", rejected_list=rejected)
    start = recipe.initialise
    begin = None if start is None else partial(_begin, start)
    with Journal.open(folder / "journal") as journal:
        context = RunContext(checkpoints, journal, resources, "pretrain", folder.name)
        method = train(recipe, data, context, initialise=begin)
    save_encoder(folder, method.encoder_state(), recipe.model, recipe.encoder_parts)
    shutil.rmtree(checkpoints)


def _begin(start: Initialise, method: Method) -> None:
    """Give a method the weights that it is to begin with."""
    assert start.path is not None  # as `_start` makes it
    place = Path(start.path)
    begin_with_encoder(method, read_encoder(place, start.sha256), place)
