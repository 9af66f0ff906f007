from pathlib import Path

import pytest

from asl_core.data.prepare import prepare
from asl_core.recipes.datasets import Icons


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 16 images of 16 pixels, with labels."""
    folder = tmp_path_factory.mktemp("data") / "icons"
    prepare(Icons(image_size=16, train=40, test=16), folder, folder, name="icons")
    return folder
