"""The second stage of Mask R-CNN: classes, boxes and masks of proposals."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from asl_core.transfer.detection.corrections import AlignedPooler, mask_targets

BOX_CELLS, MASK_CELLS = 7, 14
"""Side of a pooled RoI for the box head and for the mask head (whose output has twice that)."""
SCORE_THRESHOLD, NMS_THRESHOLD, DETECTIONS_PER_IMAGE = 0.05, 0.5, 100
"""Test-time settings of the COCO protocol."""


class Detections(NamedTuple):
    """Objects found in one image, by descending score.

    Attributes:
        boxes: (K, 4), x1 y1 x2 y2 in pixels of the network's input. scores: (K,).
        labels: (K,), classes from 1. mask_probabilities: (K, 28, 28), inside the box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_probabilities: Tensor


def box_loss(deltas: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the L1 of the true classes' box deltas, summed over objects, divided by proposals.

    Shape:
        - deltas: (R, 4 * (K + 1)). labels: (R,), 0 = background. targets: (R, 4). Output: scalar.
    """
    positive = torch.where(labels > 0)[0]
    chosen = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
    return F.l1_loss(chosen, targets[positive], reduction="sum") / len(labels)


def build_heads(
    strides: tuple[float, ...],
    channels: int,
    num_classes: int,
    *,
    box_head_dim: int,
    roi_batch: int,
) -> "MaskRcnnHeads":
    """Build heads of four convolutions with BatchNorm, initialised as torchvision does.

    Args:
        strides: Of the pyramid's levels.
        channels: Width of the pyramid and of the convolutions.
        num_classes: Without background.
        box_head_dim: Width of the box head's fully connected layer.
        roi_batch: Proposals per image in the losses; a quarter of them objects at most.
    """
    convolutions = [channels] * 4
    return MaskRcnnHeads(
        box_roi_pool=AlignedPooler(strides, BOX_CELLS),
        box_head=FastRCNNConvFCHead(
            (channels, BOX_CELLS, BOX_CELLS),
            convolutions,
            [box_head_dim],
            norm_layer=nn.BatchNorm2d,
        ),
        box_predictor=FastRCNNPredictor(box_head_dim, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=roi_batch,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=NMS_THRESHOLD,
        detections_per_img=DETECTIONS_PER_IMAGE,
        mask_roi_pool=AlignedPooler(strides, MASK_CELLS),
        mask_head=MaskRCNNHeads(channels, convolutions, 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
    )


class MaskRcnnHeads(RoIHeads):
    """torchvision's RoI heads with aligned binary mask targets and plain L1 box losses.

    Matching, sampling and NMS are torchvision's; `forward` is split in two because its parent's
    calls the losses as functions of its module. Outputs are float32 under autocast.
    """

    def losses(
        self, features: list[Tensor], proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return loss_class, loss_box, loss_mask.

        Args:
            features: Maps of the levels to pool from.
            proposals: Per image (P, 4).
            targets: Per image boxes (K, 4), labels (K,) from 1, masks (K, H, W).
        """
        sampled, matched, labels, deltas = self.select_training_samples(proposals, targets)
        logits, predicted = self.classify(features, sampled)
        all_labels = torch.cat(labels)
        return {
            "loss_class": F.cross_entropy(logits, all_labels),
            "loss_box": box_loss(predicted, all_labels, torch.cat(deltas)),
            "loss_mask": self.mask_loss(features, sampled, matched, labels, targets),
        }

    def classify(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K + 1) and box deltas (R, 4 * (K + 1)) of boxes."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes)))
        return logits.float(), deltas.float()

    def mask_logits(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return mask logits of boxes for every class, (R, K + 1, 28, 28)."""
        pool, head, predictor = self.mask_roi_pool, self.mask_head, self.mask_predictor
        return predictor(head(pool(features, boxes))).float()  # type: ignore[misc]

    def mask_loss(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Return the cross-entropy of the true class's mask pixels over all object proposals."""
        positive = [torch.where(of_image > 0)[0] for of_image in labels]
        boxes = [b[index] for b, index in zip(proposals, positive, strict=True)]
        if sum(len(b) for b in boxes) == 0:
            # BatchNorm needs input and synchronised processes need the same calls, so one box
            # goes through the head and counts nothing.
            boxes[0] = proposals[0][:1]
            return 0.0 * self.mask_logits(features, boxes).sum()
        logits = self.mask_logits(features, boxes)
        classes = torch.cat([of[index] for of, index in zip(labels, positive, strict=True)])
        wanted = torch.cat(
            [
                mask_targets(target["masks"], b, of[index], logits.shape[-1])
                for target, b, of, index in zip(targets, boxes, matched, positive, strict=True)
                if len(b)
            ]
        )
        rows = torch.arange(len(classes), device=classes.device)
        return F.binary_cross_entropy_with_logits(logits[rows, classes], wanted)

    def detect(
        self, features: list[Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        """Return what is found in each image; boxes are clipped to its size (height, width)."""
        logits, deltas = self.classify(features, proposals)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, sizes)
        masks = self.mask_logits(features, boxes).sigmoid()  # (sum of K, classes + 1, 28, 28)
        classes = torch.cat(labels)
        rows = torch.arange(len(classes), device=classes.device)
        per_image = masks[rows, classes].split([len(b) for b in boxes])
        return [Detections(*parts) for parts in zip(boxes, scores, labels, per_image, strict=True)]
