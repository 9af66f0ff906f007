"""Say which names would have been valid, the likeliest first."""

import difflib
from collections.abc import Iterable

LONGEST = 100
"""Characters of a value that are quoted."""


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to the given one, if any is close."""
    close = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return close[0] if close else None


def hint(name: object, valid: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` or nothing."""
    match = nearest(name, valid)
    return f"; did you mean '{match}'?" if match else ""


def one_of(valid: Iterable[str]) -> str:
    """Return the valid names as a list to be read."""
    return ", ".join(valid) or "none"


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
