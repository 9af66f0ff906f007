from pathlib import Path

import pytest
import torch

from asl_core.data.prepare import prepare
from asl_core.recipes.datasets import Icons


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 16 images of 16 pixels, with labels."""
    folder = tmp_path_factory.mktemp("data") / "icons"
    prepare(Icons(image_size=16, train=40, test=16), folder, folder, name="icons")
    return folder


@pytest.fixture(scope="session", autouse=True)
def autograd_has_begun() -> None:
    """Let the first backward pass come before torch.compile makes devices known.

    Autograd would start a thread for each of them, and processes that are forked later by other
    tests could not go backward.
    """
    torch.ones((), requires_grad=True).backward()
