import pytest

from asl_core.wording import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (0.6, "1 image"), (12345, "12,345 images")],
)
def test_one_thing_is_no_things(number: float, text: str) -> None:
    assert counted(number, "image") == text
