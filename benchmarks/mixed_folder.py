"""A folder of images as people have them, and one of class folders, to try `asl-pipe init` on.

    python benchmarks/mixed_folder.py FOLDER [--files 2000] [--labelled LABELLED] [--per-class 300]

FOLDER gets nested folders with as many files that their names say are images: pictures of COCO and
parts of them as JPEG (some CMYK, grey or turned by EXIF), PNG (some of 16 bits, with a palette or
transparent), WebP, AVIF, HEIC, BMP, TIFF and GIF; copies; files that are cut off, empty, or
something else; an image of 24 million pixels and one of 145 million. Beside them what lies about:
hidden files, texts, links to a folder and to nothing. LABELLED gets CIFAR-10's classes as folders.
Both are read from $ASL_DATA, ../shared/data beside the checkout: coco-mini, cifar10-jpeg.
"""

import argparse
import io
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

DATA = Path(os.environ.get("ASL_DATA") or Path(__file__).parents[2] / "shared" / "data")
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TURNED = 0x0112
"""EXIF's tag of the orientation."""


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[TURNED] = 6
    return _saved(image.rotate(90, expand=True), "JPEG", exif=exif)


def _deep(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    return _saved(Image.fromarray(grey), "PNG")


def _transparent(image: Image.Image) -> bytes:
    return _saved(Image.merge("RGBA", (*image.split(), image.convert("L"))), "PNG")


KINDS: dict[str, tuple[int, str, Callable[[Image.Image], bytes]]] = {
    "JPEG": (56, "jpg", lambda image: _saved(image, "JPEG", quality=90)),
    "PNG": (10, "png", lambda image: _saved(image, "PNG")),
    "WebP": (8, "webp", lambda image: _saved(image, "WEBP", quality=85)),
    "JPEG turned by EXIF": (5, "JPG", _turned),
    "CMYK JPEG": (4, "jpeg", lambda image: _saved(image.convert("CMYK"), "JPEG")),
    "grey JPEG": (3, "jpg", lambda image: _saved(image.convert("L"), "JPEG")),
    "PNG of 16 bits": (2, "png", _deep),
    "PNG with a palette": (2, "png", lambda image: _saved(image.quantize(64), "PNG")),
    "transparent PNG": (2, "png", _transparent),
    "TIFF": (2, "tif", lambda image: _saved(image, "TIFF")),
    "BMP": (2, "bmp", lambda image: _saved(image, "BMP")),
    "GIF": (2, "gif", lambda image: _saved(image.quantize(128), "GIF")),
    "AVIF": (1, "avif", lambda image: _saved(image, "AVIF")),
    "HEIC": (1, "heic", lambda image: _saved(image, "HEIF")),
}
"""What -> of a hundred files, suffix, how it is written."""


def broken(jpeg: bytes, draw: random.Random) -> list[tuple[str, str, bytes]]:
    """Return files that cannot be used: what, suffix, content."""
    cut = [("cut off", "jpg", jpeg[: draw.randrange(400, len(jpeg) // 2)]) for _ in range(8)]
    empty = [("empty", "png", b"")] * 4
    other = [("a text", "jpg", b"<html>404 not found</html>")] * 4
    noise = [("noise", "webp", draw.randbytes(3000)) for _ in range(4)]
    return [*cut, *empty, *other, *noise]


def huge(side: tuple[int, int]) -> bytes:
    """Return a JPEG of so many pixels."""
    rows = np.linspace(0, 255, side[1], dtype=np.uint8)[:, None]
    return _saved(Image.fromarray(np.repeat(rows, side[0], axis=1)), "JPEG", quality=60)


def write_mixed(folder: Path, files: int, seed: int = 0) -> Counter[str]:
    """Write the folder and return how many files of each kind it has."""
    _register_heic()
    draw = random.Random(seed)
    pictures = sorted((DATA / "coco-mini").glob("*2017/*.jpg"))
    weights = [weight for weight, _, _ in KINDS.values()]
    found: Counter[str] = Counter()

    def put(what: str, suffix: str, content: bytes) -> None:
        number = sum(found.values())
        place = folder / f"{2015 + number % 9}" / ("trip", "home", "work/scans")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"IMG_{number:05d}.{suffix}").write_bytes(content)
        found[what] += 1

    for picture in pictures[: files // 4]:
        put("picture as it is", "jpg", picture.read_bytes())
    for what, suffix, content in broken(pictures[0].read_bytes(), draw):
        put(what, suffix, content)
    put("24 million pixels", "jpg", huge((6000, 4000)))
    put("145 million pixels", "jpg", huge((14_500, 10_000)))
    for picture in pictures[:20]:
        put("copy", "jpg", picture.read_bytes())
    while sum(found.values()) < files:
        with Image.open(draw.choice(pictures)) as image:
            whole = image.convert("RGB")
        width, height = (draw.randrange(side // 3, side) for side in whole.size)
        left, top = (whole.width - width) * draw.random(), (whole.height - height) * draw.random()
        part = whole.crop((int(left), int(top), int(left) + width, int(top) + height))
        what = draw.choices(list(KINDS), weights)[0]
        put(what, KINDS[what][1], KINDS[what][2](part))
    (folder / "Thumbs.db").write_bytes(b"\0" * 512)
    (folder / "2015/.hidden.jpg").write_bytes(b"")
    (folder / "2016/notes.txt").write_text("holiday\n")
    (folder / "2017/again").symlink_to(folder / "2015", target_is_directory=True)
    (folder / "2018/gone.jpg").symlink_to(folder / "nowhere.jpg")
    return found


def write_labelled(folder: Path, per_class: int) -> None:
    """Write the first images of each class of CIFAR-10's training set into class folders."""
    table = parquet.read_table(DATA / "cifar10-jpeg/train.parquet")
    written: Counter[int] = Counter()
    for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
        if written[label] < per_class:
            place = folder / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{written[label]:04d}.jpg").write_bytes(image["bytes"])
            written[label] += 1


def _register_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        del KINDS["HEIC"]
    else:
        register_heif_opener()


def main() -> None:
    """Write the folders and say what is in them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--labelled", type=Path)
    parser.add_argument("--per-class", type=int, default=300)
    options = parser.parse_args()
    for what, count in write_mixed(options.folder.absolute(), options.files).items():
        print(f"{count:5} {what}")
    if options.labelled is not None:
        write_labelled(options.labelled, options.per_class)


if __name__ == "__main__":
    main()
