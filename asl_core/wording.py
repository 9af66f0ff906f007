"""Words of messages that depend on a number."""


def counted(number: float, noun: str) -> str:
    """Return a whole number of things: `1 image`, `2 images`, `10,000 steps`.

    Args:
        number: How many; rounded.
        noun: What they are, in the singular; an s makes the plural.
    """
    return f"{number:,.0f} {noun}{'' if round(number) == 1 else 's'}"
