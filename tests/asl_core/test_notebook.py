"""The notebook of the documentation runs, and what is committed with it is what it makes."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/own_images.ipynb"
SHORTER = {
    "epochs=16": "epochs=1",
    "train=1000": "train=100",
    "chosen = [50, 250, 450, 650, 850]": "chosen = [5, 25, 45, 65, 85]",
}
"""Seconds of training in place of minutes."""


def kinds(outputs: list[Any]) -> set[str]:
    """Return what a cell gives to look at; lines on how far training is are no part of it."""
    shown = {kind for output in outputs for kind in output.get("data", {})}
    return shown | {output["name"] for output in outputs if output.get("name") == "stdout"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the event loop in which nbclient works
def test_every_cell_runs_and_gives_what_is_committed_with_it(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = [kinds(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    text = "\n".join(cell.source for cell in notebook.cells)
    for long, short in SHORTER.items():
        assert text.count(long) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    executed = [kinds(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert executed == committed
    assert sum("image/png" in shown for shown in executed) == 3


def test_what_is_committed_is_small_and_says_nothing_of_the_machine() -> None:
    assert NOTEBOOK.stat().st_size < 400_000
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/tmp/" not in text
    assert "site-packages" not in text  # of a warning
    assert str(Path.home()) not in text
    assert '"execution"' not in text  # times
