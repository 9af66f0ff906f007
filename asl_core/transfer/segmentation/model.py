"""UPerNet on a pre-trained ViT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asl_core.data.samples import IGNORED_LABEL
from asl_core.data.views import normalise
from asl_core.modules.encoder import Encoder
from asl_core.protocol import Draw, Step
from asl_core.recipes.normalisation import Rgb
from asl_core.recipes.transfer import Segmentation
from asl_core.transfer.segmentation.augment import SegmentationBatch
from asl_core.transfer.segmentation.backbone import NUM_SCALES, ScalePyramid, SegmentationVit
from asl_core.transfer.segmentation.upernet import FcnHead, UPerHead, resize_to

AUXILIARY_TAP = 2
"""Map that the auxiliary head reads: that of scale 1."""


class Segmenter(nn.Module):
    """Plain ViT, four taps at four scales, UPerNet's decoder and the auxiliary head.

    Args:
        encoder: Pre-trained, its positions resized to `recipe.crop_size`. Its blocks are taken
            over, not copied.
        num_classes: K.
        recipe: Sizes and weights of what is added to the encoder.
        mean: Of R, G, B in [0, 1].
        std: Likewise.

    Shape:
        - images: (B, 3, S, S), normalised, S = crop_size. `logits`: (B, K, h, w), h = 4 S / patch.

    Raises:
        InputError: The crop has but one patch along a side.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, recipe: Segmentation, mean: Rgb, std: Rgb
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.num_classes = num_classes
        self.auxiliary_weight = recipe.auxiliary_weight
        width = encoder.vit.embed_dim
        self.pyramid = ScalePyramid(width, encoder.vit.grid_size)
        self.backbone = SegmentationVit(encoder)
        self.head = UPerHead(
            [width] * NUM_SCALES,
            recipe.channels,
            num_classes,
            recipe.dropout,
            recipe.classifier_std,
        )
        self.auxiliary = FcnHead(
            width, recipe.auxiliary_channels, num_classes, recipe.dropout, recipe.classifier_std
        )

    def logits(self, images: Tensor) -> Tensor:
        """Score the pixels of normalised images, at the resolution of the finest map."""
        return self.head(self.pyramid(self.backbone(images)))

    def forward(self, batch: SegmentationBatch, draw: Draw) -> Step:
        """Compare both heads' scores with the maps."""
        images = blank_padding(normalise(batch.images, self.mean, self.std), batch.sizes)
        maps = self.pyramid(self.backbone(images))
        main = pixel_cross_entropy(self.head(maps), batch.semantic)
        auxiliary = pixel_cross_entropy(self.auxiliary(maps[AUXILIARY_TAP]), batch.semantic)
        loss = main + self.auxiliary_weight * auxiliary
        return Step(loss, {"loss_main": main, "loss_auxiliary": auxiliary})

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Tell timm's layer decay which parameter belongs to which layer.

        A block's position bias belongs to the block; pyramid and heads come last.
        """
        return {
            "stem": r"^backbone\.(?:cls_token|reg_token|pos_embed|patch_embed)",
            "blocks": r"^backbone\.(?:blocks|position_biases)\.(\d+)",
        }


def blank_padding(images: Tensor, sizes: Tensor) -> Tensor:
    """Set to 0 what lies outside of each image's size.

    Shape:
        - images: (B, 3, H, W). sizes: (B, 2), heights and widths.
    """
    rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]  # (B, H)
    columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]  # (B, W)
    return images * (rows[:, None, :, None] & columns[:, None, None, :])


def pixel_cross_entropy(logits: Tensor, semantic: Tensor) -> Tensor:
    """Return the cross-entropy of the resized scores, its mean over all pixels.

    Ignored pixels have loss 0 and count in the denominator, mmsegmentation's default: so the mean
    over a batch is the mean over its parts, and a batch without a class gives 0.

    Shape:
        - logits: (B, K, h, w). semantic: (B, H, W), uint8. Output: scalar, float32.
    """
    logits = resize_to(logits.float(), semantic.shape[-2:])
    total = F.cross_entropy(logits, semantic.long(), ignore_index=IGNORED_LABEL, reduction="sum")
    return total / semantic.numel()
