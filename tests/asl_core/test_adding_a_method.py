"""The worked example of docs/adding_a_method.md is a method: it trains and is what it says."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from equations import COMMON, Parity
from miniatures import MAE, SHORT

from asl_core.engine.context import RunContext
from asl_core.engine.journal import Journal
from asl_core.held_out import held_out_predictions
from asl_core.methods import DYNAMIC_IMPORTS, method_class
from asl_core.modules.encoder import load_encoder, save_encoder
from asl_core.pretrain import pretrain
from asl_core.recipes.optimisation import Resources

GUIDE = Path(__file__).parents[2] / "docs/adding_a_method.md"
NAMES = ("asl_core.recipes.lowpass", "asl_core.methods.lowpass", "test_lowpass")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ...]:
    """The guide's blocks of Python as the modules that they are to be."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    modules = []
    for name, block in zip(NAMES, blocks, strict=True):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(block, f"{GUIDE}: {name}", "exec"), module.__dict__)
        modules.append(module)
    monkeypatch.setitem(DYNAMIC_IMPORTS, "lowpass", f"{NAMES[1]}:LowPassAutoencoder")
    return tuple(modules)


def test_its_loss_is_that_of_its_equation(example: tuple[ModuleType, ...], parity: Parity) -> None:
    example[2].test_loss_and_gradients_are_those_of_the_equation(parity)
    with pytest.raises(ValueError, match="blur_size must be odd"):
        example[0].LowPassRecipe(**COMMON, blur_size=2)


def test_it_trains_and_is_evaluated_as_any_other(
    example: tuple[ModuleType, ...], icons: Path, tmp_path: Path
) -> None:
    recipe: Any = example[0].LowPassRecipe(**SHORT)
    with Journal.open(tmp_path / "journal") as journal:
        context = RunContext(tmp_path / "ckpt", journal, Resources(device="cpu"))
        method = pretrain(recipe, icons, context)
    save_encoder(tmp_path, method.encoder_state(), recipe.model)
    assert load_encoder(tmp_path)(torch.zeros(2, 3, 16, 16)).isfinite().all()
    mae = method_class("mae")(MAE, method.mean, method.std)
    own, pixels = (held_out_predictions(each, icons, 4)["target"] for each in (method, mae))
    assert own.shape == pixels.shape
    assert not torch.allclose(own, pixels, atol=0.1)
