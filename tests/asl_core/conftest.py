from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from asl_core.data.prepare import prepare
from asl_core.recipes.datasets import Icons

ERRORS = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 16 images of 16 pixels, with labels."""
    folder = tmp_path_factory.mktemp("data") / "icons"
    prepare(Icons(image_size=16, train=40, test=16), folder, folder, name="icons")
    return folder


@pytest.fixture(scope="session")
def parity(pytestconfig: pytest.Config) -> Callable[[str, Tensor, Tensor, float], None]:
    """Assert that two computations agree; the largest errors are printed when pytest ends."""
    errors = pytestconfig.stash.setdefault(ERRORS, {})

    def check(name: str, ours: Tensor, theirs: Tensor, most: float) -> None:
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} and {theirs.shape}"
        error = (ours - theirs).abs().max().item()
        errors[name] = max(errors.get(name, 0.0), error)
        assert error <= most, f"{name}: differs by {error:.3g}"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    errors = terminalreporter.config.stash.get(ERRORS, {})
    if errors:
        terminalreporter.section("parity: largest absolute errors")
        for name, error in errors.items():
            terminalreporter.write_line(f"{error:9.2e}  {name}")
