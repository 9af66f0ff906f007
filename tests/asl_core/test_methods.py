"""MAE against its equations; ASL against MAE where they must coincide."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.protocol import Draw, Views
from asl_core.randomness import derive_seed, uniform
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit

TINY = Vit(
    image_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=12, decoder_depth=2, decoder_num_heads=3,
)  # fmt: skip
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COMMON = {"dataset": "none", "model": TINY, "epochs": 1, "warmup_epochs": 0, "mask_ratio": 0.6}


def batch() -> Views:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8, generator=generator)
    return Views((images,), torch.tensor([4, 11, 30]))


def attention_block(x: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    """A pre-norm Transformer block written from its definition, one head at a time."""

    def norm(t: Tensor, name: str) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    h = norm(x, "norm1") @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]
    width = x.shape[-1]
    q, k, v = h.split(width, dim=-1)
    size = width // heads
    outs = []
    for i in range(heads):
        s = slice(i * size, (i + 1) * size)
        weights = (q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(size)).softmax(-1)
        outs.append(weights @ v[..., s])
    x = x + torch.cat(outs, -1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    h = norm(x, "norm2") @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x + h @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]


def mae_loss_by_hand(p: dict[str, Tensor], images: Tensor, noise: Tensor) -> Tensor:
    """MAE's loss of Eq. 1-2, token by token, from a dictionary of float64 parameters."""

    def sub(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in p.items() if k.startswith(prefix)}

    def norm(t: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(
            t, t.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-6
        )

    size, grid, keep = 4, 3, int(9 * (1 - 0.6))
    losses = []
    for image, row in zip(images, noise, strict=True):
        patches = [
            image[:, r * size : (r + 1) * size, c * size : (c + 1) * size]
            for r in range(grid)
            for c in range(grid)
        ]
        order = sorted(range(9), key=lambda i: row[i].item())
        visible, removed = order[:keep], order[keep:]
        kernel = p["encoder.patch_embed.proj.weight"]
        tokens = [p["encoder.cls_token"][0, 0] + p["encoder.pos_embed"][0, 0]]
        for i in visible:
            embedded = (kernel * patches[i]).sum((1, 2, 3)) + p["encoder.patch_embed.proj.bias"]
            tokens.append(embedded + p["encoder.pos_embed"][0, 1 + i])
        x = torch.stack(tokens)[None]
        for d in range(2):
            x = attention_block(x, sub(f"encoder.blocks.{d}."), 2)
        x = norm(x, "encoder.norm")[0] @ p["decoder.embed.weight"].T + p["decoder.embed.bias"]
        full = [x[0] + p["decoder.pos_embed"][0, 0]]
        for i in range(9):
            token = x[1 + visible.index(i)] if i in visible else p["decoder.mask_token"][0, 0]
            full.append(token + p["decoder.pos_embed"][0, 1 + i])
        y = torch.stack(full)[None]
        for d in range(2):
            y = attention_block(y, sub(f"decoder.blocks.{d}."), 3)
        pred = norm(y, "decoder.norm")[0] @ p["decoder.pred.weight"].T + p["decoder.pred.bias"]
        for i in removed:
            target = patches[i].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            losses.append((pred[1 + i] - target).square().mean())
    return torch.stack(losses).mean()


def test_mae_loss_and_gradients_equal_the_equations_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "float", lambda self: self)  # losses compute in float32 otherwise
    torch.manual_seed(0)
    method = MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD).double()
    views = batch()
    mean = torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1)
    std = torch.tensor(STD, dtype=torch.float64).reshape(1, 3, 1, 1)
    images = (views.views[0].double() / 255 - mean) / std
    noise = uniform(derive_seed(7, "mask", 2), views.indices, (9,))
    names = [n for n, q in method.named_parameters() if q.requires_grad]
    parameters = dict(method.named_parameters()) | {"decoder.pos_embed": method.decoder.pos_embed}

    pred = method.predict(images, method.draw_mask(views.indices, Draw(7, 2)))
    from asl_core.losses.reconstruction import reconstruction_loss
    from asl_core.modules.patches import pixel_target

    mask = method.draw_mask(views.indices, Draw(7, 2)).mask
    ours = reconstruction_loss(pred, pixel_target(images, 4, norm_pix=True), mask)
    theirs = mae_loss_by_hand(parameters, images, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    ours_grad = torch.autograd.grad(ours, [parameters[n] for n in names])
    theirs_grad = torch.autograd.grad(theirs, [parameters[n] for n in names])
    for name, a, b in zip(names, ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8, msg=name)


def paired(recipe: AslRecipe) -> tuple[MaskedAutoencoder, ArbitrarySelfSupervised]:
    """Build both methods with the same encoder and decoder."""
    torch.manual_seed(1)
    mae = MaskedAutoencoder(MaeRecipe(**COMMON), MEAN, STD)
    asl = ArbitrarySelfSupervised(recipe, MEAN, STD)
    asl.load_state_dict(mae.state_dict(), strict=False)
    return mae, asl


@pytest.mark.parametrize("design", ["aee", "dle"])
def test_asl_without_its_augmentation_is_mae(design: str) -> None:
    mae, asl = paired(AslRecipe(**COMMON, design=design, dle_rate=0.0))
    if design == "aee":
        asl.extra_layer = nn.Identity()
    expected, step = mae(batch(), Draw(3, 8)), asl(batch(), Draw(3, 8))
    assert step.terms["loss_sem"] == 0
    torch.testing.assert_close(step.loss, expected.loss)
    expected.loss.backward()
    step.loss.backward()
    for name, parameter in mae.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                asl.get_parameter(name).grad, parameter.grad, atol=1e-6, rtol=1e-4, msg=name
            )


def test_asl_total_is_eq_11() -> None:
    _, asl = paired(AslRecipe(**COMMON, sem_weight=0.5))
    terms = asl(batch(), Draw(0, 0)).terms
    torch.testing.assert_close(
        asl(batch(), Draw(0, 0)).loss, terms["loss_mae"] + 0.5 * terms["loss_sem"]
    )
    assert terms["loss_sem"] > 0
    assert terms["branch_distance"] > 0


@pytest.mark.parametrize("mae_on", ["both_mean", "both_sum", "ori"])
def test_pixel_loss_reads_the_branches_it_names(mae_on: str) -> None:
    _, asl = paired(AslRecipe(**COMMON, mae_on=mae_on))
    terms = asl(batch(), Draw(0, 0)).terms
    both = terms["loss_mae_ori"] + terms["loss_mae_aug"]
    expected = {"both_mean": both / 2, "both_sum": both, "ori": terms["loss_mae_ori"]}
    torch.testing.assert_close(terms["loss_mae"], expected[mae_on])


def test_dropout_of_the_embedding_keeps_its_mean_and_differs_between_branches() -> None:
    _, asl = paired(AslRecipe(**COMMON, design="dle", dle_rate=0.3))
    ones = torch.ones(400, 9, 16)
    indices = torch.arange(400)
    first = asl._dropout(ones, indices, Draw(0, 1), 0)
    second = asl._dropout(ones, indices, Draw(0, 1), 1)
    assert abs(first.mean().item() - 1) < 0.02
    assert abs((first == 0).float().mean().item() - 0.3) < 0.01
    assert not torch.equal(first, second)
    assert torch.equal(first, asl._dropout(ones, indices, Draw(0, 1), 0))


@pytest.mark.parametrize("design", ["aee", "dle"])
def test_exported_encoder_has_the_keys_of_mae(design: str) -> None:
    mae, asl = paired(AslRecipe(**COMMON, design=design))
    assert asl.encoder_state().keys() == mae.encoder_state().keys()
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias"} <= set(
        mae.encoder_state()
    )


def test_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    mae, _ = paired(AslRecipe(**COMMON))
    whole = batch()
    parts = [Views((whole.views[0][i : i + 1],), whole.indices[i : i + 1]) for i in range(3)]
    mean = sum(mae(part, Draw(0, 4)).loss for part in parts) / 3
    torch.testing.assert_close(mae(whole, Draw(0, 4)).loss, mean)


def test_reconstructions_paste_visible_patches_and_stay_in_range() -> None:
    _, asl = paired(dataclasses.replace(AslRecipe(**COMMON)))
    pictures = asl.eval().reconstructions(batch(), Draw(0, 0))
    assert list(pictures)[:2] == ["input", "masked"]
    assert len(pictures) == 4
    torch.testing.assert_close(pictures["input"], batch().views[0] / 255, atol=1e-5, rtol=0)
