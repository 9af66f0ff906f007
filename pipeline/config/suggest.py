"""Say which names would have been valid, the likeliest first."""

import difflib
import itertools
import re
from collections.abc import Iterable

CLOSE = 0.6
"""Share of two names that must be alike for one to be meant by the other."""

LONGEST = 100
"""Characters of a value that are quoted."""


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to the given one, if any is close.

    Capitals and what separates words count for nothing. Of equally close names the one counts that
    begins alike, `vit-b` for `vit_base`; if none is close, the one whose words are its beginnings.
    """
    given, names = _words(name), list(valid)

    def likeness(candidate: str) -> tuple[float, int]:
        words = _words(candidate)
        alike = (a == b for a, b in zip(words, given, strict=False))
        ratio = difflib.SequenceMatcher(None, words, given).ratio()
        return ratio, len(list(itertools.takewhile(bool, alike)))

    best = max(names, key=likeness, default=None)
    if best is not None and likeness(best)[0] >= CLOSE:
        return best
    short = [each for each in names if _abbreviates(_words(each), given)]
    return max(short, key=len, default=None)


def _words(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower())


def _abbreviates(short: str, long: str) -> bool:
    """Say whether `vit-s` stands for `vit-small-patch16`."""
    beginnings, words = short.split("-"), long.split("-")
    pairs = zip(words, beginnings, strict=False)
    return len(beginnings) <= len(words) and all(word.startswith(part) for word, part in pairs)


def hint(name: object, valid: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or nothing."""
    match = nearest(name, valid)
    return f"; did you mean '{match}'?" if match else ""


def one_of(valid: Iterable[str]) -> str:
    """Return the valid names as a list to be read."""
    return ", ".join(valid) or "none"


def folded(label: object) -> str:
    """Return a label without what people do not retype: capitals, more than one space."""
    return " ".join(str(label).split()).casefold()


def printable(text: str) -> str:
    """Return a text without line ends and other control characters: they are written out."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def shown(value: object) -> str:
    """Return a value as it is quoted in one line."""
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Return the line for a name that does not exist."""
    names = list(valid)
    return f"unknown {kind} {shown(str(name))}{hint(name, names)} (valid: {one_of(names)})"
