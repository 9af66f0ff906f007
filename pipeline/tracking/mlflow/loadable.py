"""The files by which `mlflow.pyfunc.load_model` makes an encoder embed images.

They are its weights, its normalisation, the modules that run it, and MLflow's description; nothing
of the project is needed to load them, and nothing is run or looked up to write them.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from asl_core.recipes.normalisation import Rgb
from pipeline.results.renamed import renamed_package
from pipeline.tracking.tracked import TrackedRun

MLMODEL = "MLmodel"
ENTRY = "asl_core.exchange.image_model"
ENCODER_FILES = ("encoder.json", "encoder.safetensors")
NORMALISATION_FILE = "normalisation.json"
POOLING = ParamSpec("pooling", "string", "cls")
PACKAGES = ("mlflow", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision")


def write_loadable(
    folder: Path,
    encoder: Path,
    normalisation: tuple[Rgb, Rgb],
    run: TrackedRun,
    *,
    model_id: str,
    run_id: str,
) -> None:
    """Write a model into an empty folder; weights are linked to, not copied.

    Input is not part of the signature: MLflow's has one type, and this takes pixels, bytes and
    paths (`ImageModel.predict`). Output and the parameter `pooling` are.

    Args:
        folder: Where to write.
        encoder: Folder of the encoder.
        normalisation: Mean and standard deviation of the channels.
        run: Its pre-training.
        model_id: Of the model in the store.
        run_id: Of the run there.
    """
    data, code = folder / "data", folder / "code"
    data.mkdir()
    for name in ENCODER_FILES:
        (data / name).symlink_to((encoder / name).resolve())
    constants = dict(zip(("mean", "std"), normalisation, strict=True))
    (data / NORMALISATION_FILE).write_text(json.dumps(constants) + "\n")
    package = renamed_package(ENTRY, "asl_encoder")
    for path, content in package.files.items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_bytes(content)
    _write_environment(folder)
    vit = json.loads((encoder / ENCODER_FILES[0]).read_text(encoding="utf-8"))
    model = Model(
        model_id=model_id,
        run_id=run_id,
        signature=ModelSignature(
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, int(vit["embed_dim"])))]),
            params=ParamSchema([POOLING]),
        ),
        metadata=_metadata(run, vit),
    )
    # as `mlflow.pyfunc.add_to_model` does it, which warns about MLflow's own modules
    model.add_flavor(
        "python_function",
        loader_module=package.module(ENTRY),
        python_version=platform.python_version(),
        data=data.name,
        code=code.name,
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
    )
    model.save(str(folder / MLMODEL))


def _metadata(run: TrackedRun, vit: dict[str, Any]) -> dict[str, Any]:
    return {
        "suite": run.suite,
        "experiment": run.key,
        "fingerprint": run.fingerprint,
        "input": "an array (N, H, W, 3) of integers from 0 to 255; or a list, or a DataFrame with "
        "the column image, of encoded images or paths of files",
        "output": "float32, (N, width): one vector for each image",
        "image_size": vit["image_size"],
    }


def _write_environment(folder: Path) -> None:
    """Write the versions that run here, in the three forms that MLflow reads."""
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    python = platform.python_version()
    (folder / "requirements.txt").write_text("\n".join(pinned) + "\n")
    environments = {
        "conda.yaml": {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": pinned}],
        },
        "python_env.yaml": {
            "python": python,
            "build_dependencies": ["pip"],
            "dependencies": ["-r requirements.txt"],
        },
    }
    for name, content in environments.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
