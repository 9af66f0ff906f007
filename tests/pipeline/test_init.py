"""`asl-pipe init` makes a project of a folder of images: sized, explained, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from asl_core.recipes.models import Vit
from pipeline.config.cluster import load_resources
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.project import find_project
from pipeline.results.suite_project import is_up_to_date
from pipeline.starting import machine as machines
from pipeline.starting.images import Handling, Look, look_at
from pipeline.starting.machine import Machine, Pace
from pipeline.starting.project import make_project, refuse_place
from pipeline.starting.regimes import LADDER, MOST_PASSES, Choice, Evaluation, choose
from pipeline.starting.texts import cluster_text, params_text, quoted, suite_name

Say = Callable[..., str]
GIB = 2**30
LAPTOP = Machine(cores=2, memory=16 * GIB, load=0.5)
SERVER = Machine(
    cores=16, memory=128 * GIB, load=0.5, gpus=2, gpu="NVIDIA H200", gpu_memory=140 * GIB,
    capability=9.0, has_compiler=True,
)  # fmt: skip


def looked(count: int = 2000, side: int = 480, **more: object) -> Look:
    fields = {
        "folder": Path("/data/pictures"), "count": count, "short_side": side,
        "long_side": side * 4 // 3, "one_size": False, "unreadable": 0, "sampled": 300,
        "classes": {}, "tested": None, "files": (),
    }  # fmt: skip
    return Look(**fields | more)  # type: ignore[arg-type]


def paced(seconds: float, images: int = 32) -> Callable[..., Pace]:
    """Steps whose time grows with the encoder, as multiply-adds do."""

    def pace(method: str, model: Vit, batch: int, precision: str) -> Pace:
        work = model.num_patches * model.depth * model.embed_dim**2 / (64 * 4 * 128**2)
        return Pace(seconds * work * (1.45 if method == "asl" else 1.0), min(batch, images))

    return pace


def chosen(
    look: Look,
    minutes: float,
    machine: Machine = LAPTOP,
    seconds: float = 2e-3,
    evaluation: Evaluation | None = None,
    **more: bool,
) -> Choice:
    cost = Handling(packing=5e-3, loading=1e-3)
    return choose(
        look, evaluation, machine, minutes, paced(seconds, 4096), lambda *_: cost,
        one_size=more.get("one_size", False),
    )  # fmt: skip


# --- what is chosen


def test_minutes_of_two_cores_get_the_smallest_encoder_and_many_small_steps() -> None:
    choice = chosen(looked(), minutes=20)
    assert choice.rung is LADDER[0]
    assert (choice.batch, choice.lr, choice.precision) == (32, 1e-3, ("fp32", "fp32"))
    assert 20 * 60 * 0.8 < sum(choice.seconds.values()) <= 20 * 60 * 0.9
    assert choice.epochs == choice.seen // choice.train
    assert choice.holdout == 0.05
    look = looked(classes={"cat": 1000, "dog": 1000})  # then accuracies are shares of them
    assert chosen(look, 20, evaluation=Evaluation("images", look, 2, 0.2)).holdout == 0.2
    assert choice.max_side == 96
    assert choice.workers == 1


def test_a_larger_encoder_is_chosen_once_it_sees_what_it_wants() -> None:
    sizes = [chosen(looked(50_000), minutes=60 * hours).rung for hours in (1, 8, 48)]
    assert [LADDER.index(rung) for rung in sizes] == sorted(LADDER.index(rung) for rung in sizes)
    assert sizes[0] is LADDER[0]
    assert sizes[-1] is not LADDER[0]
    for hours, rung in zip((1, 8, 48), sizes, strict=True):
        assert chosen(looked(50_000), minutes=60 * hours).seen >= rung.wanted


def test_a_day_of_a_gpu_gets_vit_b_by_its_published_rates() -> None:
    choice = chosen(looked(1_000_000), minutes=24 * 60, machine=SERVER, seconds=1e-6)
    assert (choice.rung.name, choice.lr, choice.precision) == ("vit-b", None, (None, None))
    assert choice.seen >= 60_000_000
    assert 128 <= choice.batch <= 4096
    assert choice.holdout == 0.05
    assert choice.compile
    assert any("one GPU of 2" in note for note in choice.notes)


def test_small_images_get_no_larger_input_than_they_fill() -> None:
    choice = chosen(looked(50_000, side=32), minutes=6000, machine=SERVER, seconds=1e-6)
    assert choice.rung is LADDER[0]
    assert choice.max_side is None


def test_few_images_are_not_learned_by_heart_however_much_time_there_is() -> None:
    choice = chosen(looked(500), minutes=60 * 24)
    assert choice.epochs == MOST_PASSES
    assert any("more than a larger number would use well" in note for note in choice.notes)


def test_what_no_pass_fits_into_is_refused_with_the_time_that_it_wants() -> None:
    line = r"10 minutes do not hold one pass of mae and asl over 1,140,000 images .* --minutes \d+"
    with pytest.raises(UserError, match=line):
        chosen(looked(1_200_000), minutes=10)
    wanted = 1_200_000 * 5e-3
    assert chosen(looked(1_200_000), minutes=3 * wanted / 60).epochs >= 1


def test_little_time_is_said_to_teach_nothing() -> None:
    choice = chosen(looked(2000), minutes=3)
    assert choice.seen < 15_000
    assert any("too few to learn from" in note for note in choice.notes)


def test_images_of_one_size_stay_in_memory_if_they_fit() -> None:
    small = looked(50_000, side=32, one_size=True, long_side=32)
    assert chosen(small, minutes=30, one_size=True).on_device
    assert chosen(small, minutes=30, one_size=True).workers == 0
    tight = Machine(cores=2, memory=GIB // 4, load=0.0)
    assert not chosen(small, minutes=30, machine=tight, one_size=True).on_device


def test_a_batch_that_the_gpu_did_not_hold_goes_through_it_in_parts() -> None:
    choice = choose(
        looked(1_000_000), None, SERVER, 60 * 24 * 4, paced(2e-6, images=64),
        lambda *_: Handling(1e-3, 1e-3), one_size=False,
    )  # fmt: skip
    assert choice.batch > 64 == choice.micro_batch
    assert "micro_batch_size: 64" in cluster_text(choice, SERVER)


def test_an_older_gpu_gets_fp16_for_it_has_no_bfloat16() -> None:
    from dataclasses import replace

    choice = chosen(looked(), 60, machine=replace(SERVER, capability=7.0), seconds=1e-5)
    assert choice.precision == ("fp16", None)


# --- what is written


@pytest.mark.parametrize("labelled", ["nothing", "the images", "others"])
@pytest.mark.parametrize("machine", [LAPTOP, SERVER], ids=["CPU", "GPU"])
@pytest.mark.parametrize("split", [False, True], ids=["a folder", "train and val"])
def test_what_is_written_is_valid_and_says_what_was_chosen(
    tmp_path: Path, labelled: str, machine: Machine, split: bool
) -> None:
    classes = {"cat": 900, "dog": 1100}
    look = looked(tested=400 if split else None, classes={} if labelled == "nothing" else classes)
    evaluation = {
        "nothing": None, "the images": Evaluation("images", look, 2, 0.05),
        "others": Evaluation("labelled", looked(700, classes=classes), 2, 0.2),
    }[labelled]  # fmt: skip
    choice = chosen(look, 60, machine, evaluation=evaluation)
    text = params_text("mine", 'A "title": 2 %', 60, machine, look, evaluation, choice)
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "cluster.yaml").write_text(cluster_text(choice, machine))
    params = load_params(tmp_path / "params.yaml", [])
    assert params.title == 'A "title": 2 %'
    assert params.tables == ()
    assert set(params.experiments) == {"mae", "asl", "untrained"}
    assert {item.model for item in params.experiments.values()} == {choice.rung.model}
    assert params.experiments["asl"].epochs == choice.epochs
    assert set(params.section("knn")) == (
        set() if labelled == "nothing" else {"mae", "asl", "untrained"}
    )
    assert "labelled" in params.datasets or labelled != "others"
    assert load_resources(tmp_path / "cluster.yaml", "pretrain").num_workers == choice.workers
    assert all(len(line) <= 110 for line in text.splitlines()), text


def test_names_of_suites_are_plain() -> None:
    assert suite_name("Mäuse & Vögel 2024") == "mause-vogel-2024"
    assert suite_name("3 of_mine-") == "of_mine"
    assert suite_name("日本") == "images"
    assert quoted('a "b" ü') == '"a \\"b\\" ü"'


# --- what is looked at


def pictures(folder: Path, count: int, side: int = 20, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        image = Image.new("RGB", (side, side), (number % 256, number // 256, 40))
        image.save(folder / f"{number}.png")
    return folder


def test_class_folders_are_told_from_folders_that_are_none(tmp_path: Path) -> None:
    for name, start in (("cat", 0), ("dog", 50)):
        pictures(tmp_path / "pets" / name / "deeper", 40, start=start)
    look = look_at(tmp_path / "pets", "--images", lambda _: None)
    assert look.classes == {"cat": 40, "dog": 40}
    assert (look.count, look.one_size, look.short_side) == (80, True, 20)
    pictures(tmp_path / "pets", 1)  # an image beside them has no class
    assert look_at(tmp_path / "pets", "--images", lambda _: None).classes == {}


def test_train_and_val_are_a_split(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 10)):
        for name in ("a", "b"):
            pictures(tmp_path / split / name, count)
    look = look_at(tmp_path, "--images", lambda _: None)
    assert (look.tested, look.count, look.classes) == (20, 100, {"a": 40, "b": 40})


def test_links_in_circles_broken_and_hidden_files_are_no_hindrance(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", 70)
    (folder / "round").symlink_to(tmp_path, target_is_directory=True)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.png").write_bytes(b"")
    look = look_at(tmp_path, "--images", lambda _: None)
    assert (look.count, look.unreadable) == (71, 1)


# --- the project


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose steps need not be timed."""

    class Watch:
        machine = LAPTOP
        pace = staticmethod(paced(1e-4))

        def __enter__(self) -> "Watch":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(machines, "stopwatch", Watch)


@pytest.mark.usefixtures("bare")
def test_init_makes_a_project_and_says_what_it_found(tmp_path: Path, say: Say) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / "my pictures ü" / name, 60)
    target = tmp_path / "Vögel und Mäuse"
    said = say("init", str(target), "--images", str(tmp_path / "my pictures ü"), "--minutes", "9")
    assert "labels: 2 folders of 60 to 60 images are taken for classes: cat, dog" in said
    assert f"cd '{target}' && dvc repro" in said
    project = find_project(target)
    assert is_up_to_date(target)
    assert project.name == "demo"
    params = load_params(project.params_file)
    assert params.datasets["images"].path == str(tmp_path / "my pictures ü")
    assert params.datasets["images"].labels == "folder"
    assert {path.name for path in target.iterdir()} >= {
        ".git", ".gitignore", ".dvc", ".dvcignore", "README.md", "cluster.yaml", "dvc.yaml",
    }  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_nested_folders_need_not_be_classes(tmp_path: Path, say: Say) -> None:
    for name in ("2023", "2024"):
        pictures(tmp_path / "all" / name, 60)
    command = ("init", str(tmp_path / "p"), "--images", str(tmp_path / "all"))
    assert "--labelled FOLDER" in say(*command, "--labels", "none", "--hours", "0.1")
    params = load_params(tmp_path / "p/params.yaml")
    assert params.datasets["images"].labels == "none"
    assert not params.section("knn")


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["p", "--images", "nowhere"], "--images {}/nowhere: does not exist"),
        (["p", "--images", "few"], "3 images found at any depth, at least 64 are wanted"),
        (["full", "--images", "all"], "{}/full is not empty (x); name a new folder"),
        (["all/p", "--images", "all"], "lies in the folder of images {}/all"),
        (["p", "--images", "all", "--labels", "folder"], "has no class folders"),
        (["p", "--images", "all", "--labelled", "few"], "3 images found"),
        (["p", "--images", "all", "--minutes", "5", "--hours", "1"], "got both --minutes and"),
        (["file", "--images", "all"], "{}/file is a file; name a new folder"),
        (["p", "--images", "file"], "--images {}/file: is a file"),
        (["file/p", "--images", "all"], "{}/file is a file; name a new folder"),
        (["circle", "--images", "all"], "{}/circle is a link that leads nowhere"),
        (["p", "--images", "circle"], "--images {}/circle: does not exist"),
        (["p", "--images", "all", "--hours", "inf"], "inf minutes are no time"),
    ],
)
def test_wrong_input_ends_in_one_line_and_leaves_nothing(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "all", 70)
    pictures(tmp_path / "few", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    before = sorted(tmp_path.rglob("*"))
    said = say("init", *arguments, code=2)
    assert line.format(tmp_path) in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_project_cannot_be_made_inside_asl_pipe_or_as_a_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds asl-pipe itself"):
        refuse_place(Path(__file__).parent / "mine", ())
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(UserError, match="asl-pipe new mine makes one there"):
        refuse_place(tmp_path / "suites/mine", ())


def test_a_failure_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # then DVC works without git
    broken = {"params.yaml": "datasets: {", "cluster.yaml": ""}
    with pytest.raises(UserError):
        make_project(tmp_path / "a/b", broken)
    assert not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError):
        make_project(tmp_path / "there", broken)
    assert os.listdir(tmp_path / "there") == []


FILES = {"params.yaml": "datasets: {}\n", "cluster.yaml": "", "README.md": ""}


def test_a_subfolder_of_a_repository_gets_a_dvc_project_of_its_own(
    dvc_project: Path, call: Callable[..., object]
) -> None:
    said = make_project(dvc_project / "vision/own", FILES)
    assert said == [f"git: the repository {dvc_project}", "DVC: initialised in a subfolder"]
    assert find_project(dvc_project / "vision/own").root == dvc_project / "vision/own"
    assert not (dvc_project / "vision/own/.git").exists()


def test_without_git_dvc_works_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert make_project(tmp_path / "own", FILES) == [
        "DVC without git, which is not installed: initialised"
    ]
    assert "no_scm = True" in (tmp_path / "own/.dvc/config").read_text()
