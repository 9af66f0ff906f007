"""What a stage imports and reads as it runs is in the closure that stands for its code."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from miniatures import OTHERS

from pipeline.results.code import read_code
from pipeline.stages.table import STAGES

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("stage_trace.py")
PARAMS = """
suite: tiny
title: Tiny
scale: reduced
tables: [table1]
datasets: {icons: {source: icons, train: 8, test: 4}}
experiments: {mae: {method: mae, dataset: icons, model: vit-demo, epochs: 2, warmup_epochs: 0}}
"""
RUNS = [
    ("prepare", "icons"), ("prepare", "scenes"), ("prepare", "union"), ("tokenize", ""),
    *(("pretrain", method) for method in ("mae", "asl", *OTHERS)),
    *((stage.name, "") for stage in STAGES.values() if stage.evaluates), ("report", ""),
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which later stages find what earlier ones made."""
    made = tmp_path_factory.mktemp("traced")
    (made / ".dvc").mkdir()
    (made / "params.yaml").write_text(PARAMS)
    return made


@pytest.fixture(scope="module")
def tracer(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the program that runs stages."""
    here = os.pathsep.join([str(ROOT), str(ROOT / "tests/asl_core")])
    with subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), str(folder)], env=os.environ | {"PYTHONPATH": here},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process


@pytest.mark.parametrize(("stage", "variant"), RUNS)
def test_all_that_a_stage_loads_is_in_its_closure(
    stage: str, variant: str, tracer: "subprocess.Popen[str]"
) -> None:
    assert tracer.stdin is not None
    assert tracer.stdout is not None
    tracer.stdin.write(f"{stage} {variant}\n")
    tracer.stdin.flush()
    found = json.loads(tracer.stdout.readline())
    assert "error" not in found, found["error"]
    name = f"code/{stage}{'-' + variant if variant else ''}.txt"
    text = read_code(ROOT).identities[name]
    closure = {line.split("  ", 1)[1] for line in text.splitlines()}
    assert {*found["modules"], *found["files"]} - closure == set()
    if stage == "report":
        assert "pipeline/tables/paper.yaml" in found["files"]  # the tracing does see files


def test_every_stage_and_variant_that_can_run_here_is_traced() -> None:
    assert {stage for stage, _ in RUNS} == set(STAGES)
