"""SplitMask against its equations, and what must hold whatever is inferred."""

from pathlib import Path
from typing import Any

import pytest
import torch
from code_equations import (
    BrightnessTokenizer,
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
    block,
    compare_gradients,
    linear,
    norm,
    randomised,
    weights_of,
)
from process_groups import processes
from torch import Tensor

from asl_core import distributed
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.losses.contrastive import symmetric_info_nce
from asl_core.methods.splitmask import SplitInpainter
from asl_core.modules.masking import random_mask
from asl_core.protocol import Draw, Mask
from asl_core.randomness import seeded_globals
from asl_core.recipes.models import Vit
from asl_core.recipes.splitmask import SplitMaskRecipe

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32", "tokenizer": "kmeans",
}  # fmt: skip
CODES = 11


def built(**fields: Any) -> SplitInpainter:
    torch.manual_seed(0)
    return SplitInpainter(SplitMaskRecipe(**{**COMMON, **fields}), MEAN, STD, BrightnessTokenizer())


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "images": torch.randn(3, 3, 12, 12, generator=generator).double(),
        "halves": random_mask(torch.rand(3, 9, generator=generator), 0.5),
        "codes": torch.randint(0, CODES, (3, 9), generator=generator),
        "keep": [torch.rand(2, 2, 3, generator=generator).double() * 2 for _ in range(2)],
    }


def inpainted(
    p: Weights, image: Tensor, ids: list[int], keep: Tensor
) -> tuple[dict[int, Tensor], Tensor]:
    """Logits of each patch that is not among `ids`, and the mean of all decoded patches."""
    own, patches = below(p, "encoder."), patch_tokens(below(p, "encoder."), image)
    tokens = [own["cls_token"][0, 0], *(patches[n] + own["pos_embed"][0, 1 + n] for n in ids)]
    x = torch.stack(tokens)
    for depth in range(2):
        x = code_block(x, below(own, f"blocks.{depth}."), 2, keep[depth])
    d = below(p, "decoder.")
    seen = linear(norm(x, own, "norm"), d, "embed")
    y = [seen[0]]
    for n in range(9):
        token = seen[1 + ids.index(n)] if n in ids else d["mask_token"][0, 0]
        y.append(token + d["pos_embed"][0, 1 + n])
    z = torch.stack(y)
    for depth in range(2):
        z = block(z, below(d, f"blocks.{depth}."), 2)
    z = norm(z, d, "norm")
    return {n: linear(z[1 + n], d, "pred") for n in range(9) if n not in ids}, z[1:].mean(0)


def nce(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Of each a among all b; temperature .2."""
    unit = [[x / x.square().sum().sqrt() for x in vectors] for vectors in (a, b)]
    losses = []
    for i, x in enumerate(unit[0]):
        products = torch.stack([(x * y).sum() / 0.2 for y in unit[1]]).exp()
        losses.append(-torch.log(products[i] / products.sum()))
    return torch.stack(losses).mean()


def splitmask_loss(p: Weights, args: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    means: tuple[list[Tensor], list[Tensor]] = ([], [])
    right: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i, image in enumerate(args["images"]):
        for half in range(2):
            ids = args["halves"][half][i].tolist()
            logits, mean = inpainted(p, image, ids, args["keep"][half][:, :, i])
            means[half].append(mean)
            for n, token in logits.items():
                errors[half].append(code_error(token, int(args["codes"][i, n])))
                right[half].append(token.argmax() == args["codes"][i, n])
    terms = {
        "loss_codes": torch.stack(errors[0]).mean() + torch.stack(errors[1]).mean(),
        "loss_contrast": (nce(*means) + nce(*means[::-1])) / 2,
        "code_accuracy": sum(torch.stack(x).double().mean() for x in right) / 2,
    }
    return terms["loss_codes"] + 0.7 * terms["loss_contrast"], terms


def test_splitmask_equals_its_equations_and_so_does_a_step(parity: Parity) -> None:
    method, args = randomised(built(contrast_weight=0.7)), arguments()
    step = method.step(**args)
    theirs, terms = splitmask_loss(weights_of(method), args)
    compare_gradients("SplitMask", method, step.loss, theirs, parity)
    for name, value in terms.items():
        parity("SplitMask, terms", step.terms[name].detach(), value.detach(), 1e-12)

    def decays(name: str) -> bool:
        return name != "encoder.cls_token" and method.get_parameter(name).ndim > 1

    loss, _ = splitmask_loss(weights_of(method), args)
    check_optimiser_step(
        "SplitMask", method, method.recipe, method.parameter_groups(), loss, decays, parity
    )


def test_the_halves_have_no_order() -> None:
    method, args = randomised(built()), arguments()
    first, second = args["halves"]
    swapped = {**args, "halves": Mask(second, first), "keep": args["keep"][::-1]}
    assert torch.equal(method.step(**args).loss, method.step(**swapped).loss)


def test_no_patch_sees_itself_inpainted() -> None:
    method, args = randomised(built()), arguments()
    images = args["images"].requires_grad_()
    halves, embedded = args["halves"], method.encoder.embed(images)
    for half in (halves, Mask(halves.ids_removed, halves.ids_keep)):
        loss = method.inpaint(embedded, half, args["codes"], None)[0].loss
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).flatten(1)
        assert torch.equal(patches > 0, ~half.removed)  # from the other half alone
        kept = torch.zeros(3, 9).scatter(1, half.ids_keep, 1).bool()
        codes = torch.where(kept, 0, args["codes"])  # nor is what is seen a target
        assert torch.equal(method.inpaint(embedded, half, codes, None)[0].loss, loss)


def share(rank: int, folder: Path) -> None:
    """Leave a process's loss and gradients, of its half of four pairs."""
    torch.manual_seed(0)
    pairs = torch.randn(2, 4, 5, dtype=torch.float64)
    size = 4 // distributed.world_size()
    own = pairs[:, rank * size : (rank + 1) * size].clone().requires_grad_()
    loss = symmetric_info_nce(own[0], own[1], 0.2)
    loss.backward()
    torch.save((loss.detach(), own.grad), folder / f"share-{rank}.pt")


def test_two_processes_contrast_the_images_of_both(tmp_path: Path) -> None:
    share(0, tmp_path)
    loss, gradient = torch.load(tmp_path / "share-0.pt")
    assert processes(2, share, tmp_path) == {0}
    parts = [torch.load(tmp_path / f"share-{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss)
    # data-parallel training averages
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 1) / 2, gradient)


def test_forward_draws_halves_by_step_and_image() -> None:
    method = built(drop_path=0.5)
    transform = pretrain_transform(method.recipe.view_plan())
    with seeded_globals(0):
        images = torch.randint(0, 256, (4, 3, 30, 20), dtype=torch.uint8)
        batch = collate_views([transform(Sample(i, i, x)) for i, x in enumerate(images)])
    prepared, later = (method.prepared(batch, Draw(0, step)) for step in (0, 1))
    assert torch.equal(prepared["codes"], BrightnessTokenizer().codes(batch.views[1]))
    halves = prepared["halves"]
    assert (halves.ids_keep.shape, halves.ids_removed.shape) == ((4, 4), (4, 5))
    assert torch.equal(torch.cat(halves, 1).sort(1).values, torch.arange(9).expand(4, -1))
    assert not torch.equal(halves.removed, later["halves"].removed)
    assert not torch.equal(*prepared["keep"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch, Draw(0, 0)).loss.dtype == torch.float32
    method.eval()
    assert method.prepared(batch, Draw(0, 0))["keep"] == [None] * 2


def test_the_default_recipe() -> None:
    recipe = SplitMaskRecipe(dataset="none")
    assert recipe.peak_lr == pytest.approx(1.5e-3)
    own, tokens = recipe.view_plan().views
    assert (own.size, own.jitter, own.mask) == (224, (0.4, 0.4, 0.4, 0.0), None)
    assert (tokens.size, tokens.box) == (112, "first")
    method = built(model=Vit(image_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=4))
    assert len(method.decoder.blocks) == 2
    assert method.decoder.norm.weight.shape == method.encoder.norm.weight.shape
    assert not method.encoder.pos_embed.requires_grad
    assert method.encoder.blocks[1].mlp.fc2.weight.abs().max() <= 0.02 / 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"contrast_weight": -1.0}, "contrast_weight must be at least 0"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1"),
        ({"model": Vit(image_size=4, patch_size=4)}, "needs 2 of them at least"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitMaskRecipe(**{**COMMON, **fields})
