"""Choices of ASL's recipe that are void, or contradict each other."""

from typing import Any

import pytest
from equations import COMMON

from asl_core.recipes.asl import AslRecipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"design": "dle", "aee_depth": 2}, "aee_depth has no effect with design dle"),
        ({"dle_rate": 0.2}, "dle_rate has no effect with design aee"),
        ({"sem_weight": 0.0, "mae_on": "ori"}, "is MAE"),
        ({"sem_weight": 0.0, "cls_align": "encoder"}, "cls_align has no effect"),
        ({"sem_type": "cosine", "sem_reduction": "sum"}, "sem_reduction has no effect"),
        ({"sem_weight": 0.0, "sem_type": "cosine"}, "sem_type has no effect with sem_weight 0"),
        ({"sem_weight": 0.0, "sem_patches": "all"}, "sem_patches has no effect with sem_weight 0"),
        ({"design": "dle", "dle_rate": 0.0, "dle_both": False}, "dle_both has no effect with dle_"),
        ({"aee_norm": True, "aee_pos": "pre_norm"}, "drop aee_norm"),
        ({"share_decoder": False, "sem_space": "decoder_norm"}, "no common space"),
        ({"aee_depth": 0}, "aee_depth must be at least 1"),
        ({"aee_dropout": 0.2}, "aee_dropout has no effect with aee_layer block"),
        ({"aee_layer": "vaswani", "aee_norm": True}, "drop aee_norm"),
        ({"design": "dle", "aee_layer": "vaswani"}, "aee_layer has no effect with design dle"),
        ({"dle_unit": "patch"}, "dle_unit has no effect with design aee"),
        ({"sem_warmup_epochs": 2.0}, "sem_warmup_epochs 2.0 exceeds epochs 1"),
        ({"sem_weight": 0.0, "sem_warmup_epochs": 0.5}, "sem_warmup_epochs has no effect"),
        ({"sem_weight": 0.0, "sem_sign": "random"}, "sem_sign has no effect with sem_weight 0"),
        ({"sem_sign": "random", "sem_type": "cosine"}, "sem_sign random is a control of l1"),
        ({"sem_sign": "random", "cls_align": "encoder"}, "sem_sign random is a control of l1"),
        ({"sem_weight": 0.0, "sem_precision": "full"}, "sem_precision has no effect with sem_we"),
        ({"sem_precision": "full", "precision": "fp32"}, "sem_precision full changes nothing"),
        ({"sem_precision": "full", "design": "dle"}, "design dle shares too little"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AslRecipe(**COMMON, **fields)
