"""Our MAE beside the official one, where a checkout of its repository is at hand."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
from torch import Tensor

from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.masking import random_mask
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit

# read when the file is: the tests hide such variables from each other
REPOSITORY = os.environ.get("ASL_MAE_REPO")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        REPOSITORY is None, reason="set ASL_MAE_REPO to a checkout of the official MAE repository"
    ),
]

VIT = Vit(
    image_size=64, patch_size=8, embed_dim=48, depth=3, num_heads=4,
    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2,
)  # fmt: skip


def official_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build the official model at our size, with what it needs to run on today's libraries."""

    class Block(timm_vit.Block):
        def __init__(self, *args: Any, qk_scale: None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert REPOSITORY is not None
    monkeypatch.setattr(timm_vit, "Block", Block)
    monkeypatch.setattr(np, "float", float, raising=False)
    monkeypatch.syspath_prepend(str(Path(REPOSITORY)))
    for name in ("models_mae", "util", "util.pos_embed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    models = importlib.import_module("models_mae")
    torch.manual_seed(4)
    return models.MaskedAutoencoderViT(
        img_size=64, patch_size=8, embed_dim=48, depth=3, num_heads=4,
        decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), norm_pix_loss=True,
    )  # fmt: skip


def our_name(name: str) -> str:
    """Where a parameter of the official model is in ours."""
    if name == "mask_token" or name.startswith("decoder_"):
        return "decoder." + name.removeprefix("decoder_")
    return "encoder." + name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_weights_and_noise_give_the_same_numbers(
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    parity: Callable[[str, Tensor, Tensor, float], None],
) -> None:
    official = official_model(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, q in official.named_parameters():
            if not name.endswith("pos_embed"):
                q.add_(0.05 * torch.randn(q.shape, generator=generator))
    official.to(dtype)
    recipe = MaeRecipe(dataset="none", model=VIT, epochs=1, warmup_epochs=0)
    ours = MaskedAutoencoder(recipe, (0.5,) * 3, (0.5,) * 3).to(dtype)
    theirs = {our_name(name): tensor for name, tensor in official.state_dict().items()}
    positions = theirs.pop("decoder.pos_embed")
    assert theirs.keys() == ours.state_dict().keys()
    torch.testing.assert_close(ours.decoder.pos_embed, positions)
    torch.testing.assert_close(ours.encoder.pos_embed.detach(), theirs["encoder.pos_embed"])
    ours.load_state_dict(theirs)

    images = torch.randn(5, 3, 64, 64, dtype=dtype, generator=generator)
    noise = torch.rand(5, 64, generator=generator)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    latent, _, _ = official.forward_encoder(images, 0.75)
    loss, pred, mask = official(images, 0.75)

    own_mask = random_mask(noise, 0.75)
    own_loss = ours.step(images, own_mask).loss
    own_pred = ours.predictions(images, own_mask)["ori"]
    places = own_mask.ids_removed.unsqueeze(-1).expand(-1, -1, pred.shape[-1])
    assert torch.equal(own_mask.removed, mask.bool())
    few = 2e-5 if dtype == torch.float32 else 1e-10
    kind = f"official MAE, {dtype}"
    parity(f"{kind}, latent", ours.encoder(images, own_mask.ids_keep), latent, few)
    parity(f"{kind}, prediction", own_pred, torch.gather(pred, 1, places), few)
    parity(f"{kind}, loss", own_loss, loss, few)
    own_loss.backward()
    loss.backward()
    for name, q in official.named_parameters():
        if q.grad is not None:
            own = ours.get_parameter(our_name(name)).grad
            assert own is not None, name
            parity(f"{kind}, gradients", own, q.grad, few)
