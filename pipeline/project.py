"""Where the project is and which suite a command is for."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.expand import SUITE_FILE
from pipeline.config.suggest import folded, unknown_name
from pipeline.config.yaml_files import read_yaml
from pipeline.errors import UserError

SUITES = "suites"
REDUCED = " - REDUCED SCALE"
"""Behind the title of a table with reduced numbers."""


@dataclass(frozen=True)
class Project:
    """The folders that a command works in.

    Attributes:
        root: Folder that has `.dvc`.
        suite: Folder with the suite's `params.yaml`: the root (the demo) or `suites/<name>`.
        origin: Root of the project of which this is a copy that will be deleted, made for an
            experiment of DVC; its scratch is used, which stays.
        own_scratch: That is not used: somebody works there on the same run.
    """

    root: Path
    suite: Path
    origin: Path | None = None
    own_scratch: bool = False

    @property
    def name(self) -> str:
        """The suite's name on the command line; the root is `demo`."""
        return "demo" if self.suite == self.root else self.suite.name

    @property
    def label(self) -> str:
        """The same as people read it: a root that holds no code is somebody's own, and no demo."""
        if self.suite != self.root or (self.root / "pipeline" / "__init__.py").is_file():
            return self.name
        with contextlib.suppress(UserError, OSError):
            return str(read_yaml(self.params_file).get("suite") or self.name).replace("/", "-")
        return self.name

    @property
    def params_file(self) -> Path:
        return self.suite / "params.yaml"

    @property
    def cluster_file(self) -> Path:
        return self.root / "cluster.yaml"

    @property
    def scratch(self) -> Path:
        """Folder of everything that is neither committed nor an output."""
        return (self.root if self.own_scratch else self.home) / ".asl"

    @property
    def home(self) -> Path:
        """Root of the project that stays."""
        return self.origin or self.root

    def shown(self, path: Path) -> str:
        """Return a path as a person in the suite's folder would type it."""
        return str(path.relative_to(self.suite)) if path.is_relative_to(self.suite) else str(path)


def data_root(project: Project) -> Path:
    """Return the folder for relative data paths: $ASL_DATA, or shared/data beside the project."""
    named = os.path.expanduser(os.environ.get("ASL_DATA", ""))
    return Path(named or project.home.parent / "shared" / "data")


def suite_folders(root: Path) -> dict[str, Path]:
    """Return the project's suites by the name of their folder; the root is `demo`."""
    found = sorted(folder for folder in (root / SUITES).glob("*") if is_suite(folder))
    return {"demo": root, **{folder.name: folder for folder in found}}


def named_suite(root: Path, name: str) -> Path | None:
    """Return the suite of a name, whatever its capitals, or of a title as the tables print it."""
    folders = suite_folders(root)
    if name in folders:
        return folders[name]
    wanted = folded_title(name)
    for folder_name, folder in folders.items():
        if wanted == folded(folder_name) or wanted in _labels(folder):
            return folder
    return None


def folded_title(title: str) -> str:
    """Return a title as it is compared, without what is printed behind it."""
    return folded(title).removesuffix(folded(REDUCED)).strip()


def _labels(folder: Path) -> set[str]:
    """Return what params.yaml calls a suite; nothing where it cannot be read."""
    with contextlib.suppress(UserError):
        content = read_yaml(folder / "params.yaml")
        return {folded(content.get(key, "")) for key in ("suite", "title")} - {""}
    return set()


def is_suite(folder: Path) -> bool:
    """Say whether a folder is one: whether it has the file, of whatever content."""
    return any(os.path.lexists(folder / name) for name in ("params.yaml", SUITE_FILE))


def _find_root(start: Path) -> Path | None:
    """Return the nearest folder above that is a project of DVC and no suite of another."""
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            around = folder.parents[1] if folder.parent.name == SUITES else None
            return around if around is not None and (around / ".dvc").is_dir() else folder
    return None


def find_project(start: Path, suite: str | None = None) -> Project:
    """Find the project that a folder belongs to and the suite it is in, or the one that is named.

    Raises:
        UserError: No project above `start`, no such suite, or `start` is in no suite's folder.
    """
    start = start.resolve()
    root = _find_root(start)
    if root is None:
        raise UserError(
            f"{start} is not inside a project: no folder above it has .dvc; cd into a project"
        )
    if suite is not None:
        folder = named_suite(root, suite)
        if folder is None:
            raise UserError(unknown_name("suite", suite, suite_folders(root)))
        return Project(root, folder)
    for folder in (start, *start.parents):
        if is_suite(folder):
            return Project(root, folder)
        if folder in (root, root / SUITES) or folder.parent == root / SUITES:
            break  # what is below suites/ is a suite of its own, or none yet
    raise UserError(f"{start} has no params.yaml; go to {root} or to a folder under suites/")
