"""Image folders as people have them: nothing is lost unsaid, nothing that is no image counts."""

import dataclasses
import hashlib
import os
import resource
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
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
from asl_core.errors import InputError
from asl_core.recipes.class_lists import CLASS_LISTS
from asl_core.recipes.datasets import ImageFolder, Scenes, Union_


def make(folder: Path) -> None:
    """Three training images of two classes, and a test image of each."""
    names = ("train/ape/a.jpg", "train/ape/b.jpg", "train/yak/c.jpg", "val/ape/d.jpg",
             "val/yak/e.jpg")  # fmt: skip
    for number, name in enumerate(names):
        put(folder / name, picture(number))


def fine(
    train: tuple[int, ...] = (0, 0, 1),
    test: tuple[int, ...] = (0, 1),
    classes: tuple[str, ...] = ("ape", "yak"),
    rejected: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Accepted:
    return Accepted(train, test, classes, rejected or {}, notes)


def without(name: str, reason: str) -> Accepted:
    """Return what is expected where one more file cannot be used."""
    return fine(rejected={name: reason})


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "train/ape/x.jpg")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (20, 10), (9, 8, 7)), "JPEG", exif=exif)


def gif_with_a_large_frame() -> bytes:
    small, large = (
        b"," + bytes(4) + side.to_bytes(2, "little") * 2 for side in (16, 65535)
    )  # fmt: skip
    gif = encoded(Image.new("P", (16, 16)), "GIF")
    assert small in gif
    return gif.replace(small, large)


RGB = Image.new("RGB", (16, 12), (200, 100, 50))
BLUE = Image.new("RGB", (16, 12), (0, 0, 250))
RED = encoded(RGB, "JPEG")
X = "train/ape/x.jpg"
LATIN1 = b"train/ape/caf\xe9.jpg"
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
JUNK = ("Thumbs.db", "desktop.ini", "readme.txt", ".DS_Store", "._a.jpg", ".hidden.jpg")
SYSTEM = ("__MACOSX", "lost+found", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN")

NOT_FOLLOWED = "1 link to a folder that is read already was not followed, the first "
NO_IMAGES = "class folder without an image, the first 'bee'"

LAYOUT: list[Case] = [
    ("in order", all_of(), fine()),
    ("link to an image", all_of(add("far/z.jpg"), link(X, "../../far/z.jpg")), fine((0, 0, 0, 1))),
    ("dangling link", link(X, "gone.jpg"), without(X, "is a link to gone.jpg, which does not")),
    ("dangling link to a folder", link("train/ape/more", "/nowhere"),
     without("train/ape/more", "is a link to /nowhere, which does not exist")),
    ("link to itself", link(X, "x.jpg"), without(X, "is a link to x.jpg, which leads nowhere")),
    ("class that is a dangling link", link("train/cow", "/nowhere"),
     Refused("train/cow is a link to /nowhere, which does not exist")),
    ("train that is a dangling link", all_of(remove("train"), link("train", "/nowhere")),
     Refused("train is a link to /nowhere, which does not exist; an imagefolder source has")),
    ("class that is a link", all_of(add("far/z.jpg"), link("train/cow", "../far")),
     fine((0, 0, 1, 2), (0, 2), ("ape", "cow", "yak"),
          notes=("1 of 3 classes have no test image, the first cow.",))),
    ("images in folders below a class",
     all_of(add("train/ape/2019/may/x.jpg"), add("val/yak/2020/x.jpg", picture(51))),
     fine((0, 0, 0, 1), (0, 1, 1))),
    ("a class with nothing but folders",
     all_of(add("train/bee/one/x.jpg"), add("train/bee/two/x.jpg", picture(51)),
            add("val/bee/one/x.jpg", picture(52))),
     fine((0, 0, 1, 1, 2), (0, 1, 2), ("ape", "bee", "yak"))),
    ("bad images of one name",
     all_of(add("train/ape/one/x.jpg", b""), add("train/ape/two/x.jpg", b"")),
     fine(rejected={"train/ape/one/x.jpg": "empty", "train/ape/two/x.jpg": "empty"})),
    ("link to its own folder", link("train/ape/again", "."),
     fine(notes=(f"{NOT_FOLLOWED}train/ape/again.",))),
    ("link to the whole source", link("train/ape/again", "../.."),
     fine(notes=(f"{NOT_FOLLOWED}train/ape/again.",))),
    ("two links to one folder",
     all_of(add("far/z.jpg"), link("train/ape/p", "../../far"), link("train/ape/q", "../../far")),
     fine((0, 0, 0, 1), notes=(f"{NOT_FOLLOWED}train/ape/q.",))),
    ("files that are no images", all_of(*(add(f"train/ape/{name}", b"text") for name in JUNK)),
     fine(notes=("6 files that are no images were left out, the first train/ape/.DS_Store.",))),
    ("no images beside the classes", add("val/readme.txt", b"text"),
     fine(notes=("1 file that is no image was left out, the first val/readme.txt.",))),
    ("folders of a system", all_of(*(add(f"train/{name}/x.jpg") for name in SYSTEM)),
     fine(notes=("5 folders that a system made were left out, the first "
                 "train/$RECYCLE.BIN.",))),
    ("thumbnails in a class", add("train/ape/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"),
     fine(notes=("1 folder that a system made was left out, the first train/ape/@eaDir.",))),
    ("an empty class", make_folder("train/bee"), Refused(f"1 {NO_IMAGES}", "remove the folder")),
    ("a class of text", add("train/bee/readme.txt", b"text"), Refused(f"1 {NO_IMAGES}")),
    ("an empty class to test", all_of(remove("val/yak"), make_folder("val/yak")),
     fine(test=(0,), notes=("1 of 2 classes have no test image, the first yak.",))),
    ("fewer classes to test", remove("val/ape"),
     fine(test=(1,), notes=("1 of 2 classes have no test image, the first ape.",))),
    ("more classes to test", add("val/bee/x.jpg"),
     Refused("1 class folder that", "lacks, the first 'bee'; use the same classes in both")),
    ("a class in other letters to test", add("val/Yak/x.jpg"),
     Refused("the first 'Yak' (its 'yak' differs in case")),
    ("classes that differ in case", all_of(add("train/Yak/x.jpg"), add("val/Yak/y.jpg", RED)),
     fine((0, 1, 1, 2), (0, 1, 2), ("Yak", "ape", "yak"),
          notes=("Classes 'Yak' and 'yak' differ only in case",))),
    ("accents composed otherwise",
     all_of(add(f"train/{COMPOSED}/x.jpg"), add(f"val/{DECOMPOSED}/x.jpg")),
     Refused("differs in case or in how accents are encoded")),
    ("an image in no class", add("train/x.jpg"),
     fine(rejected={"train/x.jpg": "lies in no class folder"})),
    ("no class folders", all_of(remove("val"), add("val/x.jpg")),
     Refused("val has no class folders; an imagefolder source has train/<class>/*")),
    ("a class that is a file to test", all_of(remove("val/yak"), add("val/yak", b"text")),
     Refused("val/yak is a file, but a class folder in")),
    ("no validation folder", remove("val"), Refused("val does not exist")),
    ("a pipe", pipe, without(X, "is no regular file")),
    ("nothing to test but a bad image",
     all_of(remove("val"), add("val/ape/x.jpg", b"text")),
     Refused("toy test: 1 of 1 images cannot be used", "the first val/ape/x.jpg: is neither")),
    ("test images that are trained on",
     all_of(add("train/ape/x.jpg"), add("val/ape/y.jpg")),
     fine((0, 0, 0, 1), (0, 0, 1), notes=("1 of 3 test images are training images too",))),
]  # fmt: skip

CONTENT: list[Case] = [
    ("no bytes", add(X, b""), without(X, "the file is empty")),
    ("a web page", add(X, b"<!DOCTYPE html>"), without(X, "it begins with '<!DOCTYPE ht'")),
    ("truncated", add(X, picture(1, 40, 50)[:-90]), without(X, "cannot be decoded: ")),
    ("truncated in the header", add(X, picture(1)[:30]), without(X, "cannot be decoded: ")),
    ("truncated PNG", add(X, encoded(RGB, "PNG")[:-20]), without(X, "cannot be decoded: ")),
    ("an animated GIF", add(X, encoded(RGB, "GIF", save_all=True, append_images=[BLUE])),
     without(X, "is no still image: an animated GIF")),
    ("an animated PNG", add(X, encoded(RGB, "PNG", save_all=True, append_images=[BLUE])),
     without(X, "is no still image: an animated PNG")),
    ("16 bits", add(X, encoded(Image.fromarray(np.full((4, 5), 999, np.uint16)), "PNG")),
     without(X, "is no 8-bit still image")),
    ("many pixels", add(X, png(60_000, 50_000, bytes(1000))),
     without(X, "has more than 134217728 pixels: 60000x50000")),
    ("many pixels in a frame", add(X, gif_with_a_large_frame()),
     without(X, "has more than 134217728 pixels")),
    ("damaged EXIF", add(X, encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\2\1\x12\0\3")),
     fine((0, 0, 0, 1))),
    ("BMP", add("train/ape/x.bmp", encoded(RGB, "BMP")),
     without("train/ape/x.bmp", "is neither JPEG, PNG, WebP nor GIF")),
    ("TIFF", add("train/ape/x.TIF", encoded(RGB, "TIFF")),
     without("train/ape/x.TIF", "is neither JPEG, PNG, WebP nor GIF")),
    ("CMYK", add(X, encoded(RGB.convert("CMYK"), "JPEG")), fine((0, 0, 0, 1))),
    ("turned by EXIF", add(X, turned()), fine((0, 0, 0, 1))),
    ("one pixel", add(X, encoded(RGB.resize((1, 1)), "PNG")), fine((0, 0, 0, 1))),
    ("transparent", add(X, encoded(RGB.convert("RGBA"), "PNG")), fine((0, 0, 0, 1))),
    ("two colours", add(X, encoded(RGB.convert("1"), "PNG")), fine((0, 0, 0, 1))),
    ("a still GIF", add(X, encoded(RGB, "GIF")), fine((0, 0, 0, 1))),
    ("WebP", add("train/ape/x.WebP", encoded(RGB, "WEBP")), fine((0, 0, 0, 1))),
    ("another suffix", add("train/ape/x.JPEG", encoded(RGB, "PNG")), fine((0, 0, 0, 1))),
    ("no suffix", add("train/ape/x"),
     fine((0, 0, 0, 1), notes=("1 file was read as an image for its content, not its name, the "
                               "first train/ape/x.",))),
]  # fmt: skip

NAMES: list[Case] = [
    ("no UTF-8", add(LATIN1), fine((0, 0, 0, 1))),
    ("bad, and no UTF-8", add(LATIN1, b""), without(r"train/ape/caf\xe9.jpg", "empty")),
    ("line breaks", add("train/ape/x\ny\t.jpg", b""), without(r"train/ape/x\ny\t.jpg", "empty")),
    ("a backslash", add("train/ape/x\\n.jpg", b""), without(r"train/ape/x\\n.jpg", "empty")),
    ("a class that is no UTF-8",
     all_of(add(b"train/caf\xe9/x.jpg"), add(b"val/caf\xe9/y.jpg", RED)),
     fine((0, 0, 1, 2), (0, 1, 2), ("ape", r"caf\xe9", "yak"))),
    ("an unknown class that is no UTF-8", add(b"val/caf\xe9/y.jpg"), Refused(r"'caf\xe9'")),
    ("an empty class with a line break", make_folder("train/x\ny"), Refused(r"'x\ny'")),
]  # fmt: skip


@each(LAYOUT + CONTENT + NAMES)
def test_an_image_folder(tmp_path: Path, change: Change, expected: Accepted | Refused) -> None:
    make(tmp_path / "set")
    change(tmp_path / "set")
    share = 0.0 if isinstance(expected, Refused) else 0.8
    recipe = ImageFolder(path="set", max_rejected_share=share)
    check(recipe, tmp_path, tmp_path / "packed", expected)


def test_images_in_folders_keep_the_order_of_their_paths(tmp_path: Path) -> None:
    make(tmp_path)
    for number, name in enumerate(("b.jpg", "a/z.jpg", "a/b/c.jpg", "a.jpg"), start=60):
        put(tmp_path / "train/cow" / name, picture(number, 5, number))
    prepare(ImageFolder(path="."), tmp_path, tmp_path / "packed", name="toy")
    widths = [sample.image.shape[2] for sample in PackedDataset(tmp_path / "packed", "train")]
    assert widths[2:6] == [62, 61, 63, 60]


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """Return a folder whose files a process without privileges can be kept from reading."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    yield folder
    os.seteuid(user)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/ape/closed", Refused("train/ape/closed cannot be read (Permission denied); make")),
        ("train/yak", Refused("train/yak cannot be read (Permission denied)")),
        ("val", Refused("val cannot be read (Permission denied)")),
        ("train/ape/b.jpg", fine((0, 1), rejected={"train/ape/b.jpg": "Permission denied"})),
    ],
)
def test_what_may_not_be_read(
    readable_by_all: Path, name: str, expected: Accepted | Refused
) -> None:
    make(readable_by_all / "set")
    put(readable_by_all / "set/train/ape/closed/x.txt", b"")
    (readable_by_all / "set" / name).chmod(0)
    if os.geteuid() == 0:  # who may read everything
        os.seteuid(65534)
    if isinstance(expected, Accepted):
        expected = dataclasses.replace(expected, notes=("1 file that is no image was left out",))
    recipe = ImageFolder(path="set", max_rejected_share=0.5)
    check(recipe, readable_by_all, readable_by_all / "packed", expected)


# --- a list of classes


def test_a_folder_is_narrowed_to_a_list_of_classes(tmp_path: Path) -> None:
    make(tmp_path)
    put(tmp_path / "train/bee/a.jpg", picture(70))
    put(tmp_path / "val/bee/a.jpg", picture(70))
    recipe = ImageFolder(path=".", classes=("yak", "ape"))
    manifest = prepare(recipe, tmp_path, tmp_path / "packed", name="toy")
    assert manifest.classes == ("ape", "yak")
    assert manifest.source["classes"] == ("yak", "ape")
    names = ("train", "val")
    for folder in names:
        shutil.rmtree(tmp_path / folder / "bee")
    whole = prepare(ImageFolder(path="."), tmp_path, tmp_path / "whole", name="toy")
    assert whole.digests == manifest.digests
    assert "classes" not in whole.source


def test_a_class_of_the_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    recipe = ImageFolder(path=".", classes=("ape", "bee", "Yak"))
    line = r"train lacks 2 of the 3 class folders in `classes`, the first 'Yak' \(its 'yak' differs"
    with pytest.raises(InputError, match=line):
        prepare(recipe, tmp_path, tmp_path / "packed", name="toy")
    published = ImageFolder(path=".", classes="imagenet-100")
    with pytest.raises(InputError, match=r"lacks 100 of the 100 class folders .* 'n01558993'"):
        prepare(published, tmp_path, tmp_path / "packed", name="toy")


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ("imagenet-200", "classes must be a list of class folders or one of imagenet-100, got"),
        (("ape", "cow", "ape"), "classes names 'ape' twice"),
        ((), "classes is empty"),
    ],
)
def test_lists_that_are_none(classes: str | tuple[str, ...], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ImageFolder(path=".", classes=classes)


def test_the_published_list_is_the_published_one() -> None:
    ids = sorted(CLASS_LISTS["imagenet-100"])
    digest = hashlib.sha256("".join(f"{each}\n" for each in ids).encode()).hexdigest()
    assert digest == "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"


# --- before the first image is read


def test_what_is_wrong_with_the_test_split_is_said_before_training_images_are_packed(
    tmp_path: Path,
) -> None:
    make(tmp_path)
    put(tmp_path / "train/ape/bad.jpg", b"found only by reading it")
    (tmp_path / "val/ape/x.jpg").symlink_to("gone.jpg")
    with pytest.raises(InputError, match="toy test: 1 of 3 images cannot be used"):
        prepare(ImageFolder(path="."), tmp_path, tmp_path / "packed", name="toy")


def test_a_disk_that_is_too_small_is_found_at_once(tmp_path: Path) -> None:
    make(tmp_path)
    with (tmp_path / "train/ape/x.jpg").open("wb") as file:
        file.truncate(2**43)  # a hole; no disk of a test has room for it
    with pytest.raises(InputError, match=r"of free disk space, and the source 8796\.1 GB"):
        prepare(ImageFolder(path="."), tmp_path, tmp_path / "packed", name="toy")


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    target = tmp_path / "train/ape/a.jpg/packed"
    with pytest.raises(InputError, match=r"a\.jpg/packed cannot be written \(Not a directory\)"):
        prepare(ImageFolder(path="."), tmp_path, target, name="toy")


def test_a_disk_that_fills_up_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(InputError, match=r"packed cannot be written \(File too large\)"):
            prepare(ImageFolder(path="."), tmp_path, tmp_path / "packed", name="toy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "packed").iterdir())


# --- too many bad images


def test_all_bad_images_are_listed_where_the_message_says(tmp_path: Path) -> None:
    make(tmp_path)
    for number in range(5):
        put(tmp_path / f"train/ape/e{number}.jpg", b"")
        put(tmp_path / f"train/yak/p{number}.jpg", b"a page" if number else b"")
    put(tmp_path / "train/yak/q.jpg", picture(1)[:-90])
    target, listed = tmp_path / "packed", tmp_path / "list/rejected.txt"
    with pytest.raises(InputError) as raised:
        prepare(ImageFolder(path="."), tmp_path, target, name="toy", rejected_list=listed)
    message = str(raised.value)
    assert "toy train: 11 of 14 images cannot be used (allowed share 0.001): " in message
    assert (
        "the file is empty (6), is neither JPEG, PNG, WebP nor GIF (4), cannot be decoded (1);"
        in message
    )
    assert f"in {listed};" in message
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert len(lines) == 11
    assert lines[0] == ["train/ape/e0.jpg", "the file is empty"]
    assert all(len(line) == 2 for line in lines)
    recipe = ImageFolder(path=".", max_rejected_share=0.9)
    prepare(recipe, tmp_path, target, name="toy", rejected_list=listed)
    assert not listed.exists()


def test_a_union_knows_its_members_bad_files_and_what_it_drops(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    put(tmp_path / "two/train/bee/x.jpg", picture(70))
    (tmp_path / "two/train/yak/y.jpg").symlink_to("gone.jpg")
    members = (ImageFolder(path="one"), ImageFolder(path="two"))
    expected = Refused("toy train: 1 of 8 images cannot be used", "1-imagefolder/train/yak/y.jpg")
    check(Union_(members=members), tmp_path, tmp_path / "packed", expected)
    recipe = Union_(members=members, max_rejected_share=0.2)
    manifest = prepare(recipe, tmp_path, tmp_path / "packed", name="toy")
    assert manifest.classes is None
    assert manifest.notes == (
        "Labels are not kept: the members' classes, or their order, are not the same.",
    )
    scenes = Scenes(image_size=16, train=2, test=1)  # has no labels: nothing to say
    recipe = Union_(members=(ImageFolder(path="one"), scenes))
    (note,) = prepare(recipe, tmp_path, tmp_path / "packed", name="toy").notes
    assert note.startswith("1-scenes: Composed from")
