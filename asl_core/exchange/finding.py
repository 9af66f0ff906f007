"""The encoder in a checkpoint, whatever containers and prefixes it stands in."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asl_core.errors import InputError
from asl_core.exchange.origin import Branch
from asl_core.wording import counted

PATCH_WEIGHT = "patch_embed.proj.weight"
"""The tensor by which an encoder with timm's names is recognised."""

BRANCHES = {
    Branch.teacher: {"teacher", "momentum", "ema", "target", "k"},
    Branch.student: {"student", "base", "online", "q"},
}
"""Words in the names of two encoders of which one follows the other: `momentum_backbone`."""
EVALUATED = (
    "teacher", "base_encoder", "model_ema", "state_dict_ema", "ema", "model", "state_dict",
)  # fmt: skip
"""Which of several encoders counts, the first that is there: as their authors evaluate them, and
with averaged weights where there are such, as timm reads its own checkpoints."""

WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile and sharding put into names, before any part of a model."""
DEEPEST = 4
"""Containers in containers that are looked into."""


@dataclass(frozen=True)
class FoundEncoder:
    """One encoder of a checkpoint.

    Attributes:
        container: Key of the checkpoint that holds it, `a.b` for one in another; empty for none.
        prefix: What stands before its names there.
        tensors: By their names without the prefix.
        outside: Names of the container's other tensors.
        beside: Keys of the checkpoint beside the container.
    """

    container: str
    prefix: str
    tensors: dict[str, Tensor]
    outside: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def words(self) -> set[str]:
        """The parts of its place: {"state_dict", "module", "base_encoder"}."""
        parts = [*self.container.split("."), *self.prefix.split(".")]
        return {part.strip("_") for part in parts} - {""}

    @property
    def place(self) -> str:
        """Its place as `--prefix` takes it: `state_dict:module.base_encoder.`."""
        return ":".join(part for part in (self.container, self.prefix) if part)

    @property
    def is_of_moco(self) -> bool:
        """Whether its place is named as MoCo v3 names it."""
        return bool(self.words & {"base_encoder", "momentum_encoder"})

    def is_of(self, branch: Branch) -> bool:
        """Say whether its place names a branch."""
        return any(BRANCHES[branch] & set(word.split("_")) for word in self.words)


def find_encoder(
    path: Path, content: Mapping[str, Any], branch: Branch | None = None, prefix: str | None = None
) -> tuple[FoundEncoder, str | None]:
    """Find the encoder in a checkpoint.

    Args:
        path: Of the checkpoint, for messages.
        content: As read.
        branch: Which of two encoders; absent: the one its authors evaluate.
        prefix: Its place, where that decides; empty: the top.

    Returns:
        The encoder, and which others it was preferred to, where no option has said so.

    Raises:
        InputError: There is none, none of this branch, or it is not clear which one counts.
    """
    every = _encoders(path, content)
    if not every:
        raise InputError(
            f"{path} holds no {PATCH_WEIGHT} (it holds {_contents(content)}): not a ViT under "
            "timm's names; convert its names first"
        )
    found = every
    if prefix is not None:
        found = [encoder for encoder in every if encoder.place == prefix]
        found = found or [encoder for encoder in every if encoder.prefix == prefix]
        if not found:
            raise InputError(f"{path} has no encoder at {prefix!r}: it {_choice(every)}")
    if branch is not None:
        found = _of_branch(found, branch)
        if not found:
            raise InputError(f"{path} has no {branch}: it {_choice(every)}")
    for word in EVALUATED:
        preferred = [encoder for encoder in found if word in encoder.words]
        if preferred and len(found) > 1:
            found = preferred
    if len(found) > 1:
        raise InputError(f"{path} {_choice(found)}")
    chosen = found[0]
    if len(every) == 1 or branch is not None or prefix is not None:
        return chosen, None
    return chosen, f"{_counted(every)}: took {_shown(chosen)}; --prefix takes another"


def _choice(encoders: list[FoundEncoder]) -> str:
    """Say which encoders there are, and with which option each is chosen."""
    if len(encoders) == 1:
        return f"holds one encoder: {_counted(encoders)}; leave out --branch and --prefix"
    options = [f"--prefix {shlex.quote(encoder.place)}" for encoder in encoders]
    each = {branch: _of_branch(encoders, branch) for branch in (Branch.student, Branch.teacher)}
    if len(encoders) == 2 and all(len(alone) == 1 for alone in each.values()):
        options = [f"--branch {branch}" for branch in each]
    return f"holds {len(encoders)} encoders: {_counted(encoders)}; give {' or '.join(options)}"


def _counted(encoders: list[FoundEncoder]) -> str:
    return ", ".join(
        f"{_shown(each)} ({counted(len(each.tensors), 'tensor')})" for each in encoders
    )


def _shown(encoder: FoundEncoder) -> str:
    return encoder.place or "the top"


def _contents(content: Mapping[str, Any]) -> str:
    """Say what a checkpoint without an encoder holds."""
    counts = Counter(
        ":".join(part for part in (container, name.split(".")[0]) if part)
        for container, tensors in _tables(content)
        for name in tensors
    )
    tensors = [f"{name}: {counted(count, 'tensor')}" for name, count in counts.items()]
    return (
        ", ".join((tensors or [repr(str(name))[1:41].rstrip("'") for name in content])[:5])
        or "nothing"
    )


def _of_branch(found: list[FoundEncoder], branch: Branch) -> list[FoundEncoder]:
    """Return the encoders of a branch; a student may have no name but the teacher beside it."""
    named = [encoder for encoder in found if encoder.is_of(branch)]
    others = [encoder for encoder in found if not encoder.is_of(Branch.teacher)]
    unnamed = branch == Branch.student and not named and len(others) < len(found)
    return others if unnamed else named


def _tables(
    content: Mapping[Any, Any], container: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of a checkpoint by name, for each container of such."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    yield container, {name: value for name, value in named.items() if isinstance(value, Tensor)}
    for name, value in named.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _tables(value, f"{container}.{name}".lstrip("."), depth + 1)


def _encoders(path: Path, content: Mapping[str, Any]) -> list[FoundEncoder]:
    found: list[FoundEncoder] = []
    for container, tensors in _tables(content):
        odd = next((name for name in (container, *tensors) if not name.isprintable()), None)
        if odd is not None:
            raise InputError(f"{path} holds the name {odd!r}, no name of a tensor; save it anew")
        prefixes = [
            name.removesuffix(PATCH_WEIGHT)
            for name in tensors
            if name.endswith(PATCH_WEIGHT)
            and name.removesuffix(PATCH_WEIGHT)[-1:] in ("", ".", "_")
        ]
        keys = {str(key) for key in content}
        beside = keys - (set(tensors) if container == "" else {container.split(".")[0]})
        for prefix in prefixes:
            inner = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            own = [
                n for n in tensors if n.startswith(prefix) and not (inner and n.startswith(inner))
            ]
            outside = tuple(name for name in tensors if name not in set(own))
            table = _renamed(path, {name.removeprefix(prefix): tensors[name] for name in own})
            found.append(FoundEncoder(container, prefix, table, outside, tuple(sorted(beside))))
    return found


def _renamed(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the wrappers' names.

    Raises:
        InputError: Two have one name then.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name)
        if plain in renamed:
            raise InputError(f"{path} holds {plain} twice, wrapped and not; save one of them alone")
        renamed[plain] = tensor
    return renamed
