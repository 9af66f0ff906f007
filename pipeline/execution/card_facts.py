"""What a model card says, read from a suite: its parameters, manifests, results and journals."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asl_core.data.manifest import Manifest
from asl_core.exchange.origin import Form
from asl_core.recipes.catalogue import NOT_TRAINED
from asl_core.recipes.imported import ImportedRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.published import PUBLISHED
from asl_core.wording import counted
from pipeline.config.canonical import as_dict
from pipeline.execution.model_card import ModelCard, ResultRow
from pipeline.stages.table import EVALUATIONS, PRETRAIN
from pipeline.tables.cells import Cell, Heading, Line, ResultTable
from pipeline.tables.collect import Experiment, StageResult, Suite
from pipeline.tables.filling import result_cell
from pipeline.tables.floor import METHOD as FLOOR
from pipeline.tables.floor import exceeds_floor
from pipeline.tables.notes import notes
from pipeline.tables.paper import Paper
from pipeline.tables.provenance import origin
from pipeline.tables.render import DASH, number, ours
from pipeline.tables.replicates import Replicates
from pipeline.tables.uncertainty import error_text

LIBRARIES = {
    Form.timm: "timm",
    Form.mae: "pytorch",
    Form.huggingface: "transformers",
    Form.onnx: "onnx",
}
"""Form -> `library_name` of the card."""
LICENCES = {"CC BY-NC 4.0": "cc-by-nc-4.0", "Apache 2.0": "apache-2.0"}
"""Licence of published weights -> Hugging Face's name of it."""
OUTPUTS = {
    Form.timm: (
        "`model(images)`: [cls] after the final norm, (N, {width})",
        "`model.forward_features(images)`: [cls] and the {patches} patches, (N, {tokens}, {width})",
    ),
    Form.mae: (
        "`model.forward_features(images)`: [cls] after the final norm, (N, {width})",
        "`models_vit` is a module of the official MAE repository, which wants timm 0.3.2",
    ),
    Form.huggingface: (
        "`model(**processor(image, return_tensors='pt')).last_hidden_state`: [cls] and the "
        "{patches} patches after the final norm, (N, {tokens}, {width})",
        "there is no pooler: it would be a layer that nobody has trained",
    ),
    Form.onnx: (
        "`cls`: [cls] after the final norm, (N, {width})",
        "`mean_pooled`: mean of the patches before the final norm, normalised, (N, {width})",
        "`patch_tokens`: the {patches} patches after the final norm, (N, {patches}, {width})",
    ),
}
PROVENANCE = ("python", "torch", "device", "threads", "kernels", "gpu.model")
"""Tags of a run's journal that a card repeats."""


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What exporting has found out.

    Attributes:
        form: Whom it was written for.
        usage: Python that reads the folder.
        preprocessing: What images go through before it, a sentence.
        checked: Who has read the folder, and how far its features are from ours.
        vit: Sizes of the encoder.
        parameters: Their number.
    """

    form: Form
    usage: str
    preprocessing: str
    checked: str
    vit: Vit
    parameters: int


def gather_card(suite: Suite, paper: Paper, key: str, facts: ExportFacts) -> ModelCard:
    """Return what the card of an experiment's encoder says.

    Args:
        suite: Its results.
        paper: Names of methods and metrics.
        key: The experiment.
        facts: Of the export.
    """
    experiment = next(each for each in suite.experiments if each.key == key)
    cells = dict(_cells(suite, paper, experiment))
    result = suite.results[PRETRAIN.name, key]
    sizes = {"width": facts.vit.embed_dim, "patches": facts.vit.num_patches,
             "tokens": 1 + facts.vit.num_patches}  # fmt: skip
    return ModelCard(
        name=key,
        front=_front(experiment, facts.form),
        summary=_summary(suite, paper, experiment, facts),
        scale=suite.scale,
        usage=facts.usage,
        outputs=[line.format(**sizes) for line in OUTPUTS[facts.form]],
        preprocessing=facts.preprocessing,
        checked=facts.checked,
        data=_data(suite, experiment),
        licence_note=_licence_note(suite, experiment),
        results=[_row(title, cell) for title, cell in cells.items() if cell.status == "result"],
        notes=_notes(experiment, cells),
        missing=[title for title, cell in cells.items() if cell.status == "missing"],
        settings=[*_flat(_settings(suite, experiment))],
        origin=[*_origin(suite, result)],
    )


def _cells(suite: Suite, paper: Paper, experiment: Experiment) -> Iterator[tuple[str, Cell]]:
    """Yield title and number of each evaluation that the suite asks for of the experiment."""
    alone = Replicates(experiment.key, (experiment,))
    for stage in EVALUATIONS:
        for name, title in stage.headline.items():
            if (stage.name, experiment.key) in suite.results and name in paper.metrics:
                yield title, result_cell(suite, paper, alone, name, None)


def _row(title: str, cell: Cell) -> ResultRow:
    run = cell.counted[0]
    decimals = cell.decimals
    floor = None if cell.floor is None else cell.floor.ours
    above = exceeds_floor(cell)
    return ResultRow(
        title=title,
        data=str(getattr(run.recipe, "dataset", DASH)),
        value=ours(cell),
        error=DASH if cell.deviation is None else error_text(cell.deviation, decimals),
        images=DASH if run.test_images is None else f"{run.test_images:,}",
        floor="not measured" if floor is None else number(floor, decimals),
        above={True: "yes", False: "**no**", None: DASH}[above],
    )


def _notes(experiment: Experiment, cells: Mapping[str, Cell]) -> list[str]:
    """Return what explains the marks of the numbers, as below a table of the suite."""
    found = {title: cell for title, cell in cells.items() if cell.status == "result"}
    line = Line(
        experiment.key, (experiment.key,), (), "own", tuple(found.values()),
        untrained=experiment.recipe.method == FLOOR,
    )  # fmt: skip
    headings = tuple(Heading(cell.metric, title) for title, cell in found.items())
    table = ResultTable("", "", False, (), headings, (line,))
    return notes(table) if found else []


def _front(experiment: Experiment, form: Form) -> dict[str, Any]:
    method = experiment.recipe.method
    trained_here = method not in (*NOT_TRAINED, "supervised")
    tags = ["vit", *(["self-supervised-learning"] if trained_here else []), method, "asl-pipe"]
    licence = LICENCES.get(_licence_of_weights(experiment) or "")
    return {
        **({} if licence is None else {"license": licence}),
        "library_name": LIBRARIES[form],
        "pipeline_tag": "image-feature-extraction",
        "tags": tags,
    }


def _licence_of_weights(experiment: Experiment) -> str | None:
    published = getattr(experiment.recipe, "published", None)
    return None if published is None else PUBLISHED[published].licence


def _summary(suite: Suite, paper: Paper, experiment: Experiment, facts: ExportFacts) -> str:
    vit, recipe = facts.vit, experiment.recipe
    label = paper.method_label(recipe)
    how = {
        "untrained": "with random weights, that nothing has trained",
        "imported": "trained elsewhere and imported",
    }.get(recipe.method, f"pre-trained with {label}")
    return (
        f"Encoder of experiment `{experiment.key}` of suite `{suite.name}` ({suite.title}), {how}: "
        f"a vision transformer for images of {vit.image_size} x {vit.image_size} px in patches of "
        f"{vit.patch_size} px, width {vit.embed_dim}, {vit.depth} blocks, {vit.num_heads} heads, "
        f"{facts.parameters / 1e6:.2f} million parameters, float32. It turns an image into vectors "
        "and has no classifier."
    )


def _data(suite: Suite, experiment: Experiment) -> list[str]:
    recipe = experiment.recipe
    if recipe.method == FLOOR:
        return ["None: the encoder is not trained."]
    if isinstance(recipe, ImportedRecipe):
        return [_imported_from(recipe)]
    manifest = _manifest(suite, recipe.dataset)
    if manifest is None:
        return [f"`{recipe.dataset}`; it is not on this machine, so no more is known here."]
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.counts.items())
    rejected = sum(len(each) for each in manifest.rejected.values())
    source = manifest.source.get("source", "unknown")
    return [
        f"`{manifest.name}` (source `{source}`): images {counts}; "
        "pre-training sees the training images.",
        f"Left out as unusable: {counted(rejected, 'image')}.",
        *(f"Digest of the {split} images: `{text}`." for split, text in manifest.digests.items()),
        *manifest.notes,
    ]


def _imported_from(recipe: ImportedRecipe) -> str:
    if recipe.published is not None:
        weights = PUBLISHED[recipe.published]
        return f"As its authors describe it: {weights.page} (`{weights.file_name}`)."
    return f"Not known here: the weights come from elsewhere (sha256 `{recipe.sha256}`)."


def _manifest(suite: Suite, dataset: str) -> Manifest | None:
    return suite.datasets.get(dataset) or suite.datasets.get(suite.images_of(dataset))


def _licence_note(suite: Suite, experiment: Experiment) -> str:
    if (licence := _licence_of_weights(experiment)) is not None:
        return f"The weights: {licence}, as their authors state it."
    if experiment.recipe.method in NOT_TRAINED:
        return "Not stated: whoever publishes this encoder has to say."
    manifest = _manifest(suite, experiment.recipe.dataset)
    images = "not known on this machine" if manifest is None else manifest.licence
    return (
        "Not stated: whoever publishes this encoder has to say, within what the terms of the "
        f"images allow. The images: {images}."
    )


def _settings(suite: Suite, experiment: Experiment) -> Mapping[str, Any]:
    """Return the recipe as the run has noted it: params.yaml may say something else by now."""
    path = suite.run_folder(PRETRAIN.name, experiment.key) / "config.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = as_dict(experiment.recipe)
    return {name: value for name, value in noted.items() if name != "path"}  # of this machine


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", "none" if value is None else str(value)


def _origin(suite: Suite, result: StageResult) -> Iterator[tuple[str, str]]:
    """Yield what identifies the run that made the encoder; what is not known is left out."""
    found = origin(suite, result)
    known = {
        "run": f"`{PRETRAIN.run_name(result.key)}` of suite `{suite.name}`",
        "fingerprint": result.fingerprint and f"`{result.fingerprint}`",
        "commit": found.tags.get("git.commit") and f"`{found.tags['git.commit']}`"
        + (", with changes" if found.tags.get("git.dirty") == "true" else ""),
        "md5 of the encoder's folder in dvc.lock": result.md5 and f"`{result.md5}`",
        "state": {
            "current": "what `dvc.lock` and `params.yaml` name",
            "outdated": "**older than its parameters or inputs in `params.yaml`**",
            "unrecorded": "**not recorded in `dvc.lock`**",
            "missing": "**its metrics file is not there**",
        }[result.state],
        "seconds": f"{found.seconds:.0f}" if found.seconds else "",
    }  # fmt: skip
    yield from ((name, value) for name, value in known.items() if value)
    tags = {name: found.tags.get(name, "none") for name in PROVENANCE}
    yield from ((name, value) for name, value in tags.items() if value != "none")
