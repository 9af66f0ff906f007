"""Parquet files as people write them: one meaning of a label in all files, or one line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from source_cases import (
    Accepted,
    Case,
    Change,
    Refused,
    add,
    all_of,
    check,
    each,
    link,
    make_folder,
    picture,
    remove,
)

from asl_core.recipes.datasets import Parquet

NAMES = ("ape", "bee", "cow")
PICTURES = {"train.parquet": (1, 2, 3), "test.parquet": (4, 5, 6)}
TRAIN, TEST = [0, 2, 1], [1, 2, 0]


def structs(images: Sequence[bytes | None], paths: Sequence[str | None] | None = None) -> pa.Array:
    pairs = zip(images, paths or [None] * len(images), strict=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image, "path": path} for image, path in pairs], kind)


def features(names: Any) -> bytes:
    return json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()


def write(
    name: str,
    labels: Any = None,
    images: Any = None,
    names: Sequence[str] | None = NAMES,
    metadata: bytes | None = None,
) -> Change:
    """Write a file; what is not given is that of a source in order."""

    def change(folder: Path) -> None:
        own = structs([picture(seed) for seed in PICTURES[name]]) if images is None else images
        given = (TRAIN if "train" in name else TEST) if labels is None else labels
        table = pa.table({"image": own, "label": given})
        text = features(names) if metadata is None and names is not None else metadata
        if text is not None:
            table = table.replace_schema_metadata({"huggingface": text})
        pq.write_table(table, folder / name)

    return change


def both(train: Any, test: Any, names: Sequence[str] | None = None) -> Change:
    """Write both files with these labels."""
    return all_of(
        write("train.parquet", train, names=names), write("test.parquet", test, names=names)
    )


def part(name: str, seed: int, label: int = 0) -> Change:
    return write(name, [label], structs([picture(seed)]))


def parts(*names: str) -> Change:
    """Write parts of one image each in place of train.parquet."""
    made = (part(f"train{name}.parquet", 20 + number) for number, name in enumerate(names))
    return all_of(remove("train.parquet"), *made)


def table_of(name: str, **columns: Any) -> Change:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


def twice(folder: Path) -> None:
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.append_column("label", table["label"]), folder / "train.parquet")


def damage(folder: Path) -> None:
    """Overwrite a page in the middle; schema and statistics at the end stay whole."""
    path = folder / "train.parquet"
    content = bytearray(path.read_bytes())
    content[40:200] = bytes(range(160))
    path.write_bytes(content)


def fine(
    train: Sequence[int] = TRAIN,
    test: Sequence[int] = TEST,
    classes: Sequence[str] = NAMES,
    rejected: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Accepted:
    return Accepted(train, test, classes, rejected or {}, notes)


def rejected(reason: str, train: Sequence[int] = (0, 2)) -> Accepted:
    """Return what is expected where the last training image, the only bee, cannot be used."""
    notes = ("1 of 3 classes have no train image, the first bee.",)
    return fine(train, rejected={"train.parquet row 2": reason}, notes=notes)


TEXTS = ["ape", "cow", "bee"], ["bee", "cow", "ape"]
BYTES = [picture(1), picture(2), picture(3)]

FILES: list[Case] = [
    ("in order", all_of(), fine()),
    ("parts", parts("-00000-of-00002", "-00001-of-00002"),
     fine((0, 0), notes=("2 of 3 classes have no train image, the first bee.",))),
    ("parts with digests", parts("-00000-of-00002-1f3a", "-00001-of-00002-77cc"),
     fine((0, 0), notes=("2 of 3 classes have no train image",))),
    ("parts without a number of parts", parts("-a", "-b", "-c"),
     fine((0, 0, 0), notes=("2 of 3 classes have no train image",))),
    ("the last part absent", parts("-00000-of-00003", "-00001-of-00003"),
     Refused("lacks 1 part of 3 of train, the first train-00002-of-00003.parquet; download")),
    ("parts in the middle absent", parts("-00000-of-00004", "-00003-of-00004"),
     Refused("lacks 2 parts of 4 of train, the first train-00001-of-00004.parquet")),
    ("a test part absent", all_of(remove("test.parquet"), part("test-00001-of-00002.parquet", 9)),
     Refused("lacks 1 part of 2 of test")),
    ("parts of two sets", parts("-00000-of-00001", "-00000-of-00002", "-00001-of-00002"),
     Refused("has train-00000-of-00001.parquet and train-00000-of-00002.parquet; keep one set")),
    ("a part twice", parts("-00000-of-00001-aa", "-00000-of-00001-bb"),
     Refused("has part 0 of train twice")),
    ("parts and one that is none", parts("-00000-of-00001", "-more"),
     Refused("train-more.parquet; keep one set of parts")),
    ("a whole and parts", part("train-00000-of-00001.parquet", 9),
     Refused("has both train.parquet and train-00000-of-00001.parquet; keep the one")),
    ("folder", all_of(remove("train.parquet"), make_folder("train.parquet")),
     Refused("train.parquet is no file")),
    ("dangling link", all_of(remove("train.parquet"), link("train.parquet", "blobs/1f")),
     Refused("train.parquet is a link to blobs/1f, which does not exist")),
    ("no bytes", add("train.parquet", b""), Refused("train.parquet is not a readable Parquet")),
    ("pointer of Git LFS", add("train.parquet", b"version https://git-lfs.github.com/spec/v1"),
     Refused("train.parquet is not a readable Parquet")),
    ("damaged in the middle", damage, Refused("train.parquet is not a readable Parquet", "rows)")),
    ("no rows to test", write("test.parquet", pa.array([], pa.int64()), structs([])),
     Refused("toy test: the source has no images")),
    ("a part without rows",
     all_of(parts("-0-of-2"),
            write("train-1-of-2.parquet", pa.array([], pa.int64()), structs([]))),
     fine((0,), notes=("2 of 3 classes have no train image",))),
    ("no label column", table_of("test.parquet", image=structs([picture(4)])),
     Refused("test.parquet has no column 'label'; it has image: set")),
    ("a column twice", twice, Refused("train.parquet has 2 columns 'label'; keep one")),
]  # fmt: skip

IMAGES: list[Case] = [
    ("plain bytes", write("train.parquet", images=pa.array(BYTES)), fine()),
    ("large bytes", write("train.parquet", images=pa.array(BYTES, pa.large_binary())), fine()),
    ("bytes of one size",
     write("train.parquet", images=pa.array([BYTES[0]] * 3, pa.binary(len(BYTES[0])))), fine()),
    ("struct without path", write("train.parquet", images=pa.array([{"bytes": b} for b in BYTES])),
     fine()),
    ("plain bytes in one file only", write("test.parquet", images=pa.array(BYTES)),
     fine(notes=("3 of 3 test images are training images too",))),
    ("files beside", all_of(add("im/x.jpg", picture(9)), write(
        "train.parquet", images=structs([*BYTES[:2], None], [None, None, "im/x.jpg"]))), fine()),
    ("files that are not there",
     write("train.parquet", images=structs([*BYTES[:2], None], [None, None, "im/x.jpg"])),
     rejected("no image bytes, and no such file in the folder: im/x.jpg")),
    ("files elsewhere",
     all_of(add("../x.jpg", picture(9)), write(
         "train.parquet", images=structs([*BYTES[:2], None], [None, None, "../x.jpg"]))),
     rejected("no such file in the folder: ../x.jpg")),
    ("neither", write("train.parquet", images=structs([*BYTES[:2], None])),
     rejected("no image bytes")),
    ("null", write("train.parquet", images=pa.array([*BYTES[:2], None])),
     rejected("no image bytes")),
    ("strings", write("train.parquet", images=["a.jpg", "b.jpg", "c.jpg"]),
     Refused("column 'image' is string, neither binary nor struct with binary bytes")),
    ("numbers", write("train.parquet", images=[list(image) for image in BYTES]),
     Refused("column 'image' is list<")),
    ("struct of strings", write("train.parquet", images=pa.array([{"bytes": "x"}] * 3)),
     Refused("column 'image' is struct<bytes: string>")),
    ("a web page", write("train.parquet", images=structs([*BYTES[:2], b"<html>"])),
     rejected("it begins with '<html>'")),
]  # fmt: skip

CLASSES: list[Case] = [
    ("another order to test", write("test.parquet", [0, 1, 2], names=("cow", "bee", "ape")),
     fine(test=(2, 1, 0), notes=("1 file numbers the classes otherwise and is read by the names in "
                              "train.parquet, the first test.parquet.",))),
    ("another order in a part",
     all_of(parts("-0-of-2"), write("train-1-of-2.parquet", [0], structs([picture(9)]),
                                    ("bee", "cow", "ape"))),
     fine((0, 1), notes=("1 of 3 classes have no train image, the first cow.",
                         "1 file numbers the classes otherwise"))),
    ("other classes to test", write("test.parquet", names=("ape", "bee", "dog")),
     Refused("train.parquet", "test.parquet name different classes, 'cow' is in one")),
    ("fewer classes to test", write("test.parquet", [0, 1, 1], names=("ape", "bee")),
     Refused("name different classes, 'cow'")),
    ("no names to test", write("test.parquet", names=None),
     fine(notes=("1 file names no classes and is read with those of train.parquet, the first "
                 "test.parquet.",))),
    ("names only to test", write("train.parquet", names=None),
     fine(notes=("read with those of test.parquet, the first train.parquet.",))),
    ("no names", both(TRAIN, TEST),
     fine(classes="012")),
    ("metadata of another library", write("test.parquet", metadata=b"{}"),
     fine(notes=("1 file names no classes",))),
    ("metadata that is no JSON", write("test.parquet", metadata=b"{names"),
     Refused("test.parquet: its metadata 'huggingface' is not JSON")),
    ("metadata that is no text", write("test.parquet", metadata=b"\xff\xfe"),
     Refused("test.parquet: its metadata 'huggingface' is not JSON")),
    ("metadata that is a list", write("test.parquet", metadata=b"[1]"),
     fine(notes=("1 file names no classes",))),
    ("a name twice", write("test.parquet", metadata=features(["ape", "ape", "cow"])),
     Refused("test.parquet: the class names of 'label' in its metadata are no list of different")),
    ("names that are numbers", write("test.parquet", metadata=features([1, 2, 3])),
     Refused("no list of different strings")),
    ("names that are no valid text",
     both(TRAIN, TEST, ("ape", "b\ud83d", "c\n")),
     fine(classes=("ape", r"b\ud83d", r"c\n"))),
]  # fmt: skip

LABELS: list[Case] = [
    ("strings", both(*TEXTS), fine()),
    ("large strings", both(*(pa.array(texts, pa.large_string()) for texts in TEXTS)), fine()),
    ("categories", both(*(pa.array(texts).dictionary_encode() for texts in TEXTS)), fine()),
    ("strings that the metadata names", both(*TEXTS, names=("cow", "bee", "ape")),
     fine((2, 0, 1), (1, 0, 2), ("cow", "bee", "ape"))),
    ("strings that the metadata does not name", both(*TEXTS, names=("ape", "bee")),
     Refused("train.parquet has 1 class that training lacks, the first 'cow'")),
    ("strings that training lacks", both(TEXTS[0], ["bee", "dog", "ape"]),
     Refused("test.parquet has 1 class that training lacks, the first 'dog'; use the same")),
    ("strings to test only", both(TRAIN, TEXTS[1]),
     Refused("column 'label' is int64 in", "and string in")),
    ("string that is empty", both(["ape", "cow", ""], ["ape", "cow", "ape"]),
     fine((0, 1), (0, 1, 0), ("ape", "cow"), {"train.parquet row 2": "has no label: ''"})),
    ("small numbers", both(pa.array(TRAIN, pa.uint8()), pa.array(TEST, pa.int16()), NAMES), fine()),
    ("numbers as categories", both(pa.array(TRAIN).dictionary_encode(), TEST, NAMES), fine()),
    ("fractions", both([0.0, 2.0, 1.0], TEST, NAMES),
     Refused("train.parquet: column 'label' is double, neither integers nor strings; cast it")),
    ("truth values", both([True] * 3, [True] * 3), Refused("'label' is bool")),
    ("lists", both([[0], [2], [1]], [[1]] * 3), Refused("column 'label' is list<")),
    ("structs", both([{"a": 1}] * 3, [{"a": 1}] * 3), Refused("column 'label' is struct<")),
    ("nothing but nulls", both(pa.nulls(3), pa.nulls(3)), Refused("'label' has no label; set")),
    ("null", write("train.parquet", [0, 2, None]), rejected("has no label: None")),
    ("-1", write("train.parquet", [0, 2, -1]), rejected("has no label: -1")),
    ("too large", write("train.parquet", [0, 2, 3]), rejected("label 3 is not one of 0 to 2")),
    ("enormous, with names", write("train.parquet", pa.array([0, 2, 2**63], pa.uint64())),
     rejected("label 9223372036854775808 is not one of 0 to 2")),
    ("enormous, without names", both([0, 1, 2**60], TEST),
     Refused("column 'label' has label 1152921504606846976", "renumber them")),
    ("numbered from 1", both([1, 2, 3], [1, 3, 3]),
     fine((1, 2, 3), (1, 3, 3), "0123", notes=("1 of 4 classes have no train image, the first 0.",
                                            "2 of 4 classes have no test image, the first 0."))),
    ("withheld to test, null",
     all_of(write("test.parquet", pa.nulls(3)),
            write("validation.parquet", [2, 0], structs([picture(7), picture(8)]))),
     fine(test=(2, 0), notes=("1 of 3 classes have no test image, the first bee.",))),
    ("withheld to test, empty",
     all_of(both(TEXTS[0], ["", "", ""]),
            write("validation.parquet", ["cow"], structs([picture(7)]), None)),
     fine(test=(2,), notes=("2 of 3 classes have no test image, the first ape.",))),
]  # fmt: skip


@each(FILES + IMAGES + CLASSES + LABELS)
def test_a_parquet_source(tmp_path: Path, change: Change, expected: Accepted | Refused) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write("train.parquet")(folder)
    write("test.parquet")(folder)
    change(folder)
    share = 0.0 if isinstance(expected, Refused) else 0.5
    recipe = Parquet(path="set", max_rejected_share=share)
    check(recipe, tmp_path, tmp_path / "packed", expected)
