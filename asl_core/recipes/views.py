"""What a method wants to see of each image, declared by its recipe and made by the data side.

A plan is a list of views. One kind of `View` says all that the methods need: a crop of its own or
that of the first view, a window shifted inside a larger crop, colours, a mask of blocks.
"""

from dataclasses import dataclass
from typing import Literal

from asl_core.errors import InputError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Changes of colour, in the order in which they are made.

    Attributes:
        jitter: Strengths of brightness, contrast, saturation and hue; absent: none.
        jitter_probability: How often there is one.
        grey: How often colours are taken away.
        blur: How often there is a Gaussian blur.
        blur_sigma: Its deviation in pixels, uniform.
        solarise: How often values of 128 and more are inverted.
    """

    jitter: tuple[float, float, float, float] | None = None
    jitter_probability: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: Range = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be 0 < low <= high, got {self.blur_sigma}")


BYOL_1 = Colour(jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=1.0)
BYOL_2 = Colour(jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.1, solarise=0.2)
"""Of the first and the second view of an image in BYOL, MoCo v3, SIM and DINO."""


@dataclass(frozen=True, kw_only=True)
class BlockMask:
    """Patches removed in rectangles, as BEiT does.

    Attributes:
        grid_size: Patches along one side of the view.
        ratios: Ranges of the share that is removed: one of them is taken, a share drawn from it.
        smallest: Patches of the smallest rectangle.
        exact: Topped up patch by patch to the share, rounded to whole patches.
        patience: How often in a row no rectangle is found, in ten tries each, before there is
            taken to be none.
    """

    grid_size: int
    ratios: tuple[Range, ...]
    smallest: int
    exact: bool
    patience: int = 1

    def __post_init__(self) -> None:
        for low, high in self.ratios:
            if not 0 <= low <= high < 1:
                raise ValueError(f"a mask's ratio must be in 0 <= low <= high < 1, got {low, high}")
        if self.smallest < 1 or self.patience < 1 or not self.ratios:
            raise ValueError(
                "a mask needs a range of ratios, blocks of at least one patch and a patience of 1"
            )


@dataclass(frozen=True, kw_only=True)
class View:
    """One square picture of an image, `size` pixels a side.

    Attributes:
        size: Side in pixels.
        scale: Area of the crop as a share of the image's, uniform.
        flip: Mirror every other one.
        box: Its own crop and flip, or those of the first view.
        crop_size: Side to which the crop is resized, of which the view is a window; absent: `size`.
        interpolation: How it is resized, with antialiasing; lanczos is Pillow's.
        jitter: Strengths of brightness, contrast, saturation and hue by which the whole image is
            changed before it is cropped, always; absent: none. Views with the first one's box are
            of the image that the first one has changed.
        max_shift: The window begins at 0 to so many pixels on both axes, uniform.
        colour: What happens to colours; absent: nothing.
        rand_augment: timm's name of a policy of RandAugment; absent: none.
        random_erasing: How often a rectangle is filled with noise.
        mask: Which patches are removed; absent: none, or the method's own matter.
    """

    size: int
    scale: Range = (0.2, 1.0)
    flip: bool = True
    box: Literal["own", "first"] = "own"
    crop_size: int | None = None
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    jitter: tuple[float, float, float, float] | None = None
    max_shift: int = 0
    colour: Colour | None = None
    rand_augment: str | None = None
    random_erasing: float = 0.0
    mask: BlockMask | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {self.scale}")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing must be in [0, 1], got {self.random_erasing}")
        if self.jitter is not None and self.box == "first":
            raise ValueError("jitter is of a view with a box of its own; give it to the first view")
        room = (self.crop_size or self.size) - self.size
        if room < 0:
            raise ValueError(f"crop_size {self.crop_size} is smaller than size {self.size}")
        if not 0 <= self.max_shift <= room:
            raise ValueError(f"max_shift must be in 0..{room}, got {self.max_shift}")


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """All views of an image, in order.

    Attributes:
        views: At least one; the first has a box of its own.
        boxes: Whether the method wants to know where the views lie.
        labels: Whether it wants the images' classes.
        regions: How many regions of the first view it wants: segments of the dataset's maps.
    """

    views: tuple[View, ...]
    boxes: bool = False
    labels: bool = False
    regions: int = 0

    def __post_init__(self) -> None:
        if not self.views or self.views[0].box == "first":
            raise ValueError("a plan has at least one view, and the first has a box of its own")
        if self.regions < 0:
            raise ValueError(f"regions must be at least 0, got {self.regions}")
        first = self.views[0]
        if self.regions and (first.crop_size is not None or first.rand_augment is not None):
            raise ValueError("regions follow a crop and a flip, no window and no rand_augment")

    def require_crop_and_flip(self, method: str) -> None:
        """Refuse what is not one view of a crop and a flip: all that is made on the device.

        Raises:
            ValueError: More is planned; says what.
        """
        first = self.views[0]
        more = {
            f"{len(self.views)} views of each image": len(self.views) > 1,
            "a window of a larger crop": first.crop_size is not None,
            f"{first.interpolation} resizing": first.interpolation != "bicubic",
            "jitter": first.jitter is not None,
            "colour": first.colour is not None,
            "rand_augment": first.rand_augment is not None,
            "random_erasing": first.random_erasing > 0,
            "a mask of blocks": first.mask is not None,
            "the boxes of its views": self.boxes,
            "regions": self.regions > 0,
        }
        wanted = [name for name, planned in more.items() if planned]
        if wanted:
            raise ValueError(
                f"images_on: device makes one view, a crop and a flip; {method} wants "
                f"{', '.join(wanted)}: set images_on: disk"
            )

    def require(
        self,
        method: str,
        *,
        views: int = 1,
        more: bool = False,
        masked: int = 0,
        boxes: bool = False,
        labels: bool = False,
        regions: bool = False,
    ) -> None:
        """Refuse another list of views than a method reads.

        Args:
            method: Its name, for the error.
            views: How many it reads.
            more: Whether further ones may follow.
            masked: How many of them have a mask, the first ones.
            boxes: Whether it reads where they lie.
            labels: Whether it reads classes.
            regions: Whether it reads regions.

        Raises:
            InputError: What was planned is not what is read.
        """
        masks = [view.mask is not None for view in self.views]
        found, wanted = len(masks), masked * [True] + (max(len(masks) - masked, 0)) * [False]
        if found < views or (found > views and not more):
            raise InputError(
                f"{method} reads {views} views of each image{' or more' if more else ''}, its "
                f"recipe's view_plan has {found}"
            )
        if masks != wanted:
            raise InputError(
                f"{method} reads masks of its first {masked} views, its recipe's view_plan has "
                f"masks for {[i + 1 for i, has in enumerate(masks) if has] or 'none'}"
            )
        for name, wants in (("boxes", boxes), ("labels", labels)):
            if wants != getattr(self, name):
                raise InputError(
                    f"{method} {'reads' if wants else 'does not read'} {name}; set {name}={wants} "
                    "in its recipe's view_plan"
                )
        if regions != (self.regions > 0):
            raise InputError(
                f"{method} {'reads' if regions else 'does not read'} regions; set regions to "
                f"{'how many' if regions else '0'} in its recipe's view_plan"
            )
