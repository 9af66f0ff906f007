"""The page of commands, from the help that the command line prints."""

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from pipeline.cli import app

PATH = "commands.md"
_EXAMPLE = re.compile(r"^(Examples?|Then|Or|Later): (.+)$", re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_CODE = re.compile(r"(`[^`]*`)")
_SPECIAL = re.compile(r"([\\*_<\[\]#])")
_UNIVERSAL = "--help"


def page() -> str:
    """Return the page as Markdown."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="asl-pipe")
    lines = [
        "# Commands",
        "",
        "What `asl-pipe COMMAND -h` prints, made from the command line when this site was built. "
        "What belongs together, and exit codes: [reference](reference.md#commands).",
        "",
    ]
    for name, command in group.commands.items():
        inner = command.context_class(command, info_name=name, parent=context)
        lines += _section(name, command, inner)
    return "\n".join(lines)


def _section(name: str, command: Any, context: Any) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from ("```sh", " ".join(usage.split()), "```", "")
    for paragraph in (command.help or "").split("\n\n"):
        example = _EXAMPLE.match(paragraph)
        if example:
            yield f"{example[1]}:"
            yield ""
            yield from ("```sh", " ".join(example[2].split()), "```")
        else:
            yield _text(paragraph)
        yield ""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or _UNIVERSAL in record[0]:
            continue
        yield f"`{record[0]}`"
        if meaning := _text(" ".join(record[1].split())):
            yield f":   {meaning}"
        yield ""


def _text(text: str) -> str:
    """Return text in which Markdown reads nothing but code: between backticks, and options."""
    return "".join(
        part if part.startswith("`") else _OPTION.sub(r"`\g<0>`", _SPECIAL.sub(r"\\\1", part))
        for part in _CODE.split(text)
    )
