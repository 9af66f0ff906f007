"""A number is rounded in one way, wherever it is printed."""

import re
from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any

import pytest

from pipeline.rounding import fixed, signed, significant


@pytest.mark.parametrize(
    ("value", "decimals", "printed"),
    [
        (21.25, 1, "21.3"), (30.75, 1, "30.8"), (0.25, 1, "0.3"), (-21.25, 1, "-21.3"),
        (91.64999999999999, 1, "91.7"), (21.249, 1, "21.2"), (0.125, 2, "0.13"), (2.5, 0, "3"),
        (-0.04, 1, "0.0"), (0.0, 2, "0.00"), (99.95, 1, "100.0"), (1e300, 0, f"1{'0' * 300}"),
    ],
)  # fmt: skip
def test_half_goes_away_from_zero(value: float, decimals: int, printed: str) -> None:
    assert fixed(value, decimals) == printed


@pytest.mark.parametrize("images", [8, 40, 400, 2000, 5000, 10_000])
def test_every_accuracy_is_rounded_as_its_fraction_is(images: int) -> None:
    for right in range(images + 1):
        exact = floor(Fraction(1000 * right, images) + Fraction(1, 2))
        assert fixed(100.0 * (right / images), 1) == f"{exact // 10}.{exact % 10}"


@pytest.mark.parametrize(
    ("value", "digits", "printed"),
    [
        (0.125, 2, "0.13"), (21.25, 3, "21.3"), (2.0, 2, "2"), (0.000625, 2, "0.00063"),
        (9.995, 3, "10"), (0.0, 3, "0"), (-1.25, 2, "-1.3"), (12345678.0, 3, "1.23e+07"),
    ],
)  # fmt: skip
def test_digits_that_count(value: float, digits: int, printed: str) -> None:
    assert significant(value, digits) == printed


def test_a_difference_has_a_sign_unless_it_prints_as_zero() -> None:
    assert [signed(value, 1) for value in (0.25, -0.25, 0.04, -0.04)] == [
        "+0.3",
        "-0.3",
        "0.0",
        "0.0",
    ]


def test_all_formats_trace_and_compare_print_the_same_number(
    results: Any, say: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.result("linprobe", "mae", lp_acc1=21.25)
    results.result("linprobe", "asl", lp_acc1=30.75)
    results.lock()
    monkeypatch.chdir(results.folder)
    for form in ("text", "md", "latex", "html"):
        said = say("tables", "--format", form)
        numbers = re.findall(r"(?<![\d.])(?:21|30)\.\d(?!\d)", said)
        assert set(numbers) == {"21.3", "30.8"}, form
    assert "LP: 21.3 %" in say("trace", "tiny", "mae", "LP")
    assert "LP: 30.8 %" in say("trace", "tiny", "asl", "LP")
    assert {"21.25", "30.75", "+9.5"} <= set(say("compare", "mae", "asl").split())
