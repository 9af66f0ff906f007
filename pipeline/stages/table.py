"""The one table of stages: what each reads, what it leaves, how its number is shown.

Everything that asks "which stages are there" asks here. A stage's module, `pipeline.stages.<name>`,
has `run`, and `reevaluate` where its numbers can be computed again from what it stored; it is
imported by name, for it loads torch and this table does not.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asl_core.recipes.analysis import TokenAnalysis
from asl_core.recipes.attentive import AttentiveProbe
from asl_core.recipes.embedding import Embedding
from asl_core.recipes.fewshot import FewShot
from asl_core.recipes.knn import NearestNeighbours
from asl_core.recipes.transfer import (
    Detection,
    FineTune,
    LinearProbe,
    Segmentation,
)
from pipeline.stages.request import DETAILS, START

DATASET, ENCODER, HELD_OUT = "data/{dataset}", "runs/encoder/{key}", "runs/held_out/{key}"
CODE_STAGE = "code"
"""Writes what other stages depend on and no stage makes: digests of their code, and of the files
that datasets are packed from. It is no run of a suite."""
CODE_FOLDER = "code"
SOURCES_FOLDER = "sources"
"""What is known of the files that datasets are packed from; written by the stage `code` too."""
STARTED = "pretrain-from"
"""What dvc.yaml calls the runs of `pretrain` that begin with weights of another experiment: DVC's
templates know no dependency that only some runs have, so these have a template of their own.
Everywhere else they are runs of `pretrain`."""
TEST_IMAGES = "test_images"
"""What a metrics file calls the number of images that a run was measured on."""
REPORT_KEY = "suite"
"""The report has one run in a suite; this is its key."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the DAG.

    Attributes:
        name: As dvc.yaml and `asl-pipe run` have it; also the name of its module.
        section: Of params.yaml, whose entries are its runs; None: one run in a suite.
        recipe: Class of an entry, where all entries have one.
        evaluates: Whether its entries are named after experiments and measure their encoders.
        inputs: Role -> path in the suite's folder; what another stage makes.
        outputs: Role -> path. What other stages read and what only people read are apart.
        has_metrics: Whether a metrics file lies beside its details.
        variant: Field of an entry that chooses among code loaded by name: its code is its own.
        input_side: Field with the side of the pictures that the encoder gets, in pixels.
        whole_patches: That side must be a multiple of so many patches.
        tested_on: The test images that its numbers come from: all, or those somebody annotated.
        trains: Whether it takes optimiser steps, of which its journal bears witness.
        layer_decay: Whether rates may decay by layer.
        wants: What images must have for it; None: nothing.
        reads_features: Whether it reads frozen features, which evaluations share.
        captions: Picture under `pictures/` -> what the report says of it.
        headline: The metrics by which experiments are compared -> title of a chart.
    """

    name: str
    section: str | None
    recipe: type[Any] | None = None
    evaluates: bool = False
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    has_metrics: bool = True
    variant: str | None = None
    input_side: str | None = None
    whole_patches: int = 1
    tested_on: Literal["all", "annotated"] = "all"
    trains: bool = False
    layer_decay: bool = False
    wants: Literal["labels", "objects", "semantic maps"] | None = None
    reads_features: bool = False
    captions: Mapping[str, str] = field(default_factory=dict)
    headline: Mapping[str, str] = field(default_factory=dict)

    def run_name(self, key: str) -> str:
        """Return the name that dvc.yaml has for a run: `pretrain@asl`, or `report`."""
        return self.name if self.section is None else f"{self.name}@{key}"

    def input_paths(self, key: str, recipe: object) -> dict[str, str]:
        """Return the paths of a run's inputs in the suite's folder, by role."""
        dataset = getattr(recipe, "dataset", "")
        paths = {role: path.format(key=key, dataset=dataset) for role, path in self.inputs.items()}
        start = start_path(getattr(recipe, "initialise", None))
        return paths if start is None else {**paths, START: start}

    def output_paths(self, key: str) -> dict[str, str]:
        """Return the paths of a run's outputs in the suite's folder, by role."""
        return {role: path.format(key=key) for role, path in self.outputs.items()}

    def details(self, suite: Path, key: str) -> Path:
        """Return the folder of what people look at."""
        return suite / self.outputs[DETAILS].format(key=key)

    def metrics_path(self, key: str) -> str | None:
        """Return the path of a run's metrics file in the suite's folder, where it has one."""
        return f"{self.outputs[DETAILS].format(key=key)}.json" if self.has_metrics else None

    def code_path(self, recipe: object) -> str:
        """Return the path of the text file that stands for the code of a run."""
        variant = "" if self.variant is None else f"-{getattr(recipe, self.variant)}"
        return f"{CODE_FOLDER}/{self.name}{variant}.txt"

    @property
    def module(self) -> str:
        return f"pipeline.stages.{self.name}"


def _evaluation(name: str, recipe: type[Any], **more: Any) -> Stage:
    """Return the row of a stage that measures encoders."""
    more.setdefault("inputs", {"dataset": DATASET, "encoder": ENCODER})
    more.setdefault("outputs", {DETAILS: f"runs/{name}/{{key}}"})
    return Stage(name=name, section=name, recipe=recipe, evaluates=True, **more)


PREPARE = Stage(
    name="prepare", section="datasets", has_metrics=False, variant="source",
    inputs={"source": f"{SOURCES_FOLDER}/{{key}}.txt"},
    outputs={"dataset": "data/{key}", DETAILS: "runs/prepare/{key}"},
)  # fmt: skip
TOKENIZE = Stage(
    name="tokenize", section="tokenizers",
    inputs={"dataset": DATASET},
    outputs={"dataset": "data/{key}", DETAILS: "runs/tokenize/{key}"},
)  # fmt: skip
PRETRAIN = Stage(
    name="pretrain", section="experiments", variant="method", trains=True,
    inputs={"dataset": DATASET},
    outputs={"encoder": ENCODER, "held_out": HELD_OUT, DETAILS: "runs/pretrain/{key}"},
    captions={"reconstructions": "Reconstructions of test images under a fixed mask."},
)  # fmt: skip
LINPROBE = _evaluation(
    "linprobe", LinearProbe, wants="labels", trains=True, input_side="image_size",
    reads_features=True,
    captions={
        "confusion": "Confusion matrix of the linear probe on the test images.",
        "worst_mistakes": "Test images that the linear probe got most wrong.",
    },
    headline={"lp_acc1": "Linear probe, top-1 [%]"},
)  # fmt: skip
KNN = _evaluation(
    "knn", NearestNeighbours, wants="labels", input_side="image_size", reads_features=True,
    captions={
        "confusion": "Confusion matrix of the nearest neighbours' vote on the test images.",
        "worst_mistakes": "Test images that the nearest neighbours got most wrong.",
    },
    headline={"knn_acc1": "k-NN, top-1 [%]"},
)  # fmt: skip
FEWSHOT = _evaluation(
    "fewshot", FewShot, wants="labels", input_side="image_size", reads_features=True,
    captions={"few_shot": "Accuracy on test images by the number of labelled images."},
    headline={"fewshot_acc1_1pct": "1 % of the labels, top-1 [%]"},
)  # fmt: skip
ATTENTIVE = _evaluation(
    "attentive", AttentiveProbe, wants="labels", trains=True, input_side="image_size",
    captions={
        "confusion": "Confusion matrix of the attentive probe on the test images.",
        "worst_mistakes": "Test images that the attentive probe got most wrong.",
    },
    headline={"attentive_acc1": "Attentive probe, top-1 [%]"},
)  # fmt: skip
FINETUNE = _evaluation(
    "finetune", FineTune, wants="labels", trains=True, input_side="image_size", layer_decay=True,
    captions={
        "confusion": "Confusion matrix after fine-tuning on the test images.",
        "worst_mistakes": "Test images that were got most wrong after fine-tuning.",
    },
    headline={"ft_acc1": "Fine-tuning, top-1 [%]"},
)  # fmt: skip
DETECT = _evaluation(
    "detect", Detection, wants="objects", trains=True, input_side="image_size", whole_patches=2,
    tested_on="annotated",
    captions={
        "detections": "Detections on test images.",
        "precision_recall": "Precision by recall of boxes and masks, mean over classes.",
    },
    headline={"ap_box": "Box AP", "ap_mask": "Mask AP"},
)  # fmt: skip
SEGMENT = _evaluation(
    "segment", Segmentation, wants="semantic maps", trains=True, input_side="crop_size",
    layer_decay=True, tested_on="annotated",
    captions={"segmentations": "Semantic segmentation of test images."},
    headline={"miou": "mIoU"},
)  # fmt: skip
ANALYZE = _evaluation(
    "analyze", TokenAnalysis,
    inputs={"dataset": DATASET, "encoder": ENCODER, "held_out": HELD_OUT},
    captions={
        "token_similarity": "Cosine of each patch token of test images to that of the central one.",
        "similarity_per_layer": "Mean cosine among an image's patch tokens after each block.",
        "contrastive_view": "Squared error of removed patches against the loss of Eq. 8.",
    },
)  # fmt: skip
EMBED = _evaluation(
    "embed", Embedding, input_side="image_size",
    headline={"embed_effective_rank": "Effective rank of the embeddings"},
)  # fmt: skip
REPORT = Stage(name="report", section=None, has_metrics=False, outputs={DETAILS: "reports"})

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        PREPARE,
        TOKENIZE,
        PRETRAIN,
        LINPROBE,
        KNN,
        FEWSHOT,
        ATTENTIVE,
        FINETUNE,
        DETECT,
        SEGMENT,
        ANALYZE,
        EMBED,
        REPORT,
    )
}  # fmt: skip
"""By name, each after those that it needs."""

EVALUATIONS = tuple(stage for stage in STAGES.values() if stage.evaluates)
DATASETS = (PREPARE, TOKENIZE)
"""Stages that make datasets: of other files, of another dataset's images."""
MEASURED = (PRETRAIN, *EVALUATIONS)
"""Stages with a metrics file for each experiment."""
RUN_BY_JOBS = tuple(stage for stage in STAGES.values() if stage.section is not None)
"""The report is made where dvc.lock is: it reads all of them."""


def start_path(initialise: object) -> str | None:
    """Return where an experiment's run leaves what another one begins with; None for a file."""
    experiment = getattr(initialise, "experiment", None)
    if experiment is None:
        return None
    role = DETAILS if getattr(initialise, "whole", False) else "encoder"
    return PRETRAIN.outputs[role].format(key=experiment)


def name_in_dvc(name: str, known: Container[str]) -> str:
    """Return what dvc.yaml or dvc.lock calls a run, given the names that the file has."""
    stage, _, key = name.partition("@")
    started = f"{STARTED}@{key}"
    return started if stage == PRETRAIN.name and started in known else name


def run_in_dvc(name: str) -> str:
    """Return the run that dvc.yaml calls so: `pretrain-from@asl` -> `pretrain@asl`."""
    stage, joint, key = name.partition("@")
    return f"{PRETRAIN.name}{joint}{key}" if stage == STARTED else name


def stage_of(name: str) -> Stage:
    """Return the stage of a run's name: `pretrain@asl` -> pretrain."""
    return STAGES[name.partition("@")[0]]


def key_of(name: str) -> str:
    """Return the key of a run's name: `pretrain@asl` -> asl."""
    return name.partition("@")[2] or REPORT_KEY


def encoder_beside(details: Path) -> Path | None:
    """Return the folder of the encoder that a run made, given that of its details.

    In a run's scratch they lie side by side under their roles; in a suite where the table says.
    """
    stage = STAGES.get(details.parent.name)
    if stage is None:
        return details.with_name("encoder") if details.name == DETAILS else None
    path = stage.output_paths(details.name).get("encoder")
    return None if path is None else details.parents[2] / path
