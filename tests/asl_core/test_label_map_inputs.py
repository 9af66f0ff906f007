"""Semantic maps: the numbers that their author wrote, or the map is not used."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_cases import (
    Accepted,
    Case,
    Change,
    Refused,
    add,
    all_of,
    check,
    each,
    encoded,
    link,
    make_folder,
    picture,
    png,
    put,
    remove,
)

from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.recipes.datasets import Ade20k

NAMES = ("wall", "sky", "sea")
NUMBERS = np.array([[0, 1, 2, 3, 255]], dtype=np.uint8).repeat(6, 0).repeat(3, 1)  # (6, 15)
FEW = NUMBERS % 4  # 255 becomes 3
X = "images/training/x.jpg"
MAP = "annotations/training/x.png"


def image(name: str, seed: int) -> Change:
    """Put an image of the size of the maps."""
    return add(name, picture(seed, *NUMBERS.shape))


def grey(numbers: np.ndarray = NUMBERS) -> bytes:
    return encoded(Image.fromarray(numbers), "PNG")


def make(folder: Path) -> None:
    """Two training images, x and y, and a test image z, with maps."""
    for number, name in enumerate(("training/x", "training/y", "validation/z")):
        put(folder / f"images/{name}.jpg", picture(number, *NUMBERS.shape))
        put(folder / f"annotations/{name}.png", grey())
    put(folder / "classes.json", json.dumps(NAMES).encode())


def fine(
    train: int = 2, rejected: dict[str, str] | None = None, notes: tuple[str, ...] = ()
) -> Accepted:
    return Accepted([None] * train, [None], NAMES, rejected or {}, notes)


def rejected(reason: str) -> Accepted:
    """Return what is expected where the map of x cannot be used."""
    return fine(1, {X: reason})


def raw_png(numbers: np.ndarray, bits: int, colour: int) -> bytes:
    """Return a PNG of a depth that Pillow does not write; numbers: (H, W)."""
    height, width = numbers.shape
    lines = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    packed = np.packbits(lines.reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + line.tobytes() for line in packed)
    return png(width, height, rows, bits=bits, colour=colour)


def flipped(content: bytes) -> bytes:
    """Return the file with one bit of its pixels changed."""
    position = content.index(b"IDAT") + 10
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def palette(numbers: np.ndarray) -> Image.Image:
    made = Image.fromarray(numbers).convert("P")
    made.putdata(numbers.ravel().tolist())
    made.putpalette([7, 7, 7] * 256)
    return made


def animated() -> bytes:
    frames = [Image.fromarray(NUMBERS), Image.fromarray(FEW)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


TIFF, BMP, JPEG = (encoded(Image.fromarray(NUMBERS), kind) for kind in ("TIFF", "BMP", "JPEG"))
GREY = Image.fromarray(NUMBERS)

PNGS: list[Case] = [
    ("grey of 8 bits", all_of(), fine()),
    ("palette of 8 bits", add(MAP, encoded(palette(NUMBERS), "PNG")), fine()),
    ("palette of 4 bits", add(MAP, raw_png(FEW, 4, 3)), fine()),
    ("palette of 2 bits", add(MAP, raw_png(FEW, 2, 3)), fine()),
    ("palette of 1 bit", add(MAP, raw_png(FEW % 2, 1, 3)), fine()),
    ("grey of 4 bits", add(MAP, raw_png(FEW, 4, 0)), rejected("is not of 8 bits but of 4")),
    ("grey of 2 bits", add(MAP, raw_png(FEW, 2, 0)), rejected("is not of 8 bits but of 2")),
    ("grey of 1 bit", add(MAP, encoded(GREY.convert("1"), "PNG")), rejected("8 bits but of 1")),
    ("grey of 16 bits", add(MAP, encoded(Image.fromarray(NUMBERS.astype(np.uint16)), "PNG")),
     rejected("is not of 8 bits but of 16")),
    ("colours", add(MAP, encoded(GREY.convert("RGB"), "PNG")), rejected("is not grey: RGB")),
    ("colours with alpha", add(MAP, encoded(GREY.convert("RGBA"), "PNG")),
     rejected("is not grey: RGB with transparency")),
    ("grey with alpha", add(MAP, encoded(GREY.convert("LA"), "PNG")),
     rejected("is not grey: grey with transparency")),
    ("grey with one transparent value", add(MAP, encoded(GREY, "PNG", transparency=1)), fine()),
    ("palette with one transparent value",
     add(MAP, encoded(palette(NUMBERS), "PNG", transparency=0)), fine()),
    ("animated", add(MAP, animated()), rejected("is no still image: an animated PNG")),
    ("JPEG under a PNG's name", add(MAP, JPEG), rejected("its semantic map is no PNG: JPEG")),
    ("TIFF under a PNG's name", add(MAP, TIFF), rejected("is no PNG: of an unknown format")),
    ("GIF under a PNG's name", add(MAP, encoded(GREY, "GIF")), rejected("is no PNG: GIF")),
    ("empty file", add(MAP, b""), rejected("the file of its semantic map is empty")),
    ("signature alone", add(MAP, grey()[:8]), rejected("its semantic map cannot be decoded")),
    ("truncated", add(MAP, grey()[:-25]), rejected("its semantic map is damaged")),
    ("one bit flipped", add(MAP, flipped(grey())), rejected("its semantic map is damaged")),
    ("many pixels", add(MAP, png(2**28, 1, b"", bits=1, colour=3)),
     rejected("its semantic map has more than 134217728 pixels: 268435456x1")),
    ("another size", add(MAP, grey(NUMBERS[:-1])), rejected("its annotations are for 15x5")),
    ("a class too many", add(MAP, grey(NUMBERS + 1)),
     rejected("its semantic map has label 4, but there are 3 classes; name them")),
    ("nothing labelled", add(MAP, grey(NUMBERS * 0)), fine()),
]  # fmt: skip

NO_MAP = "has no semantic map: x.png"
LAYOUT: list[Case] = [
    ("no map", remove(MAP), rejected(NO_MAP)),
    ("map that is a folder", all_of(remove(MAP), make_folder(MAP)), rejected(NO_MAP)),
    ("map that is a dangling link", all_of(remove(MAP), link(MAP, "gone.png")),
     rejected("its semantic map is a link to gone.png, which does not exist")),
    ("map named in capitals", all_of(remove(MAP), add("annotations/training/x.PNG", grey())),
     fine()),
    ("map of another format", all_of(remove(MAP), add("annotations/training/x.bmp", BMP)),
     rejected("its semantic map is no PNG")),
    ("maps of two formats", add("annotations/training/x.bmp", BMP), fine()),
    ("maps without an image",
     all_of(remove(X), add("annotations/training/w.png", grey())),
     fine(1, notes=("2 semantic maps have no image, the first annotations/training/w.png.",))),
    ("images in folders",
     all_of(image("images/training/a/x.jpg", 5), add("annotations/training/a/x.png", grey())),
     fine(3)),
    ("images in folders, maps not", image("images/training/a/x.jpg", 5),
     fine(rejected={"images/training/a/x.jpg": "has no semantic map: a/x.png"})),
    ("two images with one map", image("images/training/x.webp", 5),
     fine(rejected={"images/training/x.webp": "another image: images/training/x.jpg"})),
    ("image that is a dangling link", link("images/training/w.jpg", "gone.jpg"),
     fine(rejected={"images/training/w.jpg": "is a link to gone.jpg, which does not exist"})),
    ("files that are no images", add("images/training/Thumbs.db", b"x"),
     fine(notes=("1 file that is no image was left out, the first images/training/Thumbs.db.",))),
    ("no images", all_of(remove(X), remove("images/training/y.jpg"),
                         add("images/training/readme.txt", b"x")),
     Refused("toy train: the source has no images")),
    ("no folder of maps", remove("annotations"), Refused("annotations/training does not exist")),
    ("maps in folders of another split", all_of(remove("annotations/validation"),
                                                make_folder("annotations/validation/training")),
     Refused("toy test: 1 of 1 images cannot be used", "z.jpg: has no semantic map: z.png")),
    ("an image in both splits",
     all_of(add("images/validation/z.jpg", picture(0, *NUMBERS.shape))),
     fine(notes=("1 of 1 test images are training images too, byte for byte.",))),
    ("classes.json that is a folder", all_of(remove("classes.json"), make_folder("classes.json")),
     Refused("classes.json cannot be read")),
    ("classes.json that is a dangling link",
     all_of(remove("classes.json"), link("classes.json", "gone.json")),
     Refused("classes.json does not exist")),
    ("classes.json without a number", add("classes.json", b'{"1": "a", "3": "b"}'),
     Refused('classes.json is neither {"1": name')),
    ("classes.json with a number twice", add("classes.json", b'{"1": "a", "1": "b", "2": "c"}'),
     Refused("has the key '1' twice")),
    ("classes.json nested deeply", add("classes.json", b"[" * 100_000),
     Refused("classes.json is nested too deeply")),
]  # fmt: skip


@each(PNGS + LAYOUT)
def test_an_ade20k_source(tmp_path: Path, change: Change, expected: Accepted | Refused) -> None:
    make(tmp_path / "set")
    change(tmp_path / "set")
    share = 0.0 if isinstance(expected, Refused) else 0.5
    recipe = Ade20k(path="set", max_rejected_share=share)
    check(recipe, tmp_path, tmp_path / "packed", expected)


def packed_map(folder: Path, content: bytes) -> np.ndarray:
    """Return what is read of a map after packing, (H, W)."""
    make(folder / "set")
    put(folder / "set" / MAP, content)
    prepare(Ade20k(path="set"), folder, folder / "packed", name="toy")
    semantic = PackedDataset(folder / "packed", "train")[0].semantic
    assert semantic is not None
    return semantic.numpy()


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (grey(), NUMBERS),
        (encoded(GREY, "PNG", transparency=1), NUMBERS),
        (encoded(palette(NUMBERS), "PNG"), NUMBERS),
        (encoded(palette(NUMBERS), "PNG", transparency=2), NUMBERS),
        (raw_png(FEW, 4, 3), FEW),
        (raw_png(FEW, 2, 3), FEW),
        (raw_png(FEW % 2, 1, 3), FEW % 2),
    ],
    ids=["grey", "grey, one transparent", "palette", "palette, one transparent",
         "palette of 4", "palette of 2", "palette of 1"],
)  # fmt: skip
def test_numbers_of_a_map_are_kept(tmp_path: Path, content: bytes, numbers: np.ndarray) -> None:
    unlabelled = (numbers == 0) | (numbers == 255)
    expected = np.where(unlabelled, 255, numbers.astype(int) - 1)
    assert np.array_equal(packed_map(tmp_path, content), expected)
