"""Segmentation transfer: train UPerNet from a pre-trained encoder."""

from pathlib import Path

from asl_core.data.samples import IGNORED_LABEL
from asl_core.data.shards import PackedDataset
from asl_core.distributed import world_size
from asl_core.engine.context import RunContext
from asl_core.engine.forward_batch import refuse_single_images
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import fit
from asl_core.engine.optimizer import layer_decay_groups
from asl_core.errors import InputError
from asl_core.modules.batch_norm import share_batch_norms
from asl_core.modules.encoder import load_encoder
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.augment import TrainingCrop, collate_segmentation
from asl_core.transfer.segmentation.model import Segmenter


def semantic_dataset(folder: Path, split: str) -> PackedDataset:
    """Open a split that has semantic maps.

    Raises:
        InputError: The dataset has none, or no pixel of the split has a class.
    """
    dataset = PackedDataset(folder, split)
    if not dataset.has_semantic or not dataset.annotated_indices:
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has no semantic maps in its {split} "
            "split; choose one with maps for segmentation"
        )
    maps = (dataset.read_semantic(index) for index in dataset.annotated_indices)
    if not any(each is not None and bool((each != IGNORED_LABEL).any()) for each in maps):
        raise InputError(
            f"dataset {dataset.manifest.name} in {folder} has no labelled pixel in its {split} "
            "split: there is nothing to segment; choose one whose maps have classes"
        )
    return dataset


def build_segmenter(recipe: Segmentation, encoder_folder: Path, train: PackedDataset) -> Segmenter:
    """Return the segmenter of a training split's classes, as training begins with it."""
    encoder = load_encoder(encoder_folder, image_size=recipe.crop_size, drop_path=recipe.drop_path)
    manifest = train.manifest
    with seeded_globals(derive_seed(recipe.seed, "init")):
        return Segmenter(
            encoder, len(manifest.semantic_classes or ()), recipe, manifest.mean, manifest.std
        )


def train_segmenter(
    recipe: Segmentation, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> Segmenter:
    """Train a segmenter on the annotated images.

    Positions, [cls] and bias tables have weight decay, as in the public reproductions, which name
    them as exempt but by names that do not match.

    Raises:
        InputError: No encoder, no labelled pixel in one of the splits, sizes that do not fit each
            other, or a batch larger than the training split.
    """
    train = semantic_dataset(dataset_folder, "train")
    semantic_dataset(dataset_folder, "test")  # refused now and not after training
    across_processes = world_size() > 1
    check_forward_passes(recipe, context.resources.micro_batch_size, across_processes)
    model = build_segmenter(recipe, encoder_folder, train)
    share_batch_norms(model)
    loader = training_loader(
        train,
        TrainingCrop(
            recipe.crop_size,
            recipe.scale_range,
            recipe.category_share_max,
            flip=0.5 if recipe.flip else 0.0,
        ),
        collate_segmentation,
        recipe,
        context.resources,
        train.annotated_indices,
    )
    fit(model, loader, recipe, context, param_groups=layer_decay_groups(model, recipe))
    return model


def check_forward_passes(
    recipe: Segmentation, micro_batch_size: int | None, across_processes: bool
) -> None:
    """Refuse what would leave BatchNorm with a single value.

    Pyramid pooling ends in a 1 x 1 map: a forward pass of one image has no variance there.

    Raises:
        InputError: A forward pass would see one image alone.
    """
    if not across_processes:
        refuse_single_images("segmentation", recipe.batch_size, micro_batch_size)
