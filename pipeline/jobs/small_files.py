"""The small texts of a stage run that are shown beside its pictures. Reads only."""

import hashlib
from pathlib import Path

WEIGHTS = (".safetensors", ".pt", ".pth")
"""Files that DVC keeps; they are referred to and never copied."""


def texts_beside(out: Path, root: Path) -> dict[str, str]:
    """Return configuration, result and a reference to the weights: {artifact name: text}.

    Weights are DVC's to keep: a text says where they are, how large, and their sha256.
    """
    sources = {
        "config.json": out / "config.json",
        "metrics.json": out.with_name(f"{out.name}.json"),
    }
    texts = {name: path.read_text() for name, path in sources.items() if path.is_file()}
    weights = sorted(path for path in out.glob("*") if path.suffix in WEIGHTS)
    lines = []
    for path in weights:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        lines.append(f"{shown}  {path.stat().st_size} bytes  sha256 {digest}\n")
    return texts | ({"weights.txt": "".join(lines)} if lines else {})
