"""Numbers as people read them, rounded in one way wherever one is printed.

Half is rounded away from zero: 21.25 is 21.3, as 30.75 is 30.8. What Python formats by itself goes
to the even digit, or to where the binary fraction happens to lie.
"""

from decimal import ROUND_HALF_UP, Decimal, localcontext

_TRUSTED_DIGITS = 12
"""91.65 may be stored as 91.64999999999999: what lies behind so many digits is arithmetic."""


def fixed(value: float, decimals: int) -> str:
    """Return a finite number with so many decimals; a zero has no sign."""
    with localcontext(rounding=ROUND_HALF_UP):
        text = f"{Decimal(f'{value:.{_TRUSTED_DIGITS}g}'):.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.") else text


def signed(value: float, decimals: int) -> str:
    """Return a difference with so many decimals and its sign; zero has none."""
    text = fixed(value, decimals)
    return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def significant(value: float, digits: int) -> str:
    """Return a finite number with so many significant digits, trailing zeros left out."""
    with localcontext(rounding=ROUND_HALF_UP):
        rounded = Decimal(f"{value:.{_TRUSTED_DIGITS}g}")
        rounded = round(rounded, digits - 1 - rounded.adjusted())
    return f"{float(rounded):.{digits}g}"
