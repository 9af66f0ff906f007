"""The files of a new project as text; what was chosen is told in their comments and in lines."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from asl_core.wording import counted
from pipeline.config.params import NAME
from pipeline.starting.images import Look
from pipeline.starting.machine import Machine
from pipeline.starting.regimes import MOST_FOR_NEIGHBOURS, Choice, Evaluation, max_side_of

PACKAGE_DATA = ("templates/*.j2", "templates/*.txt")
_PROBE_STEPS = 2_000
_WIDTH = 94


def render(template: str, **values: Any) -> str:
    """Return a template of this package, filled."""
    environment = Environment(
        loader=PackageLoader("pipeline.starting"), autoescape=False, undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["quoted"] = quoted
    return environment.get_template(template).render(**values)


def quoted(text: str) -> str:
    """Return a text as YAML has it between quotes."""
    return json.dumps(text, ensure_ascii=False)


def suite_name(folder: str) -> str:
    """Return a name for a suite, in letters that every tool takes, from that of its folder."""
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9_-]+", "-", plain).lstrip("-_0123456789").rstrip("-_")
    return name if NAME.fullmatch(name) else "images"


def params_text(
    suite: str,
    title: str,
    minutes: float,
    machine: Machine,
    look: Look,
    evaluation: Evaluation | None,
    choice: Choice,
) -> str:
    """Return params.yaml."""
    own = evaluation is not None and evaluation.look is look
    other = None if own else evaluation
    return render(
        "params.yaml.j2",
        day=date.today().isoformat(),
        machine=machine.words,
        minutes=f"{minutes:g}",
        suite=suite,
        title=title,
        images_comment=_wrapped(_about(look, choice, labels=own)),
        images_entry=entry(look, choice.holdout, choice.max_side, labels=own),
        labelled_comment=_wrapped([_sizes(other.look), _classes(other.look)]) if other else [],
        labelled_entry=entry(other.look, other.holdout, _other_side(other, choice), labels=True)
        if other
        else [],
        experiments_comment=_wrapped(why(look, choice, machine)),
        model=model_text(choice),
        on_device=choice.on_device,
        epochs=f"{choice.epochs:<11} # each method sees {choice.seen:,} images",
        batch=f"{choice.batch:<7} # {choice.steps:,} steps",
        lr=None if choice.lr is None else _number(choice.lr),
        warmup=f"{choice.warmup:g}",
        snapshots=4 if choice.rung.published else 8,
        precision=choice.precision,
        evaluation=None if evaluation is None else evaluation.dataset,
        **_evaluated(evaluation),
        analyzed=min(5000, tested_images(look, choice.holdout)),
    )


def cluster_text(choice: Choice, machine: Machine) -> str:
    """Return cluster.yaml."""
    comment = "        # loader processes"
    if choice.workers == 0:
        comment += ": images stay in memory" if choice.on_device else ": there is one core"
    return render(
        "cluster.yaml.j2", workers=choice.workers, workers_comment=comment,
        micro_batch=choice.micro_batch, compile=choice.compile, gpu=machine.gpu,
        cpus=min(machine.cores, 8),
    )  # fmt: skip


def readme_text(title: str, look: Look, choice: Choice, machine: Machine) -> str:
    """Return README.md."""
    return render(
        "README.md.j2", title=title, path=str(look.folder),
        expected=f"Expected on {machine.words}: {length_of(choice)}.",
    )  # fmt: skip


def length_of(choice: Choice) -> str:
    """Return what all is expected to take, and of what it consists."""
    parts = ", ".join(f"{name} {duration(s)}" for name, s in choice.seconds.items() if s >= 1)
    return f"about {duration(sum(choice.seconds.values()))} ({parts})"


def duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def entry(look: Look, holdout: float | None, max_side: int | None, *, labels: bool) -> list[str]:
    """Return the lines of a dataset in params.yaml."""
    if look.is_split:
        return ["source: imagefolder", f"path: {quoted(str(look.folder))}"]
    lines = [
        "source: images", f"path: {quoted(str(look.folder))}",
        f"labels: {'folder' if labels else 'none'}",
        f"holdout: {holdout:g}       # {tested_images(look, holdout):,} images to test on, about",
    ]  # fmt: skip
    if max_side is not None:
        lines.append(f"max_side: {max_side}        # larger ones are packed as large as that")
    return lines


def tested_images(look: Look, holdout: float | None) -> int:
    """Return how many images there are to test on, about where they are held out."""
    return look.tested or max(1, round(look.count * (holdout or 0.0)))


def model_text(choice: Choice) -> str:
    """Return the value of `model` in params.yaml."""
    rung = choice.rung
    if not rung.overrides:
        return rung.name
    fields = ", ".join(f"{name}: {value}" for name, value in rung.overrides.items())
    return f"{{size: {rung.name}, {fields}}}"


def why(look: Look, choice: Choice, machine: Machine) -> list[str]:
    """Return the reasons for size, length and batch, a sentence each."""
    vit = choice.rung.model
    size = (
        f"An encoder of {vit.depth} blocks of width {vit.embed_dim} on {vit.image_size} px, "
        f"patches of {vit.patch_size}, with a decoder of {vit.decoder_depth} of "
        f"{vit.decoder_embed_dim}"
    )
    if choice.rung.published:
        reason = "by MAE's published rates: the time holds the images that this size wants."
    elif choice.rung.wanted:
        reason = (
            f"it wants {choice.rung.wanted:,} images or more until it is worth its time, and gets "
            "them; a larger one would not."
        )
    else:
        reason = (
            "the smallest: in little time few wide blocks, small patches, a shallow decoder and "
            "many small steps learn; a larger encoder would see too few images."
        )
    lines = [f"{size}: {reason}"]
    lines.append(
        f"Expected: {length_of(choice)}; a tenth of the time is kept back. Steps were timed on "
        f"{machine.words}."
    )
    if look.long_side > 0 and choice.rung.model.image_size * 4 < look.short_side:
        lines.append(
            f"Images of {look.short_side} x {look.long_side} px lose most of their detail at "
            f"{vit.image_size} px; more time, or a GPU, affords more."
        )
    return [*lines, *(f"Note: {note}." for note in choice.notes)]


def told(look: Look, evaluation: Evaluation | None) -> list[str]:
    """Return what was found in the folders, for the terminal, a line each."""
    lines = [f"images: {_sizes(look)}"]
    if evaluation is None:
        return [*lines, "labels: none, so no k-NN and no probe; --labelled FOLDER names images in "
                        "class folders"]  # fmt: skip
    if evaluation.look is not look:
        lines.append(f"labelled: {_sizes(evaluation.look)}")
    return [*lines, f"labels: {_classes(evaluation.look)}"]


# --- words


def _about(look: Look, choice: Choice, *, labels: bool) -> list[str]:
    lines = [_sizes(look)]
    if labels:
        lines.append(_classes(look))
    if choice.max_side is not None:
        side = choice.rung.model.image_size
        lines.append(
            f"Larger than the encoder's {side} px need be: packed with a longer side of "
            f"{choice.max_side}, they decode in a fraction of the time, and crops lose nothing."
        )
    if look.is_split:
        lines.append("train/ and val/ are a split: it is kept.")
    return lines


def _sizes(look: Look) -> str:
    shape = f"{look.short_side} x {look.long_side} px"
    shape = f"all {shape}" if look.one_size else f"half of them over {shape}"
    text = f"{look.count:,} files, of {look.sampled} tried {shape}"
    return text + (f", {look.unreadable} of these not to be opened." if look.unreadable else ".")


def _classes(look: Look) -> str:
    """Return what the class folders are; nobody said that they are classes."""
    names = [*look.classes]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    least, most = min(look.classes.values()), max(look.classes.values())
    return (
        f"{counted(len(names), 'folder')} of {least:,} to {most:,} images are taken for classes: "
        f"{shown}. Where they are none: labels: none (--labels none)."
    )


def _other_side(evaluation: Evaluation, choice: Choice) -> int | None:
    return max_side_of(evaluation.look, choice.rung.model.image_size)


def _evaluated(evaluation: Evaluation | None) -> dict[str, Any]:
    """Return what the sections of evaluations say."""
    if evaluation is None:
        return {"probe": None, "grid_k": None, "grid_k_comment": ""}
    train = evaluation.train
    batch = 512
    while batch > 32 and batch > train // 8:
        batch //= 2
    epochs = max(10, min(100, math.ceil(_PROBE_STEPS * batch / train)))
    voters = [k for k in (5, 10, 20, 100, 200) if k <= max(5, train * 0.9 / 10)]
    comment = "   # how many vote is decided on training images held out"
    if train > MOST_FOR_NEIGHBOURS:
        comment = f"   # compares with {MOST_FOR_NEIGHBOURS:,} images at most"
    return {
        "probe": {"epochs": epochs, "batch": batch, "warmup": max(1, epochs // 10)},
        "grid_k": f"[{', '.join(map(str, voters[-4:]))}]",
        "grid_k_comment": comment,
    }


def _number(value: float) -> str:
    """Return a rate as YAML reads a number: with a point."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0")
    return f"{mantissa}{'0' * mantissa.endswith('.')}e{int(exponent)}"


def _wrapped(sentences: Iterable[str]) -> list[str]:
    """Return sentences as comment lines."""
    lines: list[str] = []
    for sentence in sentences:
        line = ""
        for word in sentence.split(" "):
            if line and len(line) + 1 + len(word) > _WIDTH:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
