"""The random encoder is the one that a method of the same seed has before its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import ASL, MAE, OTHERS, SHORT, TINY

from asl_core.data.shards import PackedDataset
from asl_core.methods.untrained import random_encoder
from asl_core.pretrain import build_method
from asl_core.recipes.pretraining import Pretraining
from asl_core.recipes.untrained import UntrainedRecipe

METHODS: dict[str, Pretraining] = {"mae": MAE, "asl": ASL, **OTHERS}
AS = {
    "dino": "dino", "ibot": "dino", "supervised": "dino",
    **{name: name for name in ("mocov3", "beit", "cae", "splitmask")},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_it_is_to_the_bit_what_a_method_begins_with(name: str, icons: Path) -> None:
    method = build_method(METHODS[name], PackedDataset(icons, "train"))
    initialisation: Any = AS.get(name, "mae")
    recipe = UntrainedRecipe(
        dataset="icons", model=TINY, seed=SHORT["seed"], initialisation=initialisation
    )
    assert random_encoder(recipe).parts == METHODS[name].encoder_parts
    begun, drawn = method.encoder_state(), random_encoder(recipe).state_dict()
    assert begun.keys() == drawn.keys()
    assert all(torch.equal(begun[key], drawn[key]) for key in begun)


def test_seed_and_initialisation_alone_decide_and_nobody_elses_draws_are_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    recipe = UntrainedRecipe(dataset="icons", model=TINY)
    one = random_encoder(recipe).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again = random_encoder(UntrainedRecipe(dataset="another", model=TINY)).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    for other in ({"seed": 1}, {"initialisation": "dino"}, {"initialisation": "mocov3"}):
        drawn = random_encoder(UntrainedRecipe(dataset="icons", model=TINY, **other)).state_dict()
        assert not torch.equal(one["blocks.0.attn.qkv.weight"], drawn["blocks.0.attn.qkv.weight"])


def test_both_initialisations_have_the_spread_that_they_are_published_with() -> None:
    def spread(initialisation: str) -> float:
        recipe = UntrainedRecipe(dataset="x", initialisation=initialisation)  # type: ignore[arg-type]
        return float(random_encoder(recipe).state_dict()["blocks.3.mlp.fc1.weight"].std())

    assert spread("mae") == pytest.approx((2 / (768 + 3072)) ** 0.5, rel=1e-3)  # Xavier
    assert spread("dino") == pytest.approx(0.02, rel=1e-3)  # cut at 2, which is 100 deviations
