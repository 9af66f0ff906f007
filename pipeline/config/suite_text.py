"""Change one value of a suite.yaml and leave every other character as a person has written it."""

import re
from collections.abc import Sequence

from ruamel.yaml import YAML, MappingNode, Node, SequenceNode

from pipeline.config.sweeps import KEY

_ALIAS = re.compile(r"\s*:\s*(\*[^\s,\[\]{}]+)")
_MARK = "\ufeff"  # some editors begin a file with it


def with_sweep(text: str, experiment: str, value: str, comment: Sequence[str]) -> str:
    """Return the text of a suite.yaml with another sweep of an experiment.

    What the experiment has of its own is replaced; what it inherits is overridden.

    Args:
        text: Of the file.
        experiment: Its key.
        value: Of `sweep`, on one line.
        comment: Lines to stand above, without `# `. Comments within a block that is replaced go
            with it.

    Raises:
        ValueError: It is written in a way that cannot be changed in place.
    """
    mark, text = (_MARK, text[1:]) if text.startswith(_MARK) else ("", text)
    key, item = _pair(_value(YAML(typ="safe", pure=True).compose(text), "experiments"), experiment)
    if not isinstance(item, MappingNode) or _begin(item) < _end(key):
        raise ValueError(f"{experiment} is no mapping of its own")
    own = [pair for pair in item.value if pair[0].value == KEY]
    if own:
        name, old = own[0]
        start, end = _span(text, name, old)
        above = key if item.flow_style else name
        if "\n" in text[_end(name) : start]:  # a block below its key, whose own line may say more
            start = text.index(":", _end(name)) + 1
            said = text[start : text.index("\n", start)].strip()
            value = f" {value}{'  ' * bool(said)}{said}"
        changed = text[:start] + value + text[end:]
    elif item.flow_style:
        above, place = key, _end_of_pairs(text, item)
        changed = f"{text[:place]}{', ' if item.value else ''}{KEY}: {value}{text[place:]}"
    else:
        above = item.value[0][0]
        place = _begin(above)
        indent = text[_line_start(text, place) : place]
        if indent.strip():
            raise ValueError(f"{experiment} begins on the line of another key")
        changed = f"{text[:place]}{KEY}: {value}{_newline(text)}{indent}{text[place:]}"
    at = _line_start(text, _begin(above))
    indent = text[at : at + re.match(r"[ ]*", text[at:]).end()]  # type: ignore[union-attr]
    lines = "".join(f"{indent}# {line}{_newline(text)}" for line in comment)
    return mark + changed[:at] + lines + changed[at:]


def _pair(node: Node, name: str) -> tuple[Node, Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == name:
                return key, value
    raise ValueError(f"{name} is not written out")


def _value(node: Node | None, name: str) -> Node:
    if node is None:
        raise ValueError("the file is empty")
    return _pair(node, name)[1]


def _begin(node: Node) -> int:
    return node.start_mark.index


def _end(node: Node) -> int:
    return node.end_mark.index


def _span(text: str, key: Node, value: Node) -> tuple[int, int]:
    """Return where a value begins and ends; of an alias, where that stands."""
    if _begin(value) < _end(key):
        found = _ALIAS.match(text, _end(key))
        if found is None:
            raise ValueError(f"{key.value} is an alias")
        return found.span(1)
    return _begin(value), _last(value)


def _last(node: Node) -> int:
    """Return where a value ends; a block's own mark lies behind the comments that follow it."""
    if not isinstance(node, MappingNode | SequenceNode) or node.flow_style or not node.value:
        return _end(node)
    last = node.value[-1] if isinstance(node, SequenceNode) else node.value[-1][1]
    if _begin(last) < _begin(node):
        raise ValueError("it ends with an alias")
    return _last(last)


def _end_of_pairs(text: str, item: MappingNode) -> int:
    """Return where the last pair of a flow mapping ends."""
    return _span(text, *item.value[-1])[1] if item.value else _end(item) - 1


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
