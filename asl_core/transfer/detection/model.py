"""Mask R-CNN on a pre-trained ViT, from torchvision's parts."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from asl_core.data.views import normalise
from asl_core.errors import InputError
from asl_core.modules.encoder import Encoder
from asl_core.protocol import Draw, Step
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.transfer import Detection
from asl_core.transfer.detection.augment import DetectionBatch
from asl_core.transfer.detection.backbone import WindowedVit
from asl_core.transfer.detection.corrections import Float32RpnHead, L1RegionProposalNetwork
from asl_core.transfer.detection.heads import Detections, build_heads
from asl_core.transfer.detection.pyramid import LEVELS, TapPyramid

ASPECT_RATIOS = (0.5, 1.0, 2.0)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)
NO_DECAY = ("pos_embed", "_bias.table")
"""Endings of the names of parameters without weight decay, beside those of `NORMS`."""


class MaskRcnn(nn.Module):
    """Plain ViT, pyramid of four taps, region proposals, heads for classes, boxes and masks.

    Args:
        encoder: Pre-trained, its positions resized to `recipe.image_size`. Its blocks are taken
            over, not copied.
        num_classes: Without background.
        recipe: Sizes of what is added to the encoder.
        mean: Of R, G, B in [0, 1].
        std: Likewise.

    Raises:
        InputError: The patch size or the grid of tokens does not allow a pyramid of factors two.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        recipe: Detection,
        mean: Rgb,
        std: Rgb,
    ) -> None:
        super().__init__()
        patch, grid = encoder.vit.patch_size, encoder.vit.grid_size
        if patch % 4 or grid % 2:
            raise InputError(
                f"detection needs a patch size divisible by 4 and an even number of patches along "
                f"a side, got patches of {patch} and {grid} of them; choose another image_size"
            )
        self.mean, self.std = mean, std
        self.backbone = WindowedVit(
            encoder, recipe.window_size, drop_windows=recipe.drop_path_per_window
        )
        self.pyramid = TapPyramid(encoder.vit.embed_dim, recipe.pyramid_channels)
        self.rpn = build_rpn(recipe)
        self.heads = build_heads(
            (patch / 4, patch / 2, patch, patch * 2),
            recipe.pyramid_channels,
            num_classes,
            box_head_dim=recipe.box_head_dim,
            roi_batch=recipe.roi_batch,
        )
        # convolutions follow their weights' layout; this one is a third faster, and exact
        self.to(memory_format=torch.channels_last)

    def forward(self, batch: DetectionBatch, draw: Draw) -> Step:
        """Return the sum of the five losses; the samplers' draws are seeded by the loop."""
        images = self.prepare(batch)
        features = self.pyramid(self.backbone(images.tensors))
        proposals, rpn_losses = self.rpn(images, features, batch.targets)
        terms = {
            "loss_objectness": rpn_losses["loss_objectness"],
            "loss_proposal_box": rpn_losses["loss_rpn_box_reg"],
            **self.heads.losses(pooled_levels(features), proposals, batch.targets),
        }
        return Step(torch.stack([*terms.values()]).sum(), terms)

    @torch.no_grad()
    def detect(self, batch: DetectionBatch) -> list[Detections]:
        """Return the objects of each image, in pixels of the network's input."""
        images = self.prepare(batch)
        features = self.pyramid(self.backbone(images.tensors))
        proposals, _ = self.rpn(images, features)
        return self.heads.detect(pooled_levels(features), proposals, batch.sizes)

    def prepare(self, batch: DetectionBatch) -> ImageList:
        """Normalise, the grey beside an image too: it is there in training and at test."""
        return ImageList(normalise(batch.images, self.mean, self.std), batch.sizes)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Spare norms, positions and bias tables weight decay; other biases have their share."""
        norms = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, NORMS)
            for parameter in module.parameters(recurse=False)
        }
        spared, others = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                free = id(parameter) in norms or name.endswith(NO_DECAY)
                (spared if free else others).append(parameter)
        return [
            {"params": spared, "weight_decay": 0.0},
            {"params": others, "weight_decay": weight_decay},
        ]


def build_rpn(recipe: Detection) -> L1RegionProposalNetwork:
    """Build the region proposal network: three aspect ratios, one size a level."""
    anchors = AnchorGenerator(
        sizes=tuple((size,) for size in recipe.anchor_sizes),
        aspect_ratios=(ASPECT_RATIOS,) * len(recipe.anchor_sizes),
    )
    return L1RegionProposalNetwork(
        anchors,
        Float32RpnHead(recipe.pyramid_channels, len(ASPECT_RATIOS), conv_depth=2),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=recipe.rpn_batch,
        positive_fraction=0.5,
        # per level before NMS: detectron2 has 2000 and 1000 for 1000 proposals
        pre_nms_top_n={"training": 2 * recipe.proposals, "testing": recipe.proposals},
        post_nms_top_n={"training": recipe.proposals, "testing": recipe.proposals},
        nms_thresh=0.7,
    )


def pooled_levels(features: dict[str, Tensor]) -> list[Tensor]:
    """Return the levels that RoIs are pooled from."""
    return [features[name] for name in LEVELS]
