"""A machine that has torch, torchvision, timm and safetensors, what they pull in, and nothing else.

A folder of links to just those installed packages is all that Python sees there: no site-packages,
no programs but Python itself.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PACKAGES = ("torch", "torchvision", "timm", "safetensors")


class BareMachine:
    """Runs Python where nothing else is installed.

    Args:
        folder: Made; has `packages`, and `home`, where commands run.
    """

    def __init__(self, folder: Path) -> None:
        self.packages, self.home = folder / "packages", folder / "home"
        self.packages.mkdir(parents=True)
        self.home.mkdir()
        for each in _with_requirements(PACKAGES):
            _link(each, self.packages)

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.packages), "HOME": str(self.home), "PATH": "/nowhere"}

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Python in `home`."""
        # -S: without site-packages; the environment's folder of links is all there is. A shell lets
        # what it starts in the background ignore SIGINT: tests that run there would hand that on.
        return subprocess.Popen(
            [sys.executable, "-S", "-s", *arguments], cwd=self.home,
            env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run Python in `home` and return what it printed."""
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said


def _with_requirements(names: tuple[str, ...]) -> Iterator[Distribution]:
    seen: set[str] = set()
    waiting = [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        yield found
        required = (Requirement(text) for text in found.requires or ())
        waiting += [
            each.name for each in required
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]  # fmt: skip


def _link(found: Distribution, packages: Path) -> None:
    """Link what a package has at the top of site-packages."""
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "bin")}
    for top in tops - {"__pycache__"}:
        link = packages / top
        if not link.is_symlink():
            link.symlink_to(Path(str(found.locate_file(top))))
