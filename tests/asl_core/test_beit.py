"""BEiT against its equations: hidden patches, relative positions, the mean over processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from code_equations import (
    BrightnessTokenizer,
    bias_of,
    check_optimiser_step,
    code_block,
    code_error,
    patch_tokens,
)
from equations import (
    MEAN,
    STD,
    TINY,
    Parity,
    Weights,
    below,
    compare_gradients,
    linear,
    norm,
    randomised,
    weights_of,
)
from process_groups import processes
from torch import Tensor

from asl_core.data.block_masks import block_mask
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.distributed import mean_over_processes
from asl_core.losses.codes import code_loss
from asl_core.methods.beit import MaskedCodeModel
from asl_core.protocol import Draw, Views
from asl_core.randomness import seeded_globals
from asl_core.recipes.beit import BeitRecipe
from asl_core.recipes.models import Vit

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32", "tokenizer": "kmeans", "mask_ratio": 0.45, "smallest_block": 1,
}  # fmt: skip
CODES = 11


def built(**fields: Any) -> MaskedCodeModel:
    torch.manual_seed(0)
    return MaskedCodeModel(BeitRecipe(**{**COMMON, **fields}), MEAN, STD, BrightnessTokenizer())


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    removed = torch.zeros(3, 9, dtype=torch.bool)
    removed[0, [1, 4, 7, 8]] = removed[2, 5] = True  # unequal numbers, and the second has none
    return {
        "images": torch.randn(3, 3, 12, 12, generator=generator).double(),
        "removed": removed,
        "count": removed.sum().double(),
        "codes": torch.randint(0, CODES, (3, 9), generator=generator),
        "keep": torch.rand(2, 2, 3, generator=generator).double() * 2,
    }


def beit_loss(p: Weights, args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss, and the share of codes that are the likeliest."""
    own, errors, right = below(p, "encoder."), [], []
    bias = bias_of(own["relative_position_bias.table"], 3)
    for i, image in enumerate(args["images"]):
        patches = [
            p["mask_token"][0] if args["removed"][i, n] else token
            for n, token in enumerate(patch_tokens(own, image))
        ]
        x = torch.stack([own["cls_token"][0, 0], *patches])
        for depth in range(2):
            x = code_block(x, below(own, f"blocks.{depth}."), 2, args["keep"][depth, :, i], bias)
        logits = linear(norm(x, own, "norm"), p, "head")
        for n in range(9):
            if args["removed"][i, n]:
                code = int(args["codes"][i, n])
                errors.append(code_error(logits[1 + n], code))
                right.append(logits[1 + n].argmax() == code)
    return torch.stack(errors).mean(), torch.stack(right).double().mean()


def test_beit_equals_its_equations_and_so_does_a_step(parity: Parity) -> None:
    method = randomised(built())
    args = arguments()
    step = method.step(**args)
    theirs, accuracy = beit_loss(weights_of(method), args)
    compare_gradients("BEiT", method, step.loss, theirs, parity)
    assert step.terms["code_accuracy"] == pytest.approx(accuracy.item())

    def decays(name: str) -> bool:
        return name != "encoder.cls_token" and method.get_parameter(name).ndim > 1

    assert decays("mask_token")
    assert decays("encoder.relative_position_bias.table")
    assert not decays("encoder.blocks.0.attn.qkv.q_bias")
    loss, _ = beit_loss(weights_of(method), args)
    check_optimiser_step(
        "BEiT", method, method.recipe, method.parameter_groups(), loss, decays, parity
    )


def test_what_is_hidden_is_not_seen_and_a_code_of_what_is_seen_is_of_no_matter() -> None:
    method, args = randomised(built()), arguments()
    loss = method.step(**args).loss
    hidden = args["removed"].view(3, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = torch.where(hidden, 7.0, args["images"])
    codes = torch.where(args["removed"], args["codes"], 0)
    assert torch.equal(method.step(**{**args, "images": images, "codes": codes}).loss, loss)
    assert method.step(**{**args, "images": -args["images"]}).loss != loss


def test_a_step_without_hidden_patches_has_no_loss_and_finite_gradients() -> None:
    method = built()
    views = (torch.zeros(2, 3, 12, 12, dtype=torch.uint8),) * 2
    masks = torch.zeros(2, 1, 9, dtype=torch.bool)
    step = method(Views(views, torch.arange(2), masks=masks), Draw(0, 0))
    step.loss.backward()
    assert step.loss == step.terms["code_accuracy"] == 0
    assert all(q.grad is not None and q.grad.isfinite().all() for q in method.parameters())


def share(rank: int, folder: Path) -> None:
    """Leave a process's loss and gradient of logits, of its half of four images."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, dtype=torch.float64)
    codes, counted = torch.randint(0, 5, (4, 3)), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0],
                                                                [0, 0, 0]]).bool()  # fmt: skip
    own = slice(0, 4) if not torch.distributed.is_initialized() else slice(2 * rank, 2 * rank + 2)
    mine = logits[own].requires_grad_()
    count = mean_over_processes(counted[own].sum().double())
    loss, accuracy = code_loss(mine, codes[own], counted[own], count)
    loss.backward()
    torch.save((loss.detach(), accuracy, mine.grad), folder / f"share-{rank}.pt")


def test_two_processes_average_over_the_hidden_patches_of_both(tmp_path: Path) -> None:
    share(0, tmp_path)
    loss, accuracy, gradient = torch.load(tmp_path / "share-0.pt")
    assert processes(2, share, tmp_path) == {0}
    parts = [torch.load(tmp_path / f"share-{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss)
    torch.testing.assert_close(sum(part[1] for part in parts) / 2, accuracy)
    # data-parallel training averages
    torch.testing.assert_close(torch.cat([part[2] for part in parts]) / 2, gradient)
    assert parts[0][0] != pytest.approx(loss.item())  # five of the six are in one process


def test_weights_begin_as_published() -> None:
    method = built(model=Vit(image_size=16, patch_size=4, embed_dim=64, depth=3, num_heads=4))
    encoder = method.encoder
    assert not encoder.relative_position_bias.table.any()
    for number, block in enumerate(encoder.blocks, start=1):
        assert (block.ls1.gamma == 0.1).all()
        assert (block.ls2.gamma == 0.1).all()
        assert block.mlp.fc1.weight.abs().max() <= 0.02
        most = 0.02 / (2 * number) ** 0.5
        for linear_ in (block.attn.proj, block.mlp.fc2):
            assert 0.9 * most < linear_.weight.abs().max() <= most
            assert not linear_.bias.any()
    for weight in (encoder.cls_token, method.mask_token, method.head.weight,
                   encoder.patch_embed.proj.weight):  # fmt: skip
        assert 0 < weight.abs().max() <= 0.02
    assert not encoder.patch_embed.proj.bias.any()


def test_the_published_recipe() -> None:
    recipe = BeitRecipe(dataset="none")
    assert recipe.peak_lr == pytest.approx(1.5e-3)
    own, tokens = recipe.view_plan().views
    assert (own.size, own.scale, own.jitter) == (224, (0.08, 1.0), (0.4, 0.4, 0.4, 0.0))
    assert (tokens.size, tokens.box, tokens.interpolation) == (112, "first", "lanczos")
    assert recipe.num_removed == 75
    assert own.mask is not None
    assert (own.mask.smallest, own.mask.exact) == (16, False)
    with seeded_globals(0):
        counts = [int(block_mask(own.mask).sum()) for _ in range(300)]
    assert max(counts) == 75 == max(set(counts), key=counts.count)
    assert min(counts) < 75  # it may stop short


@pytest.mark.parametrize("patches", [(side * side, n) for side in (3, 14, 16) for n in (4, 7)])
def test_the_share_reaches_every_number_of_patches(patches: tuple[int, int]) -> None:
    total, hidden = patches
    side = round(total**0.5)
    model = Vit(image_size=4 * side, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    recipe = BeitRecipe(**{**COMMON, "model": model, "mask_ratio": hidden / total})
    mask = recipe.view_plan().views[0].mask
    assert mask is not None
    with seeded_globals(1):
        assert max(int(block_mask(mask).sum()) for _ in range(200)) == hidden


def test_forward_reads_the_codes_of_the_second_view() -> None:
    method = built(drop_path=0.5)
    transform = pretrain_transform(method.recipe.view_plan())
    with seeded_globals(0):
        images = torch.randint(0, 256, (4, 3, 30, 20), dtype=torch.uint8)
        batch = collate_views([transform(Sample(i, i, x)) for i, x in enumerate(images)])
    prepared = method.prepared(batch, Draw(0, 0))
    assert torch.equal(prepared["codes"], BrightnessTokenizer().codes(batch.views[1]))
    assert prepared["count"] == batch.masks.sum()  # type: ignore[union-attr]
    assert prepared["keep"].shape == (2, 2, 4)
    method.eval()
    assert method.prepared(batch, Draw(0, 0))["keep"] is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch, Draw(0, 0)).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 0.0}, "hides 0 of 9 patches"),
        ({"mask_ratio": 1.0}, "hides 9 of 9 patches"),
        ({"smallest_block": 5}, "leaves no room for a block of 5"),
        ({"smallest_block": 0}, "smallest_block must be at least 1"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"layer_scale": 0.0}, "layer_scale must be positive"),
        ({"jitter": 1.5}, r"jitter must be in \[0, 1\]"),
        ({"crop_scale_min": 0.0}, "crop_scale_min must be in"),
        ({"images_on": "device"}, "2 views of each image"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeitRecipe(**{**COMMON, **fields})
