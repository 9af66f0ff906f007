"""From a sample to the views that a pre-training method wants of it.

Draws come from the global generators, which the loader seeds for each sample: views depend on
(seed, epoch, sample) alone.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageFilter
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import ColorJitter, InterpolationMode

from asl_core.data.block_masks import block_mask
from asl_core.data.erasing import erase_rectangle
from asl_core.data.region_maps import draw_regions
from asl_core.data.samples import Sample
from asl_core.data.views import ASPECT_RATIOS, Box, rand_augment_policy
from asl_core.protocol import Views
from asl_core.recipes.normalisation import NORMALISATIONS, Rgb
from asl_core.recipes.views import Colour, View, ViewPlan

_SOLARISED_FROM = 128


@dataclass(frozen=True)
class ViewsItem:
    """One sample's views, each (3, S, S) uint8, its index, and what else the plan asks for."""

    views: tuple[Tensor, ...]
    index: int
    boxes: Tensor | None = None
    masks: Tensor | None = None
    label: int | None = None
    regions: Tensor | None = None


def collate_views(items: list[ViewsItem]) -> Views:
    """Stack the samples' views, boxes, masks, labels and regions."""
    views = zip(*(item.views for item in items), strict=True)
    labels = [item.label for item in items if item.label is not None]
    return Views(
        views=tuple(torch.stack(view) for view in views),  # each (B, 3, S, S)
        indices=torch.tensor([item.index for item in items]),
        boxes=_stacked([item.boxes for item in items]),
        masks=_stacked([item.masks for item in items]),
        labels=torch.tensor(labels) if labels else None,
        regions=_stacked([item.regions for item in items]),
    )


def _stacked(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def pretrain_transform(
    plan: ViewPlan,
    mean: Rgb = NORMALISATIONS["imagenet"][0],
    std: Rgb = NORMALISATIONS["imagenet"][1],
) -> Callable[[Sample], ViewsItem]:
    """Return what makes a sample's views: crops, flips, windows, colours.

    A plan of one view is MAE's augmentation (official `main_pretrain.py`): random resized crop,
    bicubic by default, and a flip.

    Args:
        plan: The views.
        mean: Normalisation of the data; its colour fills what RandAugment uncovers.
        std: Likewise; noise is normal after normalisation.

    Raises:
        InputError: timm does not know a view's `rand_augment`.
    """
    policies = tuple(
        None if v.rand_augment is None else rand_augment_policy(v.rand_augment, v.size, mean)
        for v in plan.views
    )
    return _Pretraining(plan, policies, mean, std)


@dataclass(frozen=True)
class _Pretraining:
    plan: ViewPlan
    policies: tuple[RandAugment | None, ...]
    mean: Rgb
    std: Rgb

    def __call__(self, sample: Sample) -> ViewsItem:
        made: list[Tensor] = []
        images: list[Tensor] = []
        places: list[tuple[Box, bool]] = []
        for view, policy in zip(self.plan.views, self.policies, strict=True):
            own = view.box == "own"
            images.append(_jittered(sample.image, view) if own else images[0])
            places.append(_draw_box(sample.image, view) if own else places[0])
            image = _view(images[-1], view, *places[-1])
            if policy is not None:
                image = F.pil_to_tensor(policy(F.to_pil_image(image)))
            if view.random_erasing and random.random() < view.random_erasing:
                image = erase_rectangle(image, self.mean, self.std)
            made.append(image)
        masks = [block_mask(view.mask) for view in self.plan.views if view.mask is not None]
        return ViewsItem(
            tuple(made),
            sample.index,
            _boxes(places, sample.image.shape[-1]) if self.plan.boxes else None,
            torch.stack(masks) if masks else None,  # (M, N)
            sample.label if self.plan.labels else None,
            # drawn last: views are those of the same plan without regions
            self._regions(sample, *places[0]) if self.plan.regions else None,
        )

    def _regions(self, sample: Sample, box: Box, flipped: bool) -> Tensor:
        """Draw regions of the first view, (R, S, S), bool."""
        assert sample.regions is not None
        side = self.plan.views[0].size
        maps = F.resized_crop(sample.regions, *box, [side, side], InterpolationMode.NEAREST)
        return draw_regions(F.horizontal_flip(maps) if flipped else maps, self.plan.regions)


def _boxes(places: list[tuple[Box, bool]], width: int) -> Tensor:
    """Return (V, 6): crops as they lie in the image that is mirrored as the view is."""
    return torch.tensor(
        [
            [top, width - left - side if flipped else left, height, side, flipped, width]
            for (top, left, height, side), flipped in places
        ],
        dtype=torch.float32,
    )


def _draw_box(image: Tensor, view: View) -> tuple[Box, bool]:
    """Draw a crop and whether it is mirrored."""
    box = RandomResizedCrop.get_params(image, list(view.scale), list(ASPECT_RATIOS))
    return tuple(box), view.flip and bool(torch.rand(()) < 0.5)  # type: ignore[return-value]


def _jittered(image: Tensor, view: View) -> Tensor:
    """Change the colours of a whole image: its contrast is about the mean of all of it."""
    return image if view.jitter is None else ColorJitter(*view.jitter)(image)


def _view(image: Tensor, view: View, box: Box, flipped: bool) -> Tensor:
    """Make a view of an image, (3, S, S) uint8."""
    side = view.crop_size or view.size
    crop = _cropped(image, view, box, side)  # (3, S', S')
    if flipped:
        crop = F.horizontal_flip(crop)
    if side > view.size:
        top, left = (int(torch.randint(view.max_shift + 1, ())) for _ in range(2))
        crop = crop[:, top : top + view.size, left : left + view.size]
    return crop if view.colour is None else _coloured(crop, view.colour)


def _cropped(image: Tensor, view: View, box: Box, side: int) -> Tensor:
    """Cut a box out and resize it, (3, side, side) uint8."""
    if view.interpolation == "lanczos":  # torchvision has none for tensors
        crop = F.to_pil_image(F.crop(image, *box))
        return F.pil_to_tensor(crop.resize((side, side), Image.Resampling.LANCZOS))
    mode = InterpolationMode(view.interpolation)
    return F.resized_crop(image, *box, [side, side], mode, antialias=True)


def _coloured(image: Tensor, colour: Colour) -> Tensor:
    """Change colours; every decision is drawn, so that one changes no other."""
    jitter, grey, blur, solarise = torch.rand(4).tolist()
    if colour.jitter is not None and jitter < colour.jitter_probability:
        image = ColorJitter(*colour.jitter)(image)
    if grey < colour.grey:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if blur < colour.blur:
        radius = random.uniform(*colour.blur_sigma)
        # Pillow's, as in the originals: its radius is the deviation
        blurred = F.to_pil_image(image).filter(ImageFilter.GaussianBlur(radius))
        image = F.pil_to_tensor(blurred)
    if solarise < colour.solarise:
        image = F.solarize(image, _SOLARISED_FROM)
    return image
