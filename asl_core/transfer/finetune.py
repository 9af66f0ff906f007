"""End-to-end fine-tuning by MAE's protocol: mean of the patches, fresh norm, layer decay, mixup."""

from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn

from asl_core import distributed
from asl_core.data.loaders import evaluation_batches
from asl_core.data.shards import PackedDataset
from asl_core.data.views import (
    LabelledBatch,
    collate_labelled,
    evaluation_transform,
    finetune_transform,
    normalise,
)
from asl_core.engine.context import RunContext
from asl_core.engine.devices import autocast, move, pick_device
from asl_core.engine.forward_batch import refuse_torn_groups
from asl_core.engine.loading import training_loader
from asl_core.engine.loop import fit
from asl_core.engine.optimizer import layer_decay_groups
from asl_core.modules.encoder import Encoder, LayerNorm, encoder_layer_matcher, load_encoder
from asl_core.protocol import Draw, Step
from asl_core.randomness import derive_seed, seeded_globals
from asl_core.recipes.mixing import mixes
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.optimisation import Resources
from asl_core.recipes.transfer import FineTune
from asl_core.transfer.classification import Predictions, gather_predictions
from asl_core.transfer.features import labelled_dataset, mean_of_patches

NO_DECAY = ("encoder.cls_token", "encoder.reg_token", "encoder.pos_embed")
"""Without weight decay beside 1-D tensors, as timm's ViT, and so MAE's fine-tuning, has it."""


class Classifier(nn.Module):
    """Encoder without its final norm, mean of the patch tokens, fresh norm, Linear.

    Source: official MAE `models_vit.py` (global pooling) and `main_finetune.py`.

    Shape:
        - images: (B, 3, H, W), normalised. `logits`: (B, K).
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, recipe: FineTune, mean: Rgb, std: Rgb
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.encoder = encoder.requires_grad_(True)
        self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.fc_norm = LayerNorm(encoder.vit.embed_dim)
        self.head = nn.Linear(encoder.vit.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = recipe.label_smoothing
        self.mixup = None
        if mixes(recipe):
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )

    def logits(self, images: Tensor) -> Tensor:
        """Classify normalised images."""
        return self.head(self.fc_norm(mean_of_patches(self.encoder(images))))

    def forward(self, batch: LabelledBatch, draw: Draw) -> Step:
        """Mix images and labels (a function of the step, by the loop's seeding), compare."""
        images = normalise(batch.images, self.mean, self.std)
        targets = batch.labels
        if self.mixup is not None:
            # the mixed labels are smoothed already
            images, targets = self.mixup(images, targets)
            return Step(F.cross_entropy(self.logits(images).float(), targets))
        logits = self.logits(images).float()
        return Step(F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Tell timm's layer decay which parameter belongs to which layer."""
        return encoder_layer_matcher(r"encoder\.")


def build_classifier(recipe: FineTune, encoder_folder: Path, train: PackedDataset) -> Classifier:
    """Return the classifier of a training split's classes, as training begins with it."""
    encoder = load_encoder(encoder_folder, image_size=recipe.image_size, drop_path=recipe.drop_path)
    mean, std = train.manifest.mean, train.manifest.std
    with seeded_globals(derive_seed(recipe.seed, "init")):
        return Classifier(encoder, train.num_classes, recipe, mean, std)


def finetune(
    recipe: FineTune, encoder_folder: Path, dataset_folder: Path, context: RunContext
) -> tuple[Classifier, Predictions]:
    """Fine-tune a classifier and predict the test split.

    Raises:
        InputError: No encoder, no labels, a batch larger than the training split, or an odd
            number of images to be mixed in pairs.
    """
    micro_batch_size = context.resources.micro_batch_size
    refuse_torn_groups("fine-tuning", recipe.batch_size, micro_batch_size, recipe.forward_multiple)
    train, test = (labelled_dataset(dataset_folder, split) for split in ("train", "test"))
    model = build_classifier(recipe, encoder_folder, train)
    loader = training_loader(
        train,
        finetune_transform(
            model.encoder.vit.image_size,
            recipe.rand_augment,
            recipe.random_erasing,
            mean=train.manifest.mean,
            std=train.manifest.std,
            scale_min=recipe.crop_scale_min,
            flip=recipe.flip,
        ),
        collate_labelled,
        recipe,
        context.resources,
    )
    groups = layer_decay_groups(model, recipe, NO_DECAY)
    fit(model, loader, recipe, context, param_groups=groups)
    return model, classify(model, test, recipe.precision, context.resources)


@torch.no_grad()
def classify(
    model: Classifier,
    dataset: PackedDataset,
    precision: str,
    resources: Resources,
    batch_size: int = 256,
) -> Predictions:
    """Predict every sample of a split once."""
    device = pick_device(resources)
    model.to(device).eval()
    none = torch.empty(0, dtype=torch.int64)
    # with more processes than samples the share of some is empty
    parts = [(none, none, torch.empty(0, model.head.out_features))]
    batches = evaluation_batches(
        dataset,
        evaluation_transform(model.encoder.vit.image_size),
        collate_labelled,
        batch_size=batch_size,
        num_workers=resources.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    for batch in batches:
        with autocast(device, precision):
            logits = model.logits(normalise(move(batch.images, device), model.mean, model.std))
        parts.append((batch.indices, batch.labels, logits.float().cpu()))
    indices, labels, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return gather_predictions(indices, labels, logits)
