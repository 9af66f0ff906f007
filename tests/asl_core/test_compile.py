"""torch.compile: no graph breaks, and the numbers of eager execution."""

import dataclasses
import shutil
from typing import Any

import pytest
import torch
import torch._dynamo
from code_equations import BrightnessTokenizer
from miniatures import OTHERS
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from asl_core.data.pretraining import collate_views, pretrain_transform
from asl_core.data.samples import Sample
from asl_core.engine.devices import autocast
from asl_core.methods import method_class
from asl_core.methods.asl import ArbitrarySelfSupervised
from asl_core.methods.mae import MaskedAutoencoder
from asl_core.modules.masking import random_mask
from asl_core.protocol import Draw, Mask, Views
from asl_core.randomness import seeded_globals
from asl_core.recipes.asl import AslRecipe
from asl_core.recipes.mae import MaeRecipe
from asl_core.recipes.models import Vit
from asl_core.recipes.tokenized import TokenPretraining

TINY = Vit(
    image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
MAE = MaeRecipe(dataset="none", model=TINY, epochs=1, warmup_epochs=0)
AEE = AslRecipe(**{**dataclasses.asdict(MAE), "model": TINY, "method": "asl"})
RECIPES = {
    "mae": MAE,
    "aee": AEE,
    "dle": dataclasses.replace(AEE, design="dle"),
    "full": dataclasses.replace(AEE, sem_precision="full"),
    "drawn": dataclasses.replace(
        AEE, aee_layer="vaswani", sem_sign="random", sem_warmup_epochs=1.0
    ),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    if isinstance(recipe, MaeRecipe):
        return MaskedAutoencoder(recipe, (0.5,) * 3, (0.25,) * 3)
    return ArbitrarySelfSupervised(recipe, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def masked_images() -> tuple[torch.Tensor, Mask]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    return images, random_mask(torch.rand(3, 16, generator=generator), 0.75)


def test_encoder_and_decoder_are_one_graph_each() -> None:
    method = build("mae")
    images, mask = masked_images()
    latent = method.encoder(images, mask.ids_keep).detach()
    parts: list[tuple[nn.Module, tuple[Any, ...]]] = [
        (method.encoder, (images, mask.ids_keep)),
        (method.encoder, (images,)),
        (method.decoder, (latent, mask)),
    ]
    for module, arguments in parts:
        explained = torch._dynamo.explain(module)(*arguments)
        assert explained.graph_break_count == 0, explained.break_reasons
        assert explained.graph_count == 1


@pytest.mark.parametrize(
    ("name", "precision"), [("mae", "fp32"), ("aee", "bf16"), ("dle", "bf16"), ("full", "bf16")]
)
def test_whole_step_is_one_graph(name: str, precision: str) -> None:
    method = build(name)
    images, mask = masked_images()
    arguments: list[Any] = [images, mask]
    if name == "dle":
        arguments.append(method.draw_dropout(torch.arange(3), mask, Draw(0, 0)))
    with autocast(torch.device("cpu"), precision):
        explained = torch._dynamo.explain(method.step)(*arguments)
    assert explained.graph_break_count == 0, explained.break_reasons


def draws(step: int) -> tuple[Views, Draw]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Views((pixels,), torch.arange(3)), Draw(5, step)


@pytest.mark.parametrize("name", RECIPES)
def test_another_step_is_not_compiled_again(name: str) -> None:
    method, counter = build(name), CompileCounter()
    method.compile(backend=counter)
    for step in range(3):
        method(*draws(step)).loss.backward()
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend", "precision"),
    [("mae", "aot_eager", "fp32"), ("dle", "aot_eager", "bf16"), ("aee", "inductor", "fp32")],
)
def test_compiled_and_eager_training_agree(name: str, backend: str, precision: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.fail("torch.compile needs a C++ compiler: install g++")
    eager, compiled = build(name), build(name)
    compiled.compile(backend=backend)
    with autocast(torch.device("cpu"), precision):
        a, b = eager(*draws(0)), compiled(*draws(0))
    exact = precision == "fp32"
    torch.testing.assert_close(a.loss, b.loss, atol=1e-5 if exact else 1e-2, rtol=1e-5)
    assert a.terms.keys() == b.terms.keys()
    a.loss.backward()
    b.loss.backward()
    for (parameter, p), (_, q) in zip(
        eager.named_parameters(), compiled.named_parameters(), strict=True
    ):
        if p.requires_grad:
            atol, rtol = (1e-5, 1e-4) if exact else (1e-2, 1e-2)
            torch.testing.assert_close(p.grad, q.grad, atol=atol, rtol=rtol, msg=parameter)


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_compiles_once_and_computes_the_same(name: str) -> None:
    recipe = OTHERS[name]
    plan = recipe.view_plan()
    transform = pretrain_transform(plan)
    with seeded_globals(0):
        images = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8)
        batch = collate_views(
            [
                transform(Sample(i, i, image, label=i % 3, regions=image[:2] // 64))
                for i, image in enumerate(images)
            ]
        )
    kind: Any = method_class(name)
    wanted: dict[str, Any] = {"num_classes": 3} if plan.labels else {}
    if isinstance(recipe, TokenPretraining):
        wanted["tokenizer"] = BrightnessTokenizer()
    built = []
    for _ in range(2):
        torch.manual_seed(0)
        built.append(kind(recipe, (0.5,) * 3, (0.25,) * 3, **wanted))
    eager, compiled = built
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter)
    frames = []
    for step in range(3):
        a, b = eager(batch, Draw(5, step)), compiled(batch, Draw(5, step))
        torch.testing.assert_close(a.loss, b.loss, atol=1e-5, rtol=1e-5)
        assert a.statistics.keys() == b.statistics.keys()
        a.loss.backward()
        b.loss.backward()
        frames.append(counter.frame_count)
    assert frames[0] == frames[2] > 0
    for (parameter, p), (_, q) in zip(
        eager.named_parameters(), compiled.named_parameters(), strict=True
    ):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=parameter)
