"""Augmentations: parity with torchvision and timm, ranges, and batches."""

import pickle
import random
from functools import partial
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as v2
from code_equations import BrightnessTokenizer
from miniatures import ASL, MAE, OTHERS
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.v2 import InterpolationMode

from asl_core.data.block_masks import block_mask
from asl_core.data.erasing import erase_rectangle
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.data.views import (
    collate_labelled,
    denormalise,
    evaluation_transform,
    finetune_transform,
    normalise,
    single_shot_box,
    train_crop_transform,
)
from asl_core.errors import InputError
from asl_core.methods import method_class
from asl_core.randomness import seeded_globals
from asl_core.recipes.normalisation import NORMALISATIONS
from asl_core.recipes.tokenized import TokenPretraining
from asl_core.recipes.views import BlockMask, Colour, View, ViewPlan

MEAN, STD = NORMALISATIONS["imagenet"]


def make_sample(height: int, width: int, index: int = 0, label: int | None = 4) -> Sample:
    generator = torch.Generator().manual_seed(index)
    coarse = torch.rand(1, 3, 5, 7, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Sample(index=index, image_id=index, image=image[0].round().byte(), label=label)


def crops(size: int, smallest: float = 0.2, flip: bool = True, count: int = 1) -> Any:
    """Return the transform that makes so many crops of an image."""
    view = View(size=size, scale=(smallest, 1.0), flip=flip)
    return pretrain_transform(ViewPlan(views=(view,) * count))


def test_pretrain_view_is_torchvisions_random_resized_crop_and_flip() -> None:
    sample = make_sample(40, 56)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(
                24, scale=(0.2, 1), interpolation=InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(),
        ]
    )
    for seed in range(12):
        with seeded_globals(seed):
            (view,) = crops(24, 0.2, flip=True)(sample).views
        with seeded_globals(seed):
            expected = reference(sample.image)
        assert torch.equal(view, expected) or torch.equal(view.flip(-1), expected)
        with seeded_globals(seed):
            (unflipped,) = crops(24, 0.2, flip=False)(sample).views
        assert torch.equal(unflipped, view) or torch.equal(unflipped, view.flip(-1))


def test_a_bilinear_view_is_the_same_crop_in_torchvisions_default() -> None:
    sample = make_sample(40, 56)
    default = v2.RandomResizedCrop(24, scale=(0.2, 1), antialias=True)
    views = [View(size=24, flip=False, interpolation=how) for how in ("bilinear", "bicubic")]
    for seed in range(12):
        made = []
        for view in views:
            with seeded_globals(seed):
                made.append(pretrain_transform(ViewPlan(views=(view,)))(sample).views[0])
        with seeded_globals(seed):
            assert torch.equal(made[0], default(sample.image))
        assert 0 < (made[0].int() - made[1].int()).abs().float().mean() < 6


def test_a_second_picture_is_of_the_jittered_image_by_pillows_lanczos() -> None:
    strengths = (0.4, 0.4, 0.4, 0.0)
    plan = ViewPlan(
        views=(
            View(size=16, flip=False, jitter=strengths),
            View(size=8, box="first", interpolation="lanczos"),
        ),
        boxes=True,
    )
    for seed in range(6):
        sample = make_sample(30, 44, index=seed)
        with seeded_globals(seed):
            item = pretrain_transform(plan)(sample)
        with seeded_globals(seed):
            image = v2.ColorJitter(*strengths)(sample.image)  # the whole, before it is cropped
        assert item.boxes is not None
        top, left, height, width = (int(number) for number in item.boxes[0, :4])
        assert torch.equal(item.boxes[0], item.boxes[1])
        crop = image[:, top : top + height, left : left + width]
        bicubic = InterpolationMode.BICUBIC
        expected = v2.functional.resize(crop, [16, 16], bicubic, antialias=True)
        assert torch.equal(item.views[0], expected)
        picture = v2.functional.to_pil_image(crop).resize((8, 8), Image.Resampling.LANCZOS)
        assert torch.equal(item.views[1], v2.functional.pil_to_tensor(picture))


def test_both_pictures_are_mirrored_or_neither() -> None:
    plan = ViewPlan(views=(View(size=16), View(size=16, box="first", interpolation="lanczos")))
    for seed in range(8):
        with seeded_globals(seed):
            first, second = pretrain_transform(plan)(make_sample(30, 44)).views
        near, far = ((x.int() - second.int()).abs().sum() for x in (first, first.flip(-1)))
        assert near < far


def test_jitter_is_the_first_pictures() -> None:
    with pytest.raises(ValueError, match="jitter is of a view with a box of its own"):
        View(size=8, box="first", jitter=(0.4, 0.4, 0.4, 0.0))
    with pytest.raises(ValueError, match="beit wants jitter: set images_on: disk"):
        ViewPlan(views=(View(size=8, jitter=(0.4,) * 4),)).require_crop_and_flip("beit")


def test_a_patient_mask_reaches_its_share_by_rectangles_alone() -> None:
    found = {}
    for patience in (1, 100):
        mask = BlockMask(
            grid_size=14, ratios=((0.5, 0.5),), smallest=16, exact=False, patience=patience
        )
        with seeded_globals(0):
            found[patience] = [int(block_mask(mask).sum()) for _ in range(60)]
    assert set(found[100]) == {98}
    assert min(found[1]) < 98
    impossible = BlockMask(grid_size=4, ratios=((0.5, 0.5),), smallest=40, exact=True, patience=5)
    with seeded_globals(0):
        assert int(block_mask(impossible).sum()) == 8  # topped up


def test_two_views_of_a_sample_differ() -> None:
    item = crops(16, 0.2, count=2)(make_sample(30, 40, index=9))
    assert item.index == 9
    assert not torch.equal(*item.views)


def test_a_view_of_the_first_box_is_the_same_crop_and_the_next_own_one_is_not() -> None:
    plan = ViewPlan(views=(View(size=16), View(size=16), View(size=8, box="first")))
    for seed in range(6):
        sample = make_sample(30, 44, index=seed)
        with seeded_globals(seed):
            first, other, small = pretrain_transform(plan)(sample).views
        with seeded_globals(seed):
            (alone,) = crops(16)(sample).views
        assert torch.equal(first, alone)
        assert not torch.equal(first, other)
        halved = v2.functional.resize(first, [8, 8], InterpolationMode.BICUBIC, antialias=True)
        assert (halved.int() - small.int()).abs().float().mean() < 6


def test_a_shifted_view_is_a_window_of_the_crop() -> None:
    window = View(size=12, crop_size=16)
    shifted = View(size=12, crop_size=16, box="first", max_shift=3)
    whole = View(size=16, box="first")
    found = set()
    for seed in range(40):
        with seeded_globals(seed):
            transform = pretrain_transform(ViewPlan(views=(window, shifted, whole)))
            first, second, crop = transform(make_sample(30, 44)).views
        assert torch.equal(first, crop[:, :12, :12])
        places = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(second, crop[:, y : y + 12, x : x + 12])
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {y for y, _ in found} == {x for _, x in found} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("colour", "share"),
    [
        (Colour(jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.3), 0.3),
        (Colour(grey=0.2), 0.2),
        (Colour(blur=0.5), 0.5),
        (Colour(solarise=0.2), 0.2),
    ],
    ids=["jitter", "grey", "blur", "solarise"],
)
def test_colours_change_as_often_as_asked_and_change_no_crop(colour: Colour, share: float) -> None:
    plain, coloured = View(size=8), View(size=8, colour=colour)
    sample, changed = make_sample(12, 14), 0
    for seed in range(400):
        pair = []
        for view in (plain, coloured):
            with seeded_globals(seed):
                pair.append(pretrain_transform(ViewPlan(views=(view,)))(sample).views[0])
        changed += not torch.equal(*pair)
    assert abs(changed / 400 - share) < 0.07


def test_grey_is_grey_and_solarised_is_never_bright() -> None:
    def first(colour: Colour) -> torch.Tensor:
        with seeded_globals(1):
            view = View(size=16, colour=colour)
            return pretrain_transform(ViewPlan(views=(view,)))(make_sample(20, 20)).views[0]

    grey, solarised = first(Colour(grey=1.0)), first(Colour(solarise=1.0))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[1], grey[2])
    assert solarised.max() < 128


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View(size=8, scale=(0.0, 1.0)), "scale must be"),
        (lambda: View(size=8, crop_size=6), "smaller than size"),
        (lambda: View(size=8, crop_size=10, max_shift=3), r"max_shift must be in 0\.\.2, got 3"),
        (lambda: Colour(grey=1.5), r"grey must be in \[0, 1\]"),
        (lambda: Colour(blur_sigma=(2.0, 1.0)), "blur_sigma"),
        (lambda: ViewPlan(views=()), "at least one view"),
        (lambda: ViewPlan(views=(View(size=8, box="first"),)), "a box of its own"),
        (lambda: ViewPlan(views=(View(size=8),), regions=-1), "regions must be at least 0, got -1"),
        (lambda: ViewPlan(views=(View(size=8, crop_size=9),), regions=2), "regions follow a crop"),
        (
            lambda: ViewPlan(views=(View(size=8, rand_augment="rand-m9"),), regions=2),
            "no window and no rand_augment",
        ),
    ],
)
def test_views_that_cannot_be_made_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


ONE, MASKED = (
    View(size=16),
    View(size=16, mask=BlockMask(grid_size=4, ratios=((0.5, 0.5),), smallest=1, exact=True)),
)
OTHER_LISTS = {
    "mae": (ViewPlan(views=(ONE, ONE)), "mae reads 1 views of each image, its recipe's view_plan"),
    "asl": (ViewPlan(views=(MASKED,)), "asl reads masks of its first 0 views, .* has masks for .1"),
    "ccmim": (ViewPlan(views=(ONE,), boxes=True), "ccmim does not read boxes; set boxes=False"),
    "cmae": (ViewPlan(views=(ONE,)), "cmae reads 2 views of each image"),
    "beit": (ViewPlan(views=(ONE, ONE)), "beit reads masks of its first 1 views, .* for none"),
    "cae": (ViewPlan(views=(MASKED,)), "cae reads 2 views of each image"),
    "splitmask": (ViewPlan(views=(MASKED, ONE)), "splitmask reads masks of its first 0 views"),
    "sim": (ViewPlan(views=(MASKED, ONE)), "sim reads boxes; set boxes=True"),
    "dino": (ViewPlan(views=(ONE,)), "dino reads 2 views of each image or more"),
    "ibot": (ViewPlan(views=(MASKED, ONE)), r"ibot reads masks of its first 2 views, .*\[1\]"),
    "mocov3": (ViewPlan(views=(ONE, ONE, ONE)), "mocov3 reads 2 views of each image, .* has 3"),
    "rmae": (ViewPlan(views=(ONE,)), "rmae reads regions; set regions to how many in its recipe"),
    "supervised": (ViewPlan(views=(ONE,)), "supervised reads labels; set labels=True"),
}


@pytest.mark.parametrize("name", OTHER_LISTS)
def test_a_method_refuses_views_that_it_does_not_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Any = {"mae": MAE, "asl": ASL, **OTHERS}[name]
    kind: Any = method_class(name)
    if isinstance(recipe, TokenPretraining):
        kind = partial(kind, tokenizer=BrightnessTokenizer())
    kind(recipe, (0.5,) * 3, (0.5,) * 3)
    plan, message = OTHER_LISTS[name]
    monkeypatch.setattr(type(recipe), "view_plan", lambda self: plan)
    with pytest.raises(InputError, match=message):
        kind(recipe, (0.5,) * 3, (0.5,) * 3)


def test_half_of_the_views_are_mirrored() -> None:
    ramp = torch.arange(20, dtype=torch.uint8).expand(3, 10, 20)
    sample = Sample(index=0, image_id=0, image=ramp)
    with seeded_globals(0):
        transform = crops(8, 0.5)
        views = [transform(sample).views[0].int() for _ in range(200)]
    mirrored = sum(int(view[0, 0, 0] > view[0, 0, -1]) for view in views)
    assert 80 < mirrored < 120


def test_single_shot_box_is_inside_and_keeps_the_area_where_it_is_not_clamped() -> None:
    image = torch.zeros(3, 50, 20)
    with seeded_globals(0):
        boxes = [single_shot_box(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(500)]
    assert all(top >= 0 and top + height <= 50 for top, _, height, _ in boxes)
    assert all(left >= 0 and left + width <= 20 for _, left, _, width in boxes)
    assert any(width == 20 for *_, width in boxes)  # clamped, not drawn anew
    free = [height * width / 1000 for _, _, height, width in boxes if width < 20 and height < 50]
    assert min(free) < 0.12
    assert min(free) > 0.06


def test_probe_crop_keeps_label_and_index() -> None:
    item = train_crop_transform(12)(make_sample(30, 21, index=3, label=7))
    assert (item.image.shape, item.label, item.index) == ((3, 12, 12), 7, 3)


def test_evaluation_resizes_and_crops_as_pil_does() -> None:
    sample = make_sample(60, 90)
    mine = evaluation_transform(28)(sample).image
    picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    resized = v2.functional.pil_to_tensor(picture.resize((48, 32), Image.Resampling.BICUBIC))
    expected = resized[:, 2:30, 10:38]
    assert mine.shape == (3, 28, 28)
    assert (mine.int() - expected.int()).abs().max() <= 1


def test_evaluation_leaves_an_image_of_the_right_size_alone() -> None:
    sample = make_sample(32, 32)
    assert evaluation_transform(32)(sample).image is sample.image


def test_erasing_is_timms_up_to_the_range_of_pixels() -> None:
    image = make_sample(24, 32).image
    for seed in range(6):
        with seeded_globals(seed):
            random.random()  # timm draws whether to erase at all
            mine = normalise(erase_rectangle(image, MEAN, STD)[None], MEAN, STD)[0]
        with seeded_globals(seed):
            eraser = RandomErasing(1.0, mode="pixel", device="cpu")
            expected = eraser(normalise(image[None], MEAN, STD)[0].clone())
        black = normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), MEAN, STD)[0]
        white = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), MEAN, STD)[0]
        expected = torch.minimum(torch.maximum(expected, black), white)
        assert (mine - expected).abs().max() < 0.011  # half a grey level, 0.5 / 255 / .225 / 2


def test_finetune_views_are_functions_of_the_seed() -> None:
    transform = finetune_transform(24, random_erasing=0.5)
    sample = make_sample(40, 50)
    pictures = []
    for seed in (0, 1, 0):
        with seeded_globals(seed):
            pictures.append(transform(sample).image)
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])
    assert pictures[0].dtype == torch.uint8
    assert pictures[0].shape == (3, 24, 24)


def test_finetune_without_extras_is_a_crop() -> None:
    sample = make_sample(40, 50)
    with seeded_globals(5):
        plain = finetune_transform(24, None, 0.0)(sample).image
    with seeded_globals(5):
        (expected,) = crops(24, 0.08)(sample).views
    assert torch.equal(plain, expected)


def test_an_unknown_policy_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="rand_augment 'augmix' is not a policy"):
        finetune_transform(24, "augmix")


@pytest.mark.parametrize(
    "transform",
    [
        crops(8),
        train_crop_transform(8),
        finetune_transform(8),
        evaluation_transform(8),
    ],
)
def test_transforms_can_be_sent_to_another_process(transform: object) -> None:
    pickle.loads(pickle.dumps(transform))(make_sample(9, 13))


def test_normalisation_is_that_of_torchvision_and_has_an_inverse() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mine = normalise(images, MEAN, STD)
    expected = v2.functional.normalize(images.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(mine, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(denormalise(mine, MEAN, STD), images / 255, atol=2e-6, rtol=0)


def test_batches_stack_what_the_items_hold() -> None:
    samples = [
        make_sample(20, 30, index=index, label=label) for index, label in [(5, 2), (8, None)]
    ]
    views = collate_views([crops(6, count=3)(sample) for sample in samples])
    assert [view.shape for view in views.views] == [(2, 3, 6, 6)] * 3
    assert views.indices.tolist() == [5, 8]
    labelled = collate_labelled([evaluation_transform(6)(sample) for sample in samples])
    assert labelled.images.shape == (2, 3, 6, 6)
    assert labelled.labels.tolist() == [2, -1]
    assert labelled.indices.tolist() == [5, 8]
