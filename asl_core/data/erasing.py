"""Random erasing: part of an image becomes noise."""

import math
import random

import torch
from torch import Tensor

from asl_core.recipes.normalisation import Rgb


def erase_rectangle(image: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """Fill a random rectangle of 2 to 33 % of the image with noise, pixel by pixel.

    Source: Zhong et al., 2017, in timm's form (mode "pixel", ten tries) and order of draws. There
    the noise is standard normal after normalisation; here it is the same noise before it, which
    uint8 clips to the range that pixels have.

    Shape:
        - image: (3, H, W), uint8; the output is a new tensor.
    """
    height, width = image.shape[-2:]
    for _ in range(10):
        area = height * width * random.uniform(0.02, 1 / 3)
        aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top, left = random.randint(0, height - rows), random.randint(0, width - columns)
            noise = torch.empty(3, rows, columns).normal_() * torch.tensor(std)[:, None, None]
            pixels = (noise + torch.tensor(mean)[:, None, None]) * 255
            erased = image.clone()
            erased[:, top : top + rows, left : left + columns] = pixels.round().clamp(0, 255).byte()
            return erased
    return image
