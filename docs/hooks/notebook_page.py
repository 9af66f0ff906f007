"""A notebook as a page: its text and code as they are, its outputs as text and pictures."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PICTURES = {"image/png": "png", "image/svg+xml": "svg"}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def pages(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield the page, and the pictures that it shows: path below docs, content."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines: list[str] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        for place, output in enumerate(cell["outputs"]):
            name = f"{notebook.stem}_files/{number}-{place}"
            for kind, extension in _PICTURES.items():
                if kind in output.get("data", {}):
                    content = _joined(output["data"][kind])
                    picture = f"{name}.{extension}"
                    yield picture, base64.b64decode(content) if extension == "png" else content
                    lines += [f"![Output of the cell above]({picture})", ""]
                    break
            else:
                text = _text_of(output)
                if text:
                    lines += ["```text", text, "```", ""]
    lead = f"\n\n[This page as a notebook]({notebook.name})\n"
    title, _, rest = "\n".join(lines).partition("\n")
    yield f"{notebook.stem}.md", f"{title}{lead}{rest}\n"


def _text_of(output: dict[str, Any]) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return _ESCAPES.sub("", _joined(text)).rstrip()


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
