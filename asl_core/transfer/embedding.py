"""Embeddings of image files: read, decoded and cropped ahead in threads, encoded in batches.

An image is resized and cropped as the evaluations do it with those of a packed dataset, so that
equal pixels give the vectors that `transfer.features` gives. What cannot be read becomes a reason
and stops nothing. A batch is always the same images, whatever is readable and however many threads
decode.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from asl_core.data.decoding import decode_any
from asl_core.data.samples import Sample
from asl_core.data.sources.files import read_file, shown
from asl_core.data.sources.listing import Listing
from asl_core.data.sources.source import Rejected
from asl_core.data.views import evaluation_transform, normalise
from asl_core.engine.devices import autocast, pick_device
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.recipes.embedding import LAST, Pooling
from asl_core.recipes.normalisation import NORMALISATIONS, Rgb
from asl_core.recipes.optimisation import Resources
from asl_core.transfer.embedding_vectors import InputForm, Reading, check_layer, read_out

Given = TypeVar("Given")
Made = TypeVar("Made")

BATCH = 64
AHEAD = 2
"""Batches that are decoded before they are needed."""

ImageLike = str | Path | bytes | Tensor | Image.Image
"""A file, its content, decoded pixels (3, H, W) uint8, or Pillow's image."""


class Picture(NamedTuple):
    """An image as it was found: pixels (3, H, W) uint8, and the sha256 of its file."""

    pixels: Tensor
    sha256: str


@dataclass(frozen=True)
class Pending:
    """An image that is to be read.

    Attributes:
        name: What it will be called.
        read: Reads and decodes it; raises OSError or ValueError where that cannot be done.
    """

    name: str
    read: Callable[[], Picture]


@dataclass
class Rows:
    """Images and what was made of them; those that could not be read are apart.

    Attributes:
        names: Of those that could be read, N.
        sha256: Of their files.
        heights: In pixels, as they are viewed.
        widths: Likewise.
        vectors: (N, E), float32.
        patches: (N, P, D), float32; None where nobody wanted them.
        rejected: The others, and why.
    """

    names: list[str]
    sha256: list[str]
    heights: list[int]
    widths: list[int]
    vectors: Tensor
    patches: Tensor | None
    rejected: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


class _Cropped(NamedTuple):
    name: str
    sha256: str
    height: int
    width: int
    square: Tensor  # (3, S, S), uint8


def embed(
    encoder: Encoder,
    images: str | Path | Sequence[ImageLike],
    *,
    pooling: Pooling = "cls",
    layer: int = LAST,
    patch_tokens: bool = False,
    mean: Rgb = NORMALISATIONS["imagenet"][0],
    std: Rgb = NORMALISATIONS["imagenet"][1],
    precision: str = "fp32",
    batch_size: int = BATCH,
    workers: int = 1,
    resources: Resources | None = None,
) -> Rows:
    """Return a vector for each image.

    Args:
        encoder: As `load_encoder` returns it; its `image_size` is the side of the input. Moved to
            the device of the resources; in evaluation afterwards.
        images: A folder, all of whose images are taken, in the order of their names; or images:
            files, contents of files, uint8 tensors (3, H, W), Pillow's. Those that are no files
            are called by their number.
        pooling: cls, mean, or cls+mean, which is one behind the other.
        layer: Which block, counted from the last, -1.
        patch_tokens: Whether to return the vectors of the patches too.
        mean: Normalisation that the encoder was trained with.
        std: Likewise.
        precision: fp32 or bf16.
        batch_size: Images that go through the encoder together.
        workers: Threads that read and decode ahead.
        resources: Device; absent: a GPU where there is one.

    Returns:
        Rows in the order of the images; those that could not be read are in `rejected`.

    Raises:
        InputError: The folder is none or cannot be read, there is no image that can be read, or
            the encoder has fewer blocks.
        ValueError: There is no such pooling, or the layer counts from no end.

    Examples:
        With images in the folder `photos`:

        >>> from asl_core.api import embed, load_encoder
        >>> rows = embed(load_encoder("my-encoder"), "photos", pooling="mean")
        >>> rows.vectors.shape
        torch.Size([64, 96])
        >>> len(embed(load_encoder("my-encoder"), ["photos/07.png"]))
        1
    """
    found = _pending_of(images)
    batches = embed_pending(
        encoder, found, Reading(pooling, layer, patch_tokens),
        InputForm(encoder.vit.image_size, mean, std),
        precision=precision, batch_size=batch_size, workers=workers,
        resources=resources or Resources(),
    )  # fmt: skip
    rows = joined(list(batches)) if found else None
    if rows is None or not len(rows):
        first = rows.rejected[0] if rows is not None else None
        why = "" if first is None else f", the first {first.name}: {first.reason}"
        raise InputError(f"there is no image that can be read among {len(found)}{why}")
    return rows


def embed_pending(
    encoder: Encoder,
    images: Sequence[Pending],
    reading: Reading,
    form: InputForm,
    *,
    precision: str,
    batch_size: int,
    workers: int,
    resources: Resources,
) -> Iterator[Rows]:
    """Yield batch after batch of images, in their order, decoded ahead while others are encoded.

    Args:
        encoder: Moved to the device of the resources; in evaluation afterwards.
        images: All of them.
        reading: What is read.
        form: What the encoder gets.
        precision: Of the encoder.
        batch_size: Images of a batch; those that cannot be read leave theirs smaller.
        workers: Threads that decode; 0: this one does.
        resources: Device.

    Raises:
        InputError: The encoder has fewer blocks, or makes vectors that are not finite.
    """
    check_layer(encoder, reading.layer)
    device = pick_device(resources)
    encoder.to(device).eval()
    crop = partial(_read_and_crop, form.image_size)
    with closing(in_order(crop, images, workers, (AHEAD + 1) * batch_size)) as cropped:
        for first in range(0, len(images), batch_size):
            found = [next(cropped) for _ in images[first : first + batch_size]]
            yield _encoded(encoder, found, reading, form, precision, device)


def joined(parts: Sequence[Rows]) -> Rows:
    """Return rows one behind the other; at least one part is needed."""
    patches = [part.patches for part in parts if part.patches is not None]
    return Rows(
        names=[name for part in parts for name in part.names],
        sha256=[digest for part in parts for digest in part.sha256],
        heights=[height for part in parts for height in part.heights],
        widths=[width for part in parts for width in part.widths],
        vectors=torch.cat([part.vectors for part in parts]),
        patches=torch.cat(patches) if patches else None,
        rejected=[rejected for part in parts for rejected in part.rejected],
    )


def in_order(
    function: Callable[[Given], Made], items: Iterable[Given], workers: int, ahead: int
) -> Generator[Made, None, None]:
    """Yield what a function makes of items, in their order, computed ahead in threads.

    Args:
        function: Called in any thread.
        items: Gone through as needed.
        workers: Threads; 0: the caller's.
        ahead: Items that are begun before what becomes of the first of them is taken.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    begun: deque[Future[Made]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_picture(path: Path) -> Picture:
    """Read and decode a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, or cannot be decoded.
    """
    content = read_file(path)
    return Picture(decode_any(content), hashlib.sha256(content).hexdigest())


@torch.no_grad()
def _encoded(
    encoder: Encoder,
    found: Sequence[_Cropped | Rejected],
    reading: Reading,
    form: InputForm,
    precision: str,
    device: torch.device,
) -> Rows:
    """Encode those images of a batch that could be read."""
    images = [each for each in found if isinstance(each, _Cropped)]
    rejected = [each for each in found if isinstance(each, Rejected)]
    patches = None
    if images:
        batch = torch.stack([image.square for image in images])  # (B, 3, S, S)
        if device.type == "cuda":
            batch = batch.pin_memory()
        with autocast(device, precision):
            pixels = batch.to(device, non_blocking=True)
            read = read_out(encoder, normalise(pixels, form.mean, form.std), reading)
        vectors = read.vectors.float().cpu()
        patches = None if read.patches is None else read.patches.float().cpu()
        if not bool(vectors.isfinite().all()):
            raise InputError(
                "the encoder makes embeddings that are not finite; look at its pre-training"
            )
    else:
        width = encoder.vit.embed_dim
        vectors = torch.empty(0, reading.dimension(width))
        if reading.patch_tokens:
            patches = torch.empty(0, encoder.vit.num_patches, width)
    return Rows(
        names=[image.name for image in images],
        sha256=[image.sha256 for image in images],
        heights=[image.height for image in images],
        widths=[image.width for image in images],
        vectors=vectors,
        patches=patches,
        rejected=rejected,
    )


def _read_and_crop(image_size: int, pending: Pending) -> _Cropped | Rejected:
    """Read an image and cut out what the encoder sees, or say why that cannot be done."""
    try:
        picture = pending.read()
        height, width = picture.pixels.shape[1:]
        sample = Sample(index=0, image_id=0, image=picture.pixels)
        square = evaluation_transform(image_size)(sample).image
    except OSError as error:
        return Rejected(pending.name, f"unreadable: {error.strerror or error}")
    except ValueError as error:
        return Rejected(pending.name, str(error))
    return _Cropped(pending.name, picture.sha256, height, width, square)


def _pending_of(images: str | Path | Sequence[ImageLike]) -> list[Pending]:
    if isinstance(images, str | Path):
        root = Path(images)
        if not root.is_dir():
            raise InputError(f"{shown(root)} is no folder; give one, or a list of images")
        listing = Listing()
        listing.walk(root)
        return [
            Pending(shown(each.path.relative_to(root)), partial(read_picture, each.path))
            for each in listing.images
        ]
    return [_pending(number, image) for number, image in enumerate(images)]


def _pending(number: int, image: ImageLike) -> Pending:
    if isinstance(image, str | os.PathLike):
        return Pending(shown(image), partial(read_picture, Path(image)))
    return Pending(str(number), partial(_as_picture, image))


def _as_picture(image: bytes | Tensor | Image.Image) -> Picture:
    """Take pixels as they are; their digest is that of the values, row by row."""
    if isinstance(image, bytes):
        return Picture(decode_any(image), hashlib.sha256(image).hexdigest())
    pixels = pil_to_tensor(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"is {tuple(pixels.shape)} {pixels.dtype}, expected (3, H, W) uint8")
    return Picture(pixels, hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest())
