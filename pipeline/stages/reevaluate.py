"""A stage's numbers once more, from the weights that it stored: nothing is trained."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from asl_core.analysis.contrast import measure_contrast
from asl_core.analysis.tokens import analyse_tokens
from asl_core.data.shards import PackedDataset
from asl_core.errors import InputError
from asl_core.held_out import held_out_files
from asl_core.modules.encoder import check_same_architecture, load_encoder
from asl_core.pretrain import build_method
from asl_core.protocol import ModuleLike
from asl_core.recipes.imported import ImportedRecipe
from asl_core.transfer.detection.train import build_detector, evaluate_detector, instance_dataset
from asl_core.transfer.features import labelled_dataset
from asl_core.transfer.finetune import build_classifier, classify
from asl_core.transfer.linprobe import ProbeHeads, evaluate_probe
from asl_core.transfer.segmentation.evaluate import score
from asl_core.transfer.segmentation.train import build_segmenter, semantic_dataset
from pipeline.stages.linprobe import probe_metrics
from pipeline.stages.pretrain import cost_metrics, own_metrics
from pipeline.stages.request import StoredRun


def reevaluate(run: StoredRun) -> dict[str, float]:
    """Return the metrics that can be computed again, by the names of the stage's metrics file.

    For `pretrain` these are what a step costs, and how well a method classifies that is trained to;
    its losses were measured on the way.

    Raises:
        InputError: Weights are missing, truncated, or of another architecture.
    """
    return _EVALUATIONS[run.stage](run)


def _pretrain(run: StoredRun) -> dict[str, float]:
    if isinstance(run.recipe, ImportedRecipe):
        return {}
    costs = cost_metrics(run.recipe, run.dataset)
    if not run.recipe.view_plan().labels:
        return costs
    method = build_method(run.recipe, PackedDataset(run.dataset, "train"))
    _load(method, run.folder / "method.safetensors")
    return costs | own_metrics(method, run.recipe, run.dataset, run.resources)


def _linprobe(run: StoredRun) -> dict[str, float]:
    encoder = load_encoder(_encoder(run), image_size=run.recipe.image_size)
    num_classes = labelled_dataset(run.dataset, "train").num_classes
    heads = ProbeHeads(run.recipe, encoder.vit.embed_dim, num_classes)
    _load(heads, run.folder / "probe.safetensors")
    by_pooling = evaluate_probe(heads, encoder, run.recipe, run.dataset, run.resources)
    return probe_metrics(run.recipe, by_pooling)


def _finetune(run: StoredRun) -> dict[str, float]:
    model = build_classifier(run.recipe, _encoder(run), labelled_dataset(run.dataset, "train"))
    _load(model, run.folder / "classifier.safetensors")
    test = labelled_dataset(run.dataset, "test")
    predictions = classify(model, test, run.recipe.precision, run.resources)
    return {f"ft_acc{k}": predictions.accuracy(k) for k in (1, 5)}


def _detect(run: StoredRun) -> dict[str, float]:
    model = build_detector(run.recipe, _encoder(run), instance_dataset(run.dataset, "train"))
    _load(model, run.folder / "detector.safetensors")
    return evaluate_detector(model, run.recipe, run.dataset, run.resources)[0]


def _segment(run: StoredRun) -> dict[str, float]:
    model = build_segmenter(run.recipe, _encoder(run), semantic_dataset(run.dataset, "train"))
    _load(model, run.folder / "segmenter.safetensors")
    test = semantic_dataset(run.dataset, "test")
    return score(model, test, run.recipe, run.resources).metrics()


def _analyze(run: StoredRun) -> dict[str, float]:
    encoder = _encoder(run)
    dataset = PackedDataset(run.dataset, "test")
    metrics = analyse_tokens(load_encoder(encoder), dataset, run.recipe, run.resources).metrics
    if files := held_out_files(encoder):
        metrics = metrics | measure_contrast(files, run.recipe, run.resources)["ori"].metrics
    return metrics


_EVALUATIONS: dict[str, Callable[[StoredRun], dict[str, float]]] = {
    "pretrain": _pretrain,
    "linprobe": _linprobe,
    "finetune": _finetune,
    "detect": _detect,
    "segment": _segment,
    "analyze": _analyze,
}


def _encoder(run: StoredRun) -> Path:
    assert run.encoder is not None  # pretrain alone has none
    return run.encoder


def _load(model: ModuleLike, path: Path) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; restore it or run its stage") from None
    check_same_architecture(model, state, path)
    model.load_state_dict(state)
