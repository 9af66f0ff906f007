"""A method's file is imported when the method is asked for, and no other's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from asl_core.methods import DYNAMIC_IMPORTS, encoder_adopter, encoder_drawer, method_class
from asl_core.methods.imported import adopt_encoder
from asl_core.methods.untrained import random_encoder
from asl_core.recipes.catalogue import NOT_TRAINED, RECIPES

ROOT = Path(__file__).parents[2]
LOADED = "print([m for m in sys.modules if m.startswith('asl_core.methods.')])"


def test_only_the_method_that_is_asked_for_is_imported() -> None:
    code = f"""
import sys
import asl_core.pretrain, asl_core.analysis.cost, pipeline.stages.pretrain
{LOADED}
asl_core.pretrain.method_class("cmae")
{LOADED}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["[]", "['asl_core.methods.cmae']"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_names_the_class_in_the_methods_own_file(name: str) -> None:
    kind: Any = method_class(name)
    assert issubclass(kind, nn.Module)
    assert kind.__module__ == f"asl_core.methods.{name}"


def test_an_encoder_that_is_not_trained_is_adopted_or_drawn_by_a_function() -> None:
    assert encoder_adopter() is adopt_encoder
    assert encoder_drawer() is random_encoder
    assert DYNAMIC_IMPORTS.keys() == {*RECIPES, *NOT_TRAINED}
