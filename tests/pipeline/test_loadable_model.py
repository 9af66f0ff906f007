"""MLflow's models load: with the project out of reach, whatever happened while they were stored."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from asl_core.data.prepare import prepare
from asl_core.data.views import normalise
from asl_core.engine.journal import Journal
from asl_core.modules.encoder import Encoder, load_encoder, save_encoder
from asl_core.recipes.datasets import Icons
from asl_core.recipes.models import MODELS
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.transfer.features import frozen_features
from pipeline.jobs.folder import JobFolder
from pipeline.results.renamed import renamed_package
from pipeline.tracking.mlflow.link import RunLink
from pipeline.tracking.mlflow.loadable import ENTRY, MLMODEL
from pipeline.tracking.mlflow.models import EncoderModels
from pipeline.tracking.mlflow.store import MlflowStore

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
FINGERPRINT = "0123abcd" * 4
VIT = MODELS["vit-demo-4"]
PARAMS = """
suite: demo
title: Demo
scale: reduced
datasets: {icons: {source: icons, train: 2, test: 2, image_size: 32, normalisation: cifar10}}
experiments: {mae: {method: mae, dataset: icons, model: vit-demo-4}}
"""
LOAD = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("asl_core", "pipeline"):
            raise ImportError(f"{name} is out of reach")

sys.meta_path.insert(0, Absent())
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/asl-demo@best")
images = np.load("images.npy")
np.save("cls.npy", model.predict(images))
np.save("mean.npy", model.predict(images, params={"pooling": "mean"}))
"""


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, tables: Path) -> Path:
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    shutil.copy(tables, root / "mlflow.db")
    (root / "params.yaml").write_text(PARAMS)
    folder = root / "runs/encoder/mae"
    folder.mkdir(parents=True)
    save_encoder(folder, Encoder(VIT).state_dict(), VIT)
    (root / "runs/pretrain/mae").mkdir(parents=True)
    return root


def write_run(
    root: Path, stage: str = "pretrain", fingerprint: str = FINGERPRINT, digest: str = "e" * 36
) -> JobFolder:
    job = JobFolder.of(root / ".asl", fingerprint)
    with Journal.open(job.journal) as journal:
        names = {"stage": stage, "key": "mae", "suite": "demo", "fingerprint": fingerprint}
        journal.tags({**names, "scale": "reduced"})
        if stage == "pretrain":
            journal.params({"method": "mae", "dataset": "icons"})
        else:
            journal.tags({"encoder_fingerprint": FINGERPRINT})
            journal.metrics(0, {"lp_acc1": 40.0})
        journal.dataset("icons", digest, "data/icons", "train")
        journal.end("SUCCEEDED", "")
    return job


def client(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def ingest(root: Path, job: JobFolder, *, trusting: bool = False) -> RunLink:
    stage = "linprobe" if job.folder.name.startswith("aa") else "pretrain"
    return MlflowStore(root, trust_links=trusting).ingest(
        job.journal, root / "runs" / stage / "mae"
    )


def model_of(root: Path, link: RunLink) -> LoggedModel:
    (model,) = client(root).search_logged_models([link.experiment_id])
    return model


def files(root: Path, link: RunLink) -> set[str]:
    found = client(root).list_logged_model_artifacts(model_of(root, link).model_id)
    return {file.path for file in found}


def normalisation(root: Path) -> dict[str, list[float]]:
    (path,) = root.rglob("artifacts/data/normalisation.json")
    return json.loads(path.read_text())


def test_the_best_model_loads_without_the_project_and_embeds_images(
    root: Path, tmp_path: Path
) -> None:
    ingest(root, write_run(root))
    ingest(root, write_run(root, "linprobe", "aa" * 16))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, uri],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    encoder = load_encoder(root / "runs/encoder/mae").eval()
    given = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), *NORMALISATIONS["cifar10"])
    with torch.no_grad():
        ours = frozen_features(encoder, given, ("cls", "mean")).numpy()
    found = np.stack([np.load(tmp_path / f"{name}.npy") for name in ("cls", "mean")], axis=1)
    np.testing.assert_allclose(found, ours, atol=1e-5, rtol=0)


def test_it_says_what_it_needs_and_gives(root: Path) -> None:
    link = ingest(root, write_run(root))
    (path,) = root.rglob(MLMODEL)
    described = Model.load(str(path))
    assert described.signature is not None
    assert described.signature.inputs is None
    assert described.signature.outputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, VIT.embed_dim)
    assert described.metadata["fingerprint"] == FINGERPRINT
    assert described.model_id == model_of(root, link).model_id
    pinned = (path.parent / "requirements.txt").read_text().split()
    names = {name.partition("==")[0] for name in pinned}
    assert names >= {"torch", "timm", "safetensors", "mlflow"}
    assert not [name for name in pinned if "+" in name or "asl" in name]
    assert files(root, link) >= {MLMODEL, "code", "data", "weights.txt"}


def test_storing_it_again_adds_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_run(root)
    first = ingest(root, job)
    monkeypatch.setattr(EncoderModels, "_make_loadable", lambda *_: pytest.fail("stored twice"))
    assert ingest(root, job, trusting=True).run_id == first.run_id
    (job.folder / "mlflow.json").unlink()  # all of it is sent a second time
    assert ingest(root, job).run_id == first.run_id
    assert len(client(root).search_model_versions("name = 'asl-demo'")) == 1


def test_a_server_that_fails_meanwhile_has_the_whole_model_the_next_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = write_run(root)
    with monkeypatch.context() as patch:
        for error in (MlflowException("no answer"), OSError("413 too large")):

            def refuse(*_: object, error: Exception = error) -> None:
                raise error

            patch.setattr(MlflowClient, "log_model_artifact", refuse)
            link = ingest(root, job)
            assert link.complete  # the run itself is there
            assert not link.credited
            assert MLMODEL not in files(root, link)
            assert model_of(root, link).status == "PENDING"
            assert "not among MLflow's models" in caplog.text
    link = ingest(root, job, trusting=True)  # asked again although it is complete
    assert link.credited
    assert MLMODEL in files(root, link)
    assert model_of(root, link).status == "READY"


def test_a_model_of_an_earlier_version_stays_and_becomes_loadable(root: Path) -> None:
    job = write_run(root)
    weights = root / "runs/encoder/mae/encoder.json"
    weights.rename(weights.with_suffix(".away"))  # as if nobody had stored an encoder
    old = ingest(root, job)
    assert files(root, old) == {"weights.txt"}
    weights.with_suffix(".away").rename(weights)
    link = json.loads((job.folder / "mlflow.json").read_text())
    del link["loadable"]
    (job.folder / "mlflow.json").write_text(json.dumps(link))
    before = model_of(root, old)
    assert ingest(root, job, trusting=True).run_id == old.run_id
    assert model_of(root, old).model_id == before.model_id
    assert MLMODEL in files(root, old)
    (version,) = client(root).search_model_versions("name = 'asl-demo'")
    assert version.version in (1, "1")


def test_the_very_images_say_their_normalisation_before_params_does(root: Path) -> None:
    folder = root / "data/icons"
    prepare(Icons(image_size=32, train=2, test=2), folder, folder, name="icons")  # imagenet's
    digest = json.loads((folder / "manifest.json").read_text())["digests"]["train"]
    ingest(root, write_run(root, digest=digest[:36]))
    assert normalisation(root)["mean"] == [0.485, 0.456, 0.406]


def test_where_nothing_says_the_normalisation_the_model_is_as_it_was(root: Path) -> None:
    (root / "params.yaml").write_text(PARAMS.replace("suite: demo", "suite: other"))
    link = ingest(root, write_run(root))
    assert (link.complete, link.credited) == (True, True)
    assert files(root, link) == {"weights.txt"}


def test_a_renamed_package_is_whole_and_its_name_says_what_is_in_it() -> None:
    package = renamed_package(ENTRY, "asl_encoder")
    assert package.module(ENTRY) == f"{package.name}.exchange.image_model"
    text = b"".join(package.files.values())
    assert b"import asl_core" not in text
    assert b"from asl_core" not in text
    assert {f"{package.name}/modules/encoder.py", f"{package.name}/data/__init__.py"} <= {
        *package.files
    }
    assert len(package.files) < 60  # no loop, no method, no source comes along
    assert renamed_package(ENTRY, "asl_encoder") == package
