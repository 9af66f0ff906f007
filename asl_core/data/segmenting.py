"""Maps of segments of an image, computed while a dataset is packed."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asl_core.recipes.datasets import Regions


def segment(image: Tensor, regions: Regions) -> NDArray[np.integer]:
    """Return an image's maps, one for each scale, in the smallest type that holds their numbers.

    R-MAE keeps numbers modulo 256, which joins segments where a map has more; here they stay
    apart. Equal images have equal maps on one machine; where edges are equally strong, NumPy's
    sorting on another kind of processor may merge them in another order.

    Source: R-MAE, `tools/preprocess/create_fh_mask_for_coco.py`.

    Shape:
        - image: (3, H, W), uint8. Output: (K, H, W), each map numbered from 0.
    """
    from skimage.segmentation import felzenszwalb  # takes a second; only packing needs it

    pixels = image.permute(1, 2, 0).numpy()
    maps = np.stack(
        [
            felzenszwalb(pixels, scale=scale, sigma=regions.sigma, min_size=scale)
            for scale in regions.scales
        ]
    )
    return maps.astype(np.min_scalar_type(maps.max()))
