"""What a dataset hands out: one decoded image with what is known of it."""

from dataclasses import dataclass

from torch import Tensor

IGNORED_LABEL = 255
"""Value of a semantic map where no class is given; counted neither in losses nor in scores."""


@dataclass(frozen=True)
class Instances:
    """The objects of one image, in its pixels.

    Attributes:
        boxes: x1, y1, x2, y2 with x2, y2 exclusive; (K, 4), float32.
        labels: Contiguous classes from 0; (K,), int64.
        masks: Visible pixels; (K, H, W), bool.
        crowd: True for COCO's regions of many objects, neither target nor error; (K,), bool.
        polygons: Those that each mask was made from, (2P,) float32, x and y by turns; an object
            without any has its mask alone. None where no object of the data set has any.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    crowd: Tensor
    polygons: tuple[tuple[Tensor, ...], ...] | None = None


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        index: Position in its split: the sample's identity for random draws.
        image_id: Number of the image in its source; COCO's id for COCO.
        image: RGB, (3, H, W), uint8.
        label: Class of the whole image, from 0.
        instances: Objects; None where nobody annotated the image, empty where nothing is there.
        semantic: Class of each pixel, 255 where it is ignored; (H, W), uint8.
        regions: Number of each pixel's segment, one map for each scale of the dataset's `regions`;
            (K, H, W), integers; None where nobody asked for them.
    """

    index: int
    image_id: int
    image: Tensor
    label: int | None = None
    instances: Instances | None = None
    semantic: Tensor | None = None
    regions: Tensor | None = None
