"""Which constants a pre-training run has normalised its images with. Reads only."""

from pathlib import Path

from asl_core.data.manifest import Manifest, read_manifest
from asl_core.errors import InputError
from asl_core.recipes.normalisation import Rgb
from pipeline.config.params import load_params
from pipeline.errors import UserError
from pipeline.project import suite_folders
from pipeline.tracking.tracked import TrackedRun


def normalisation_of(run: TrackedRun, root: Path) -> tuple[Rgb, Rgb] | None:
    """Return mean and standard deviation of the channels; None where nothing says them any more.

    Args:
        run: A pre-training.
        root: Folder that has `.dvc`.
    """
    name = run.params.get("dataset") or next((d["name"] for d in run.datasets), None)
    if name is None:
        return None
    folders = suite_folders(root).values()
    for folder in folders:  # the very images: the digest says so
        manifest = _manifest(folder / "data" / name)
        if manifest is not None and _is_read(run, manifest):
            return manifest.mean, manifest.std
    for folder in folders:
        try:
            params = load_params(folder / "params.yaml")
        except UserError:
            continue
        tokenizer = params.tokenizers.get(name)
        dataset = params.datasets.get(name if tokenizer is None else tokenizer.dataset)
        if params.suite == run.suite and dataset is not None:
            return dataset.mean, dataset.std
    return None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (InputError, OSError, KeyError, TypeError):
        return None


def _is_read(run: TrackedRun, manifest: Manifest) -> bool:
    noted = tuple(body["digest"] for body in run.datasets if body["digest"])  # their beginnings
    return any(digest.startswith(noted) for digest in manifest.digests.values())
