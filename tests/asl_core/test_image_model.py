"""Images in, vectors out: what a logged model computes is what the evaluations read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from asl_core.data.samples import Sample
from asl_core.data.views import evaluation_transform, normalise
from asl_core.exchange import image_model
from asl_core.exchange.image_model import NORMALISATION_FILE, ImageModel
from asl_core.modules.encoder import Encoder, save_encoder
from asl_core.recipes.models import MODELS
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.transfer.features import frozen_features

VIT = MODELS["vit-demo-4"]
MEAN, STD = NORMALISATIONS["cifar10"]


@pytest.fixture(scope="module")
def model() -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(Encoder(VIT), MEAN, STD)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("sides", [(32, 32), (47, 61)])
def test_vectors_are_the_frozen_features(
    model: ImageModel, monkeypatch: pytest.MonkeyPatch, pooling: str, sides: tuple[int, int]
) -> None:
    monkeypatch.setattr(image_model, "BATCH", 2)
    given = pixels(5, *sides, 3)
    transform = evaluation_transform(32)
    crops = [
        transform(Sample(0, 0, torch.from_numpy(image).permute(2, 0, 1))).image for image in given
    ]
    images = normalise(torch.stack(crops), MEAN, STD)
    ours = frozen_features(model.encoder, images, (pooling,))[:, 0]
    found = model.predict(given, {"pooling": pooling})
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), ours, atol=1e-5, rtol=0)


def test_pixels_bytes_and_paths_are_the_same_images(model: ImageModel, tmp_path: Path) -> None:
    given = pixels(3, 32, 32, 3)
    encoded = [png(image) for image in given]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, content in zip(files, encoded, strict=True):
        file.write_bytes(content)
    vectors = model.predict(given)
    for same in (
        given.astype(np.int64), list(given), encoded, files, [str(file) for file in files],
        pd.DataFrame({"image": encoded}), pd.DataFrame({"anything": [str(f) for f in files]}),
        pd.DataFrame({"label": [0, 1, 2], "image": encoded}), pd.Series(encoded),
    ):  # fmt: skip
        np.testing.assert_array_equal(model.predict(same), vectors)
    assert model.predict([]).shape == (0, VIT.embed_dim)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((1, 32, 32, 3), np.float32), "integers from 0 to 255, got float32"),
        (np.full((1, 32, 32, 3), 256), "from 0 to 255, got 256 to 256"),
        (np.zeros((32, 32, 3), np.uint8), r"array \(N, H, W, 3\), got \(32, 32, 3\)"),
        ("a.png", "a list or a DataFrame of images, got str"),
        (["gone.png"], r"image 0 \(gone.png\) cannot be read: No such file"),
        ([png(pixels(8, 8, 3))[:60]], "image 0 cannot be read"),
        ([7], "expected bytes or a path, got int"),
        (pd.DataFrame({"a": [1], "b": [2]}), "columns a, b, expected image"),
    ],
)
def test_other_input_is_refused_in_one_line(model: ImageModel, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        model.predict(given)
    assert "\n" not in str(caught.value)


def test_an_unknown_pooling_is_refused(model: ImageModel) -> None:
    with pytest.raises(ValueError, match="one of cls, mean, got 'max'"):
        model.predict([], {"pooling": "max"})


def test_it_is_loaded_from_a_folder(model: ImageModel, tmp_path: Path) -> None:
    save_encoder(tmp_path, model.encoder.state_dict(), VIT)
    constants = {"mean": MEAN, "std": STD}
    (tmp_path / NORMALISATION_FILE).write_text(json.dumps(constants))
    loaded = image_model._load_pyfunc(str(tmp_path))
    given = pixels(2, 32, 32, 3)
    np.testing.assert_allclose(loaded.predict(given), model.predict(given), atol=1e-5)
