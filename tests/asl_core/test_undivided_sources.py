"""Folders, tar files and saved datasets without a split: one dataset, however the files lie."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from source_cases import encoded, picture, put
from torchvision.io import ImageReadMode, decode_image

from asl_core.data.manifest import Manifest
from asl_core.data.prepare import prepare
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.recipes.datasets import Icons, Union_, as_packed
from asl_core.recipes.packing import Regions
from asl_core.recipes.patterns import expand_braces, find_files
from asl_core.recipes.undivided import HuggingFace, Images, Undivided, WebDataset

HALF = 0.5
KINDS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF")


def pictures(count: int = 12) -> dict[str, bytes]:
    """Return path -> image, in three folders, of all formats."""
    return {
        f"{('ape', 'yak', 'zebu')[i % 3]}/{i:02d}.{KINDS[i % len(KINDS)].lower()}": picture(
            i, kind=KINDS[i % len(KINDS)]
        )
        for i in range(count)
    }  # fmt: skip


def lay(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        put(folder / name, content)


def pack(recipe: Any, root: Path, name: str = "toy", **options: Any) -> Manifest:
    return prepare(recipe, root, root / f"packed-{name}", name=name, **options)


def contents(root: Path, name: str = "toy") -> dict[str, list[tuple[bytes, int | None]]]:
    """Return split -> pixels and label of each image."""
    return {
        split: [
            (sample.image.numpy().tobytes(), sample.label)
            for sample in PackedDataset(root / f"packed-{name}", split)
        ]
        for split in ("train", "test")
    }


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))


def as_samples(files: Mapping[str, bytes], ending: str = "cls") -> dict[str, bytes]:
    """Return the members of a tar file: images and, beside each, its class."""
    found: dict[str, bytes] = {}
    for name, content in files.items():
        label = name.partition("/")[0]
        found[name] = content
        value = label if ending == "cls" else json.dumps({"label": label, "width": 1})
        found[f"{name.partition('.')[0]}.{ending}"] = value.encode()
    return found


def save_dataset(folder: Path, files: Mapping[str, bytes], **splits: list[str]) -> None:
    """Write what save_to_disk writes, with these files in this order."""
    import datasets

    def split(names: list[str]) -> Any:
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=["ape", "yak", "zebu"])
        )
        rows = {
            "image": [{"bytes": files[name], "path": None} for name in names],
            "label": [name.partition("/")[0] for name in names],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    if splits:
        made: Any = datasets.DatasetDict({name: split(names) for name, names in splits.items()})
    else:
        made = split(list(files))
    made.save_to_disk(folder)


# --- one dataset


def test_the_same_files_give_the_same_dataset_from_each_source(tmp_path: Path) -> None:
    files = pictures()
    lay(tmp_path / "folder", files)
    half = len(files) // 2
    names = list(files)[::-1]
    for number, part in enumerate((names[:half], names[half:])):
        members = as_samples({name: files[name] for name in part}, ("cls", "json")[0])
        write_tar(tmp_path / f"t-{number:03d}.tar", members)
    save_dataset(tmp_path / "saved", {name: files[name] for name in sorted(files, key=hash)})
    common: dict[str, Any] = {"holdout": HALF}
    manifests = [
        pack(Images(path="folder", labels="folder", **common), tmp_path, "a"),
        pack(WebDataset(path="t-{000..001}.tar", labels="cls", **common), tmp_path, "b"),
        pack(HuggingFace(path="saved", label_column="label", **common), tmp_path, "c"),
    ]
    assert len({tuple(sorted(manifest.digests.items())) for manifest in manifests}) == 1
    assert contents(tmp_path, "a") == contents(tmp_path, "b") == contents(tmp_path, "c")
    assert manifests[0].classes == ("ape", "yak", "zebu")
    assert sum(manifests[0].counts.values()) == len(files)


def test_images_are_the_files_and_labels_their_folders(tmp_path: Path) -> None:
    files = {name: content for name, content in pictures(24).items() if "png" in name}
    lay(tmp_path / "folder", files)
    pack(Images(path="folder", labels="folder", holdout=HALF), tmp_path)
    found = [each for split in contents(tmp_path).values() for each in split]
    classes = sorted({name.partition("/")[0] for name in files})
    expected = [
        (
            np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1).tobytes(),
            classes.index(name.partition("/")[0]),
        )
        for name, content in files.items()
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seeds=st.sets(st.integers(0, 60), min_size=14, max_size=20),
    more=st.sets(st.integers(61, 90), max_size=9),
    names=st.randoms(use_true_random=False),
    share=st.sampled_from([0.3, 0.5]),
)
def test_an_image_is_on_one_side_whatever_its_name_and_the_others(
    tmp_path: Path, seeds: set[int], more: set[int], names: Any, share: float
) -> None:
    """Renamed, moved, copied and among others: which side it is on follows from its bytes."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))

    def sides(numbers: set[int], holdout: float) -> tuple[set[bytes], set[bytes]]:
        place = Path(tempfile.mkdtemp(dir=folder))
        for number in numbers:
            for copy in range(names.randint(1, 2)):
                deep = "/".join(str(names.randint(0, 3)) for _ in range(names.randint(0, 3)))
                name = f"{deep}/{names.randint(0, 10**9)}-{copy}.png"
                put(place / "in" / name.lstrip("/"), picture(number, kind="PNG"))
        recipe = Images(path="in", holdout=holdout)
        with contextlib.suppress(InputError):  # where chance gives one side nothing
            pack(recipe, place)
        if not (place / "packed-toy/manifest.json").exists():
            return set(), set()
        found = contents(place)
        return {image for image, _ in found["train"]}, {image for image, _ in found["test"]}

    train, test = sides(seeds, share)
    wider_train, wider_test = sides(seeds | more, share)
    assert not train & test
    assert not wider_train & wider_test
    if wider_train and train:
        assert train <= wider_train
        assert test <= wider_test
    more_train, more_test = sides(seeds, 0.8)
    if more_train and train:
        assert test <= more_test
    shutil.rmtree(folder)


def test_the_share_is_that_of_the_hash() -> None:
    """By the definition: the first 64 bits of the SHA-256, as a share of 2^64."""
    files = [picture(number, 4, 4, "PNG") for number in range(400)]
    shares = [int.from_bytes(hashlib.sha256(file).digest()[:8], "big") / 2**64 for file in files]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay(root / "in", {f"{number}.png": file for number, file in enumerate(files)})
        manifest = pack(Images(path="in", holdout=0.05), root)
        assert manifest.counts["test"] == sum(share < 0.05 for share in shares)
        assert 8 <= manifest.counts["test"] <= 32  # three standard deviations of a binomial
        assert "are tested on" in manifest.notes[0]


def test_a_moved_folder_is_the_same_dataset_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "other/deep"):
        lay(tmp_path / name, pictures() | {"ape/broken.jpg": b"\xff\xd8\xff"})
    for name, path in (("a", "one"), ("b", str(tmp_path / "other/deep"))):
        prepare(Images(path=path, holdout=HALF), tmp_path, tmp_path / name, name="toy")
    first, second = ({f.name: f.read_bytes() for f in (tmp_path / x).iterdir()} for x in "ab")
    assert first == second
    assert "path" not in as_packed(Images(path="one"))


# --- copies and labels


def test_copies_are_counted_and_dropped_where_asked(tmp_path: Path) -> None:
    files = pictures()
    name = next(iter(files))
    lay(tmp_path / "in", files | {"yak/copy.jpeg": files[name], "zz/again.x.png": files[name]})
    kept = pack(Images(path="in", labels="folder", holdout=HALF), tmp_path, "kept")
    assert sum(kept.counts.values()) == len(files) + 2
    note = next(note for note in kept.notes if "copies" in note)
    assert note.startswith("2 images are copies of others, byte for byte, and kept; the first: ")
    assert note.endswith("2 of them have another label.")
    dropped = pack(
        Images(path="in", labels="folder", holdout=HALF, duplicates="drop"), tmp_path, "dropped"
    )
    assert sum(dropped.counts.values()) == len(files)
    found = contents(tmp_path, "dropped")
    assert {0} == {  # the first class of those that it lies in
        label
        for split in found.values()
        for image, label in split
        if image == np.asarray(Image.open(io.BytesIO(files[name]))).transpose(2, 0, 1).tobytes()
    }  # fmt: skip


def test_selection_regions_and_the_beginning_work(tmp_path: Path) -> None:
    lay(tmp_path / "in", pictures(20))
    recipe = Images(path="in", holdout=0.3, selection=4, regions=Regions(scales=(20,)))
    manifest = pack(recipe, tmp_path)
    assert manifest.counts["test"] == 4
    assert PackedDataset(tmp_path / "packed-toy", "train", regions=True)[0].regions is not None
    counts = {"train": 3, "test": 2}
    assert pack(Images(path="in", holdout=0.3), tmp_path, "some", beginning=counts).counts == counts


def test_a_union_takes_them_as_they_are(tmp_path: Path) -> None:
    lay(tmp_path / "in", pictures())
    write_tar(tmp_path / "t.tar", as_samples(pictures(30)))
    icons = Icons(image_size=32, train=5, test=2)
    members = (Images(path="in", holdout=0), WebDataset(path="t.tar", holdout=HALF), icons)
    manifest = pack(Union_(members=members), tmp_path)
    assert sum(manifest.counts.values()) == 12 + 30 + 7
    assert manifest.classes is None
    assert any(note.startswith("0-images: ") for note in manifest.notes)
    assert pack(Union_(members=members), tmp_path, "again").digests == manifest.digests
    with pytest.raises(InputError, match="holdout 0 leaves no test split, join it with a source"):
        pack(Images(path="in", holdout=0), tmp_path, "alone")


def test_images_without_a_label_are_left_out_or_kept(tmp_path: Path) -> None:
    lay(tmp_path / "in", pictures() | {"cover.jpeg": picture(70)})
    manifest = pack(Images(path="in", labels="folder", holdout=HALF), tmp_path, "drop")
    assert sum(manifest.counts.values()) == 12
    note = "1 image has no label, the first cover.jpeg: left out."
    assert note in manifest.notes
    recipe = Images(path="in", labels="folder", holdout=HALF, unlabelled="keep")
    assert sum(pack(recipe, tmp_path, "keep").counts.values()) == 13
    labels = [label for split in contents(tmp_path, "keep").values() for _, label in split]
    assert labels.count(None) == 1
    pack(Images(path="in", holdout=HALF), tmp_path, "none")
    assert {label for split in contents(tmp_path, "none").values() for _, label in split} == {None}


def test_a_csv_file_gives_labels(tmp_path: Path) -> None:
    files = pictures()
    lay(tmp_path / "in", files)
    rows = [f"{name},{10 - i % 2},x" for i, name in enumerate(files)]
    text = "﻿file,label,more\r\n" + "\r\n".join([*rows[:-1], "gone.png,3,x", "", ""])
    put(tmp_path / "in/labels.csv", text.encode())
    manifest = pack(Images(path="in", labels="csv", holdout=HALF), tmp_path)
    assert manifest.classes == ("9", "10")  # numbers by their value
    assert sum(manifest.counts.values()) == 11
    assert any(
        "1 file in the list of labels is no image that is packed" in n for n in manifest.notes
    )
    assert not any("files that are no images" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist; it gives the labels"),
        (b"", "needs one column `file`; its first line has nothing"),
        (b"name,label\na,b\n", "needs one column `file`; its first line has name, label"),
        (b"file,label,label\n", "needs one column `label`"),
        (b"file,label\n", "has no line below its header"),
        (b"file,label\na.png\n", "line 2 has 1 fields, its first line 2"),
        (b"file,label\na.png,x\na.png,y\n", "line 3 gives 'a.png' the label 'y', an earlier one"),
        (b"file,label\n/abs/a.png,x\n", "none of its files is an image in"),
        (b"file,label\nape/00.jpeg,\n", "no image has a label"),
        ("file,label\ncaf\xe9.png,x\n".encode("latin-1"), "is not UTF-8"),
        (b'file,label\n"a.png,x\n', "is no CSV file"),
    ],
)
def test_a_wrong_csv_file_is_refused_in_one_line(
    tmp_path: Path, text: bytes | None, said: str
) -> None:
    lay(tmp_path / "in", pictures())
    if text is not None:
        put(tmp_path / "in/labels.csv", text)
    refused(Images(path="in", labels="csv"), tmp_path, said)


def refused(recipe: Undivided, root: Path, said: str) -> None:
    """Check that a source is refused in one line, and that nothing is left."""
    with pytest.raises(InputError) as raised:
        pack(recipe, root, "refused")
    assert said in str(raised.value)
    assert str(raised.value).isprintable()
    target = root / "packed-refused"
    assert not target.exists() or not list(target.iterdir())


# --- folders


def test_folders_as_people_have_them(tmp_path: Path) -> None:
    """Links, circles, odd names, hidden files, what is no image, and what cannot be read."""
    files = pictures()
    place = tmp_path / "in"
    lay(place, files)
    put(place / os.fsdecode(b"caf\xe9/\xff.jpeg"), picture(80))
    put(place / "no suffix", picture(81))
    put(place / "readme.txt", b"BM is no picture")
    put(place / "raw.cr2", b"II*\0 a thumbnail is in here")
    put(place / ".hidden.jpeg", picture(82))
    put(place / "__MACOSX/x.jpeg", picture(83))
    put(tmp_path / "elsewhere/linked.jpeg", picture(84))
    (place / "0-elsewhere").symlink_to(tmp_path / "elsewhere")
    (place / "0-again").symlink_to(place / "ape")
    (place / "circle").symlink_to("circle")
    (place / "ape/up").symlink_to(place)
    (place / "gone.jpeg").symlink_to("nowhere")
    os.mkfifo(place / "pipe.jpeg")
    put(place / "empty.jpeg", b"")
    put(place / "cut.jpeg", picture(85)[:-300])
    put(place / "old.jp2", b"\0\0\0\x0cjP  ....")
    manifest = pack(Images(path="in", holdout=HALF, max_rejected_share=0.5), tmp_path)
    rejected = dict(manifest.rejected["train"] + manifest.rejected["test"])
    assert sum(manifest.counts.values()) == 12 + 3
    assert {name: reason.partition(":")[0] for name, reason in rejected.items()} == {
        "cut.jpeg": "cannot be decoded",
        "empty.jpeg": "the file is empty",
        "gone.jpeg": "is a link to nowhere, which does not exist",
        "old.jp2": "is of no format that is read (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC)",
        "pipe.jpeg": "is no regular file",
    }
    said = " ".join(manifest.notes)
    assert "4 files that are no images were left out, the first .hidden.jpeg." in said
    assert "1 folder that a system made was left out, the first __MACOSX." in said
    assert "2 folders that are read already were not read again, the first 0-again." in said
    assert "1 file was read as an image for its content, not its name, the first no suffix." in said


def test_a_folder_has_its_own_name_before_that_of_a_link_to_it(tmp_path: Path) -> None:
    lay(tmp_path / "in", pictures())
    (tmp_path / "in/aaa").symlink_to(tmp_path / "in/yak")
    manifest = pack(Images(path="in", labels="folder", holdout=HALF), tmp_path)
    assert manifest.classes == ("ape", "yak", "zebu")


def test_several_folders_are_one(tmp_path: Path) -> None:
    files = pictures()
    for number, (name, content) in enumerate(files.items()):
        put(tmp_path / f"in{number % 2}" / name, content)
    put(tmp_path / "in0/bad.jpeg", b"\xff\xd8\xff")
    lay(tmp_path / "all", files)
    recipe = Images(path=("in0", "in1"), labels="folder", holdout=HALF, unlabelled="keep")
    manifest = pack(recipe, tmp_path, "two")
    assert [name for name, _ in manifest.rejected["train"] + manifest.rejected["test"]] == [
        "in0/bad.jpeg"
    ]
    whole = pack(Images(path="all", labels="folder", holdout=HALF), tmp_path, "one")
    assert whole.digests == manifest.digests
    inside = pack(Images(path=("all", "all/ape"), holdout=HALF), tmp_path, "inside")
    assert inside.counts == whole.counts


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"include": ("*.jpeg",)}, {"a.jpeg", "x/b.jpeg", "x/y/c.jpeg"}),
        ({"include": ("x",)}, {"x/b.jpeg", "x/y/c.jpeg", "x/y/d.png"}),
        ({"include": ("x/*.jpeg",)}, {"x/b.jpeg", "x/y/c.jpeg"}),
        ({"exclude": ("y",)}, {"a.jpeg", "x/b.jpeg"}),
        ({"exclude": ("x/y",)}, {"a.jpeg", "x/b.jpeg"}),
        ({"exclude": ("x/y/",)}, {"a.jpeg", "x/b.jpeg"}),
        ({"exclude": ("*.JPEG",)}, {"a.jpeg", "x/b.jpeg", "x/y/c.jpeg", "x/y/d.png"}),
        ({"include": ("x",), "exclude": ("?.png",)}, {"x/b.jpeg", "x/y/c.jpeg"}),
    ],
)
def test_patterns_choose(tmp_path: Path, options: dict[str, Any], kept: set[str]) -> None:
    names = ("a.jpeg", "x/b.jpeg", "x/y/c.jpeg", "x/y/d.png")
    lay(tmp_path / "in", {name: picture(number) for number, name in enumerate(names)})
    members = (Images(path="in", holdout=0, **options), Icons(train=1, test=1))
    pack(Union_(members=members), tmp_path)
    images = {image for image, _ in contents(tmp_path)["train"]}
    assert {name for number, name in enumerate(names) if pixels(number) in images} == kept


def pixels(seed: int) -> bytes:
    """Return what readers of a packed dataset see of a picture."""
    content = torch.frombuffer(bytearray(picture(seed)), dtype=torch.uint8)
    return decode_image(content, ImageReadMode.RGB).numpy().tobytes()


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder that everybody can write to, as a user who is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    yield folder
    os.seteuid(user)
    for path, names, _ in os.walk(folder):
        for name in names:
            os.chmod(os.path.join(path, name), 0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["ape", "ape/00.jpeg"])
def test_what_may_not_be_read(readable_by_all: Path, name: str) -> None:
    lay(readable_by_all / "in", pictures())
    (readable_by_all / "in" / name).chmod(0)
    if os.geteuid() == 0:  # who may read everything
        os.seteuid(65534)
    if name == "ape":
        refused(Images(path="in"), readable_by_all, "in/ape cannot be read (Permission denied); ")
        recipe = Images(path="in", holdout=HALF, exclude=("ape",))
        assert sum(pack(recipe, readable_by_all).counts.values()) == 8
    else:
        manifest = pack(Images(path="in", holdout=HALF), readable_by_all)
        assert manifest.rejected["train"] == [("ape/00.jpeg", "unreadable: Permission denied")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "in does not exist; an images source is a folder"),
        (lambda path: put(path, b"x"), "in is not a folder"),
        (lambda path: path.mkdir(), "in is empty"),
        (lambda path: path.symlink_to("in"), "in is a link to in, which leads nowhere"),
        (lambda path: put(path / "a.txt", b"x"), "images in in: there is no image; correct"),
        (lambda path: put(path / "a.png", b""), "1 of 1 images cannot be used (allowed share 0.1)"),
        (
            lambda path: put(path / "a.png", picture(1)),
            "of 1 image, holdout 0.05 leaves 0 to test on and 1 to train on; set it higher",
        ),
    ],
)
def test_folders_that_are_none(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "in")
    refused(Images(path="in"), tmp_path, said)


def test_a_tenth_may_be_unreadable_of_both_splits_together(tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number, 4, 4, "PNG") for number in range(60)}
    broken = {f"broken{number}.png": b"\x89PNG\r\n\x1a\n%d" % number for number in range(6)}
    lay(tmp_path / "in", files | broken)
    manifest = pack(Images(path="in", holdout=0.1), tmp_path)
    assert len(manifest.rejected["train"] + manifest.rejected["test"]) == 6
    lay(
        tmp_path / "in",
        {f"more{number}.png": b"\x89PNG\r\n\x1a\n!%d" % number for number in range(9)},
    )
    refused(Images(path="in", holdout=0.1), tmp_path, "(allowed share 0.1): cannot be decoded (")


# --- tar files


def tar_of(path: Path, members: Mapping[str, bytes]) -> WebDataset:
    write_tar(path / "t.tar", members)
    return WebDataset(path="t.tar", labels="cls", holdout=HALF)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # left open by it
def test_samples_are_those_of_the_package(tmp_path: Path) -> None:
    """What names mean, and which bytes are an image's, as `webdataset` reads a file it wrote."""
    wds = pytest.importorskip("webdataset")
    files = pictures()
    with wds.TarWriter(str(tmp_path / "t.tar")) as writer:
        for name, content in files.items():
            stem, _, ending = name.partition(".")
            writer.write({"__key__": stem, ending: content, "json": {"label": stem[:3]}})
    theirs = {
        sample[key]
        for sample in wds.WebDataset(str(tmp_path / "t.tar"), shardshuffle=False, empty_check=False)
        for key in sample
        if key not in ("json",) and not key.startswith("__")
    }
    assert theirs == set(files.values())
    manifest = pack(WebDataset(path="t.tar", labels="json", holdout=HALF), tmp_path)
    assert sum(manifest.counts.values()) == len(theirs)
    assert manifest.classes == ("ape", "yak", "zeb")


def test_tar_files_as_people_have_them(tmp_path: Path) -> None:
    members = as_samples(pictures()) | {
        "__MACOSX/x.jpeg": picture(80), "ape/._00.jpeg": b"x", "README": b"x", "only.cls": b"ape",
        "bad.jpeg": picture(81), "bad.cls": b"\xff\xfe", "un.jpeg": picture(82), "un.cls": b"",
        f"{'long/' * 60}x.jpeg": picture(83), f"{'long/' * 60}x.cls": b"yak",
    }  # fmt: skip
    manifest = pack(tar_of(tmp_path, members), tmp_path)
    assert sum(manifest.counts.values()) == 12 + 1
    assert "t.tar/bad.jpeg" in dict(manifest.rejected["train"])
    assert any("1 sample without an image was left out" in note for note in manifest.notes)
    assert any("1 image has no label, the first t.tar/un.jpeg" in note for note in manifest.notes)


def test_an_ending_chooses_among_the_images_of_a_sample(tmp_path: Path) -> None:
    members = {}
    for number in range(12):
        members[f"{number}.rgb.png"] = picture(number, kind="PNG")
        members[f"{number}.depth.png"] = picture(100 + number, kind="PNG")
    write_tar(tmp_path / "t.tar", members)
    recipe = WebDataset(path="t.tar", holdout=HALF)
    refused(recipe, tmp_path, "sample '0' has several images, '0.rgb.png' and '0.depth.png'; set")
    manifest = pack(dataclasses.replace(recipe, image=".rgb.png"), tmp_path)
    assert sum(manifest.counts.values()) == 12


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda p: cut(p, p.stat().st_size - 10240),
            "damaged or cut off after 'ape/09.webp' (unexpected end",
        ),
        (lambda p: cut(p, 3 * 512 + 100), "damaged or cut off after 'ape/00."),
        (lambda p: cut(p, 700), "damaged or cut off"),
        (lambda p: cut(p, 0), "is no tar file, or damaged"),
        (lambda p: p.write_bytes(b"hello" * 500), "is no tar file, or damaged"),
        (lambda p: p.write_bytes(p.read_bytes() * 2), "goes on after the mark of its end"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(99)), "is compressed"),
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder; name the tar files in it: t.tar/*.tar"),
        (lambda p: (p.unlink(), p.symlink_to("no")), "is a link to no, which does not exist"),
    ],
)
def test_tar_files_that_are_none(tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
    recipe = tar_of(tmp_path, as_samples(pictures()))
    change(tmp_path / "t.tar")
    refused(recipe, tmp_path, said)


def test_a_member_twice_and_a_link_in_a_tar_file(tmp_path: Path) -> None:
    recipe = tar_of(tmp_path, as_samples(pictures()))
    with tarfile.open(tmp_path / "t.tar", "a") as file:
        header = tarfile.TarInfo("linked.png")
        header.type, header.linkname = tarfile.SYMTYPE, "ape/00.jpeg"
        file.addfile(header)
    recipe = dataclasses.replace(recipe, labels="none")
    rejected = pack(recipe, tmp_path).rejected["train"]
    assert rejected == [("t.tar/linked.png", "is no file, but a link in the tar file")]
    with tarfile.open(tmp_path / "t.tar", "a") as file:
        file.addfile(header)
    refused(recipe, tmp_path, "has 'linked.png' twice")


def test_braces_and_wildcards(tmp_path: Path) -> None:
    assert expand_braces("a-{08..11}.tar") == [f"a-{n:02d}.tar" for n in range(8, 12)]
    assert expand_braces("a-{8..11}") == ["a-8", "a-9", "a-10", "a-11"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("{x}-{}") == ["{x}-{}"]
    with pytest.raises(ValueError, match="stands for"):
        WebDataset(path="{0..99999999}{0..9}.tar")
    with pytest.raises(ValueError, match=r"ends before it begins; write \{1\.\.5\}"):
        WebDataset(path="{5..1}.tar")
    for name in ("b.tar", "a.tar", "c.txt"):
        put(tmp_path / name, b"")
    found = [path.name for path in find_files("{*,a}.tar", tmp_path)]
    assert found == ["a.tar", "b.tar"]
    assert find_files("no*.tar", tmp_path) == (tmp_path / "no*.tar",)


# --- saved datasets


def test_splits_of_a_saved_dataset_are_kept(tmp_path: Path) -> None:
    files = pictures()
    names = list(files)
    save_dataset(tmp_path / "d", files, train=names[:7], validation=names[7:9], test=names[9:])
    manifest = pack(HuggingFace(path="d", label_column="label"), tmp_path)
    assert manifest.counts == {"train": 7, "test": 3}
    assert "Splits that are not used: validation." in manifest.notes
    recipe = HuggingFace(path="d", train_split="test", test_split="validation")
    assert pack(recipe, tmp_path, "other").counts == {"train": 3, "test": 2}


def test_a_split_whose_labels_are_withheld_tests_nothing(tmp_path: Path) -> None:
    import datasets

    files = [picture(number) for number in range(6)]
    parts = {"train": [0, 1, 1, 0], "validation": [0, 1, 0, 1], "test": [-1, -1, -1, -1]}
    made = {
        name: datasets.Dataset.from_dict({"picture": files[:4], "y": labels})
        for name, labels in parts.items()
    }
    whole: Any = made
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "d")
    recipe = HuggingFace(path="d", image_column="picture", label_column="y")
    manifest = pack(recipe, tmp_path)
    assert manifest.counts == {"train": 4, "test": 4}
    assert manifest.classes == ("0", "1")
    refused(HuggingFace(path="d"), tmp_path, "has no column 'image'; it has picture, y: set image")
    refused(
        dataclasses.replace(recipe, train_split="all"), tmp_path,
        "has no split 'all'; it has train, validation, test",
    )  # fmt: skip
    refused(
        dataclasses.replace(recipe, image_column="y", label_column=None), tmp_path,
        "column 'y' is int64, neither images nor bytes",
    )  # fmt: skip


def test_rows_without_an_image_are_rejected(tmp_path: Path) -> None:
    import datasets

    rows = [{"bytes": picture(number), "path": None} for number in range(12)]
    features = datasets.Features(image=datasets.Image())
    made = datasets.Dataset.from_dict({"image": [*rows, None]}, features=features)
    made.save_to_disk(tmp_path / "d")
    manifest = pack(HuggingFace(path="d", holdout=HALF), tmp_path)
    assert manifest.rejected["train"] == [("train row 12", "no image bytes in the row")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: (p / "state.json").write_text("{"), "cannot be read as a dataset ("),
        (lambda p: (p / "state.json").unlink(), "cannot be read as a dataset ("),
        (lambda p: cut(next(p.glob("*.arrow")), 100), "cannot be read as a dataset ("),
        (lambda p: shutil.rmtree(p), "d does not exist; a huggingface source is a folder"),
    ],
)
def test_saved_datasets_that_are_none(
    tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    save_dataset(tmp_path / "d", pictures())
    change(tmp_path / "d")
    refused(HuggingFace(path="d"), tmp_path, said)


def test_a_name_is_the_only_reason_to_use_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    import datasets

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network here")

    save_dataset(tmp_path / "d", pictures())
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    pack(HuggingFace(path="d", holdout=HALF), tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    recipe = HuggingFace(name="somebody/pictures", revision="0" * 40)
    refused(recipe, tmp_path, "dataset somebody/pictures at 0000000")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Images(path=""), "path is empty"),
        (lambda: Images(path=("a", "a")), "path names 'a' twice"),
        (lambda: Images(path="a", holdout=1.0), "holdout must be a share from 0 to below 1"),
        (lambda: Images(path="a", max_side=8), "max_side must be from 16 to 65500 pixels, got 8"),
        (lambda: Images(path="a", quality=0), "quality must be from 1 to 100"),
        (lambda: Images(path="a", include=("",)), "include has an empty pattern"),
        (lambda: HuggingFace(), "has neither path nor name"),
        (lambda: HuggingFace(path="a", name="b"), "has both path and name"),
        (lambda: HuggingFace(name="b"), "name b needs a revision"),
        (lambda: HuggingFace(path="a", revision="b"), "config and revision belong to a name"),
        (lambda: WebDataset(path="a.tar", image="."), "image is empty"),
    ],
)
def test_wrong_recipes_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_formats_and_sizes_are_the_same_from_each_source(tmp_path: Path) -> None:
    big = {
        f"ape/{n}.png": encoded(Image.new("RGB", (90, 40), (n, 2 * n, 99)), "PNG") for n in range(9)
    }
    lay(tmp_path / "folder", big)
    write_tar(tmp_path / "t.tar", big)
    save_dataset(tmp_path / "saved", big)
    common: dict[str, Any] = {"holdout": HALF, "max_side": 30}
    manifests = [
        pack(recipe, tmp_path, name)
        for name, recipe in {
            "a": Images(path="folder", **common),
            "b": WebDataset(path="t.tar", **common),
            "c": HuggingFace(path="saved", **common),
        }.items()
    ]
    assert manifests[0].digests == manifests[1].digests == manifests[2].digests
    assert "Images converted as they were packed: 9 made smaller." in manifests[0].notes
    assert PackedDataset(tmp_path / "packed-a", "train").image_size(0) == (13, 30)
