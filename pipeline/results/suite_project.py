"""What makes a suite's folder a DVC project of its own, with the cache of the project it is in.

DVC then answers about one suite, and reads no other. A run that two suites share has one key and
one cache, so that it is made once.
"""

import configparser
import io
from pathlib import Path

from pipeline.results.closure import PACKAGES
from pipeline.results.code import code_root, dag_of
from pipeline.writing import write_bytes

_CONFIG_HEAD = "# Written by asl-pipe expand: cache and remotes are the whole project's.\n"
_IGNORED_BY_GIT = "/config.local\n/tmp\n/cache\n"


def wanted_files(suite: Path, root: Path) -> dict[str, str]:
    """Return path under a suite's folder -> text of the files that follow from the project.

    Args:
        suite: The folder.
        root: Folder of the whole project, which has `.dvc`; the demo's own.
    """
    files = {"dvc.yaml": dag_of(suite)}
    if suite != root:
        ignored, config = root / ".dvcignore", root / ".dvc" / "config"
        settings = config.read_text("utf-8") if config.is_file() else ""
        files |= {
            ".dvc/config": config_text(settings, suite, root),
            ".dvc/.gitignore": _IGNORED_BY_GIT,
            ".dvcignore": ignored.read_text("utf-8") if ignored.is_file() else "",
        }
    return files


def wanted_links(suite: Path, root: Path) -> dict[str, str]:
    """Return name -> target of the links by which a suite sees the project's code.

    Links and not paths upwards: what `.dvcignore` says holds below a project's folder alone, and
    the stage `code` has the same key everywhere.
    """
    if suite == root or code_root(root) != root:
        return {}
    above = "../" * len(suite.relative_to(root).parts)
    return {package: f"{above}{package}" for package in PACKAGES}


def _copy_secrets(suite: Path, root: Path) -> None:
    """Let a suite know what is the machine's own, passwords among it; git does not see it."""
    source, target = root / ".dvc" / "config.local", suite / ".dvc" / "config.local"
    if suite == root or not source.is_file():
        return
    text = config_text(source.read_text("utf-8"), suite, root, with_cache=False)
    if not target.is_file() or target.read_text("utf-8") != text:
        target.touch(mode=0o600)
        target.write_text(text, encoding="utf-8")


def write_suite_project(suite: Path, root: Path) -> list[str]:
    """Write what is missing or differs; return the paths that changed, relative to the suite."""
    changed = []
    for name, target in wanted_links(suite, root).items():
        link = suite / name
        if link.is_symlink() and str(link.readlink()) == target:
            continue
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)
        changed.append(name)
    for name, text in wanted_files(suite, root).items():
        file = suite / name
        if file.is_file() and not file.is_symlink() and file.read_text("utf-8") == text:
            continue
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)  # a link of an earlier version leads to another suite's
        write_bytes(file, text.encode())
        changed.append(name)
    _copy_secrets(suite, root)
    return changed


def config_text(config: str, suite: Path, root: Path, *, with_cache: bool = True) -> str:
    """Return a suite's `.dvc/config`, given the project's.

    Settings are the same, but that relative paths start elsewhere: DVC resolves them against the
    folder of the file that has them.
    """
    above = "../" * len(suite.relative_to(root).parts)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(config)
    if with_cache:
        if not parser.has_section("cache"):
            parser.add_section("cache")
        if not parser.has_option("cache", "dir"):
            parser.set("cache", "dir", "cache")
    for section in parser.sections():
        for option in ("dir", "url"):
            if parser.has_option(section, option):
                path = parser.get(section, option)
                if "://" not in path and not Path(path).is_absolute():
                    parser.set(section, option, f"../{above}.dvc/{path}")
    text = io.StringIO()
    parser.write(text)
    return _CONFIG_HEAD + text.getvalue().rstrip() + "\n"
