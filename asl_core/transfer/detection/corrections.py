"""Where torchvision's Mask R-CNN differs from detectron2's, which the protocol is defined by.

torchvision reads RoIs half a pixel off, trains masks on soft unaligned targets, pastes them into
boxes rounded to integers, and uses a smooth L1. Each costs AP; here are the parts without that.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

PASTE_CHUNK_PIXELS = 2**24
"""Mask pixels pasted at once: 64 MiB in float32, and twice that for the sampling grid."""


class AlignedPooler(nn.Module):
    """RoIAlign over a pyramid with pixel centres at half integers; large boxes read coarse maps.

    A box of side s reads level floor(log2(s / 224 * 16 / stride_0)), clamped: FPN, Eq. 1.

    Args:
        strides: Pixels per cell of each level, ascending by factors of two.
        output_size: Cells along a side of the output, R.

    Shape:
        - features: one (B, C, H, W) per stride. boxes: per image (K, 4), x1 y1 x2 y2 in pixels.
        - Output: (sum of K, C, R, R).
    """

    def __init__(self, strides: tuple[float, ...], output_size: int) -> None:
        super().__init__()
        self.strides, self.output_size = strides, output_size

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the level of each box, int64, 0 for the finest; (K, 4) to (K,)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        finest = math.log2(16 / self.strides[0])
        levels = torch.floor(finest + torch.log2(sides / 224 + 1e-8))
        return levels.clamp(0, len(self.strides) - 1).to(torch.int64)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool every box of every image from its level."""
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(boxes)], dim=1)  # (K, 5)
        levels = self.levels(rois[:, 1:])
        size = (self.output_size, self.output_size)
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], *size)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            of_level = torch.where(levels == level)[0]
            pooled[of_level] = roi_align(
                feature, rois[of_level], size, spatial_scale=1 / stride, aligned=True
            )
        return pooled


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, size: int) -> Tensor:
    """Read each box's object mask on a grid inside the box; a cell is 1 where half is covered.

    Args:
        masks: Objects of one image.
        boxes: Proposals.
        matched: For each proposal the index of its object.
        size: Cells along a side, M.

    Shape:
        - masks: (K, H, W), bool. boxes: (R, 4). matched: (R,). Output: (R, M, M), float 0 or 1.
    """
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    coverage = roi_align(masks[:, None].to(boxes), rois, (size, size), aligned=True)[:, 0]
    return (coverage >= 0.5).to(boxes.dtype)


def paste_masks(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Draw each object's mask into the image, sampled at pixel centres, without rounding the box.

    Args:
        probabilities: Mask of each box, in [0, 1].
        boxes: Pixels of the image.
        height: Of the image.
        width: Of the image.

    Shape:
        - probabilities: (K, M, M). boxes: (K, 4). Output: (K, height, width), bool.
    """
    pasted = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    rows = torch.arange(height, device=boxes.device) + 0.5
    columns = torch.arange(width, device=boxes.device) + 0.5
    per_chunk = max(1, PASTE_CHUNK_PIXELS // (height * width))
    for start in range(0, len(boxes), per_chunk):
        chunk = slice(start, start + per_chunk)
        x1, y1, x2, y2 = boxes[chunk].unsqueeze(2).unbind(1)  # each (k, 1)
        y = (rows - y1) / (y2 - y1) * 2 - 1  # (k, height), -1 and 1 at the box's edges
        x = (columns - x1) / (x2 - x1) * 2 - 1  # (k, width)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
        sampled = F.grid_sample(probabilities[chunk, None], grid, align_corners=False)[:, 0]
        pasted[chunk] = sampled >= 0.5
    return pasted


class Float32RpnHead(RPNHead):
    """torchvision's RPN head with float32 outputs: boxes are decoded in the outputs' type."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness and box deltas per level."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class L1RegionProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN with a plain L1 on the box deltas (detectron2: smooth L1, beta 0)."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and boxes, each summed over sampled anchors / samples.

        Shape:
            - objectness: (A, 1). pred_bbox_deltas: (A, 4), A anchors of all images.
            - labels: per image, 1 object, 0 background, -1 neither. Outputs: scalars.
        """
        positive, negative = (
            torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels)
        )
        sampled = torch.cat([positive, negative])
        targets = torch.cat(regression_targets)[positive]
        box_loss = F.l1_loss(pred_bbox_deltas[positive], targets, reduction="sum") / len(sampled)
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled]
        )
        return objectness_loss, box_loss
