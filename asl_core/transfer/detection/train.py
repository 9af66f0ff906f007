"""Detection transfer: train Mask R-CNN from a pre-trained encoder, and detect."""

from pathlib import Path

from asl_core.data.shards import PackedDataset
from asl_core.engine.context import RunContext
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import fit
from asl_core.errors import InputError
from asl_core.modules.batch_norm import share_batch_norms
from asl_core.modules.encoder import load_encoder
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.augment import LargeScaleJitter, collate_detection
from asl_core.transfer.detection.evaluate import CocoResults, detect_all
from asl_core.transfer.detection.model import MaskRcnn


def instance_dataset(folder: Path, split: str) -> PackedDataset:
    """Open a split that has boxes and masks.

    Raises:
        InputError: The dataset has none, or the split has no object but crowd regions.
    """
    dataset = PackedDataset(folder, split)
    if not dataset.has_instances:
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has no boxes and masks; "
            "choose one with instances for detection"
        )
    if not dataset.instance_counts.any():
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has no object in its {split} split, "
            "crowd regions apart: there is nothing to find; choose one with objects"
        )
    return dataset


def build_detector(recipe: Detection, encoder_folder: Path, train: PackedDataset) -> MaskRcnn:
    """Return the detector of a training split's classes, as training begins with it."""
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size, drop_path=recipe.drop_path)
    manifest = train.manifest
    with seeded_globals(derive_seed(recipe.seed, "init")):
        return MaskRcnn(
            encoder, len(manifest.thing_classes or ()), recipe, manifest.mean, manifest.std
        )


def train_detector(
    recipe: Detection, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> MaskRcnn:
    """Train a detector on the images that have at least one object.

    Raises:
        InputError: No encoder, no objects in one of the splits, a size that does not fit the
            patches, or a batch larger than the training split.
    """
    train = instance_dataset(dataset_folder, "train")
    instance_dataset(dataset_folder, "test")  # refused now and not after training
    model = build_detector(recipe, encoder_folder, train)
    share_batch_norms(model)
    loader = training_loader(
        train,
        LargeScaleJitter(recipe.image_size, recipe.scale_range, 0.5 if recipe.flip else 0.0),
        collate_detection,
        recipe,
        context.resources,
        train.instance_counts.nonzero()[0].tolist(),
    )
    fit(model, loader, recipe, context, param_groups=model.parameter_groups(recipe.weight_decay))
    return model


def detect_test_images(
    model: MaskRcnn, recipe: Detection, dataset_folder: Path, resources: Resources
) -> CocoResults:
    """Return the detections in the test split; all processes have all of them."""
    return detect_all(
        model,
        instance_dataset(dataset_folder, "test"),
        image_size=recipe.image_size,
        precision=recipe.precision,
        resources=resources,
    )
