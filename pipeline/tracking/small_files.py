"""The small texts of a stage run that are shown beside its pictures. Reads only."""

import contextlib
import hashlib
import os
from pathlib import Path

from pipeline.stages.table import encoder_beside

WEIGHTS = (".safetensors", ".pt", ".pth")
"""Files that DVC keeps; runs refer to them and never hold them."""

WEIGHTS_TEXT = "weights.txt"
"""The text that refers to them."""


def texts_beside(out: Path, root: Path) -> dict[str, str]:
    """Return configuration, result and a reference to the weights: {artifact name: text}.

    Weights are DVC's to keep: a text says where they are, how large, and their sha256.
    """
    sources = {
        "config.json": [out / "config.json"],
        "metrics.json": [out / "metrics.json", out.with_name(f"{out.name}.json")],
    }
    texts: dict[str, str] = {}
    for name, paths in sources.items():
        for path in paths:  # the metrics of the suite last: in a run's scratch there are none
            with contextlib.suppress(FileNotFoundError):
                texts[name] = path.read_text()
    lines = []
    for path in weights_in(out):
        # a file may be gone again: DVC links outputs anew when a stage has ended
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            shown = path.relative_to(root) if path.is_relative_to(root) else path
            size = os.fstat(file.fileno()).st_size
            lines.append(f"{shown}  {size} bytes  sha256 {digest}\n")
    return texts | ({WEIGHTS_TEXT: "".join(lines)} if lines else {})


def weights_in(details: Path) -> list[Path]:
    """Return a run's files of weights: those at the top of its details and of its encoder."""
    folders = [details, encoder_beside(details)]
    files = [file for folder in folders if folder is not None for file in folder.glob("*")]
    return sorted(file for file in files if file.suffix in WEIGHTS)
