"""CAE against its equations: regressor, decoder, a teacher one step old."""

from typing import Any, cast

import pytest
import torch
from code_equations import (
    BrightnessTokenizer,
    attention,
    check_optimiser_step,
    code_block,
    code_error,
    mlp,
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
from torch import Tensor

from asl_core.data.block_masks import block_mask
from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.engine.optimizer import no_decay_groups
from asl_core.methods.cae import ContextAutoencoder
from asl_core.modules.encoder import Encoder
from asl_core.modules.masking import mask_of
from asl_core.modules.positions import sincos_positions
from asl_core.protocol import Draw
from asl_core.randomness import seeded_globals
from asl_core.recipes.cae import CaeRecipe
from asl_core.recipes.models import Vit

COMMON: dict[str, Any] = {
    "dataset": "none", "model": TINY, "epochs": 4, "warmup_epochs": 0, "batch_size": 4,
    "precision": "fp32", "tokenizer": "kmeans", "mask_ratio": 0.45, "smallest_block": 1,
    "regressor_depth": 2, "decoder_depth": 3,
}  # fmt: skip
CODES = 11


def built(**fields: Any) -> ContextAutoencoder:
    torch.manual_seed(0)
    return ContextAutoencoder(CaeRecipe(**{**COMMON, **fields}), MEAN, STD, BrightnessTokenizer())


def with_a_teacher() -> ContextAutoencoder:
    """Random in all parts, and a teacher that is not the encoder."""
    return randomised(built())


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    removed = torch.rand(3, 9, generator=generator).argsort(1) < 4
    depths = (2, 2, 2, 3)
    return {
        "images": torch.randn(3, 3, 12, 12, generator=generator).double(),
        "mask": mask_of(removed, 4),
        "codes": torch.randint(0, CODES, (3, 9), generator=generator),
        "keep": [torch.rand(d, 2, 3, generator=generator).double() * 2 for d in depths],
    }


def encoded(p: Weights, image: Tensor, ids: list[int], keep: Tensor) -> Tensor:
    """Normalised tokens of some patches, with [cls] among them and then left out; keep (2, 2)."""
    patches = patch_tokens(p, image)
    tokens = [p["cls_token"][0, 0], *(patches[n] + p["pos_embed"][0, 1 + n] for n in ids)]
    x = torch.stack(tokens)
    for depth in range(2):
        x = code_block(x, below(p, f"blocks.{depth}."), 2, keep[depth])
    return norm(x, p, "norm")[1:]


def asked_again(
    p: Weights, x: Tensor, visible: Tensor, places: tuple[Tensor, Tensor], keep: Tensor
) -> Tensor:
    """A block of the regressor; places of what is hidden and of what is visible."""
    known = torch.cat([visible, x])
    keys = norm(known + torch.cat([places[1], places[0]]), p, "norm_k") @ p["attn.k.weight"].T
    values = linear(norm(known, p, "norm_v"), p, "attn.v")
    queries = linear(norm(x + places[0], p, "norm_q"), p, "attn.q")
    found = linear(attention(queries, keys, values, 2), p, "attn.proj")
    x = norm(x + keep[0] * p["ls1.gamma"] * found, p, "norm2")
    return x + keep[1] * p["ls2.gamma"] * mlp(x, p)


def cae_loss(p: Weights, args: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    own, teacher, errors, distances, right = below(p, "encoder."), below(p, "teacher."), [], [], []
    positions = own["pos_embed"][0, 1:]
    keep = args["keep"]
    for i, image in enumerate(args["images"]):
        visible_ids, ids = (x[i].tolist() for x in args["mask"])
        visible = encoded(own, image, visible_ids, keep[0][..., i])
        target = encoded(teacher, image, ids, keep[1][..., i]).detach()
        places = (positions[ids], positions[visible_ids])
        x = p["mask_token"][0, 0].expand(4, -1)
        for depth in range(2):
            x = asked_again(
                below(p, f"regressor.{depth}."), x, visible, places, keep[2][depth, :, i]
            )
        latent = norm(x, p, "regressor_norm")
        distances.append((latent - target).square())
        y = latent + places[0]
        for depth in range(3):
            y = code_block(y, below(p, f"decoder.{depth}."), 2, keep[3][depth, :, i])
        logits = linear(norm(y, p, "decoder_norm"), p, "head")
        for n, token in zip(ids, logits, strict=True):
            errors.append(code_error(token, int(args["codes"][i, n])))
            right.append(token.argmax() == args["codes"][i, n])
    terms = {
        "loss_codes": torch.stack(errors).mean(),
        "loss_align": torch.stack(distances).mean(),
        "code_accuracy": torch.stack(right).double().mean(),
    }
    return terms["loss_codes"] + 2 * terms["loss_align"], terms


def test_cae_equals_its_equations_and_so_does_a_step(parity: Parity) -> None:
    method, args = with_a_teacher(), arguments()
    step = method.step(**args)
    theirs, terms = cae_loss(weights_of(method), args)
    compare_gradients("CAE", method, step.loss, theirs, parity)
    assert step.terms.keys() == terms.keys()
    for name, value in terms.items():
        parity("CAE, terms", step.terms[name].detach(), value.detach(), 1e-12)

    def decays(name: str) -> bool:
        return method.get_parameter(name).ndim > 1

    assert decays("encoder.cls_token")  # the official code spares it in BEiT alone
    assert not decays("encoder.blocks.0.attn.qkv.v_bias")
    groups = no_decay_groups(method, method.recipe)
    loss, _ = cae_loss(weights_of(method), args)
    check_optimiser_step("CAE", method, method.recipe, groups, loss, decays, parity)


def test_the_teacher_is_the_encoder_of_a_step_ago() -> None:
    method = built()
    encoders: list[Tensor] = []
    for step in range(4):
        encoders.append(method.encoder.norm.weight.detach().clone())
        teacher = cast(Encoder, method.teacher).norm.weight
        assert torch.equal(teacher, encoders[max(step - 1, 0)])  # at first it is the same
        assert not teacher.requires_grad
        method.before_step(step)
        with torch.no_grad():
            method.encoder.norm.weight.add_(1.0)  # the optimiser


def test_a_teacher_may_follow_slowly(parity: Parity) -> None:
    method = built(teacher_momentum=0.75)
    before = cast(Encoder, method.teacher).norm.weight.clone()
    with torch.no_grad():
        method.encoder.norm.weight.add_(1.0)
    method.before_step(0)
    parity("CAE, teacher", cast(Encoder, method.teacher).norm.weight, before + 0.25, 1e-7)


def test_hidden_pixels_reach_the_teacher_alone() -> None:
    method, args = with_a_teacher(), arguments()
    images = args["images"].requires_grad_()
    step = method.step(**args)
    (gradient,) = torch.autograd.grad(step.terms["loss_codes"], images)
    patches = gradient.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).flatten(1)  # (3, 9)
    assert torch.equal(patches > 0, ~args["mask"].removed)
    changed = torch.where(
        args["mask"].removed.view(3, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3),
        1.0, images.detach(),
    )  # fmt: skip
    other = method.step(**{**args, "images": changed})
    assert torch.equal(other.terms["loss_codes"], step.terms["loss_codes"])
    assert other.terms["loss_align"] != step.terms["loss_align"]


def test_weights_begin_as_published() -> None:
    method = built(model=Vit(image_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=4))
    encoder = method.encoder
    xavier = (6 / (64 + 256)) ** 0.5
    for weight in (encoder.blocks[1].mlp.fc2.weight, method.decoder[0].mlp.fc1.weight,
                   method.regressor[1].mlp.fc1.weight):  # fmt: skip
        assert 0.98 * xavier < weight.abs().max() <= xavier
    for weight in (encoder.cls_token, method.mask_token, encoder.patch_embed.proj.weight):
        assert 0 < weight.abs().max() <= 0.02
    for block in (*encoder.blocks, *method.decoder, *method.regressor):
        assert (block.ls1.gamma == 0.1).all()
        assert (block.ls2.gamma == 0.1).all()
    assert torch.equal(encoder.pos_embed, sincos_positions(64, 4, row_first=True))
    assert not encoder.pos_embed.requires_grad
    for own, copied in zip(encoder.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(own, copied)


def test_the_published_recipe() -> None:
    recipe = CaeRecipe(dataset="none")
    assert recipe.peak_lr == pytest.approx(1.5e-3)
    own, tokens = recipe.view_plan().views
    assert (own.size, own.scale, own.jitter, own.colour) == (224, (0.08, 1.0), None, None)
    assert (tokens.size, tokens.box, tokens.interpolation) == (112, "first", "lanczos")
    assert own.mask is not None
    with seeded_globals(0):
        assert {int(block_mask(own.mask).sum()) for _ in range(50)} == {98}


def test_forward_reads_the_codes_of_the_second_view() -> None:
    method = built(drop_path=0.5)
    transform = pretrain_transform(method.recipe.view_plan())
    with seeded_globals(0):
        images = torch.randint(0, 256, (4, 3, 30, 20), dtype=torch.uint8)
        batch = collate_views([transform(Sample(i, i, x)) for i, x in enumerate(images)])
    prepared = method.prepared(batch, Draw(0, 0))
    assert torch.equal(prepared["codes"], BrightnessTokenizer().codes(batch.views[1]))
    assert torch.equal(prepared["mask"].removed, batch.masks[:, 0])  # type: ignore[index]
    assert [keep.shape for keep in prepared["keep"]] == [(d, 2, 4) for d in (2, 2, 2, 3)]
    assert not torch.equal(prepared["keep"][0], prepared["keep"][1])  # the teacher's own
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method(batch, Draw(0, 0)).loss.dtype == torch.float32
    method.eval()
    assert method.prepared(batch, Draw(0, 0))["keep"] == [None] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "hides 9 of 9 patches"),
        ({"regressor_depth": 0}, "regressor_depth must be at least 1"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1"),
        ({"align_weight": -1.0}, "align_weight must be at least 0"),
        ({"teacher_momentum": 1.5}, r"teacher_momentum must be in \[0, 1\]"),
        ({"images_on": "device"}, "2 views of each image"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaeRecipe(**{**COMMON, **fields})
