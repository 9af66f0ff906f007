"""What a watched run is told in words, from constructed curves."""

import math

import pytest

from asl_core.analysis.watched import (
    BELOW,
    COLLAPSED,
    FLAT,
    LEVEL,
    find_signs,
    loss_fall,
)


def said(**values: float) -> dict[str, str]:
    """Return what is wrong with a run, given its numbers without the prefix."""
    return dict(find_signs({f"watch/{name}": value for name, value in values.items()}))


def accuracies(value: float, floor: float, count: int = 1000) -> dict[str, float]:
    return {"knn_acc1_cls": value, "knn_acc1_cls_untrained": floor, "query_images": count}


def test_an_encoder_below_its_floor_is_named_with_both_numbers_and_their_error() -> None:
    more = {"probe_acc1_mean": 60.0, "probe_acc1_mean_untrained": 35.0}
    found = said(**accuracies(33.8, 37.3), **more)
    assert found == {
        BELOW: "k-NN of [cls] 33.8 against 37.3 % (the untrained encoder; standard error of a "
        "difference 2.1)"
    }
    error = 100 * math.sqrt((0.338 * 0.662 + 0.373 * 0.627) / 1000)
    assert f"{error:.1f}" == "2.1"


@pytest.mark.parametrize(
    ("value", "sign"), [(29.9, BELOW), (30.0, LEVEL), (34.0, LEVEL), (34.3, None), (50.0, None)]
)
def test_two_standard_errors_above_the_floor_are_above_it(value: float, sign: str | None) -> None:
    # the error of the difference is 2.08 at 34, 2.09 at 34.3
    assert list(said(**accuracies(value, 30.0))) == ([sign] if sign else [])


def test_fewer_images_tell_less() -> None:
    assert said(**accuracies(40.0, 30.0, count=1000)) == {}
    assert list(said(**accuracies(40.0, 30.0, count=100))) == [LEVEL]


def test_branches_that_predict_one_thing_and_move_nothing_have_collapsed() -> None:
    assert said(prediction_distance=0.003, alignment_gradient=0.018) == {
        COLLAPSED: "the two branches' predictions differ by 0.3 % of their size, and the "
        "alignment's gradient on the encoder is 1.8 % of the pixel loss's"
    }
    assert said(prediction_distance=0.003, alignment_gradient=0.49) == {}  # weighs, if small
    assert said(prediction_distance=0.05, alignment_gradient=0.018) == {}
    assert said(prediction_distance=0.0, alignment_gradient=0.0).keys() == {COLLAPSED}
    assert said(prediction_distance=0.0) == {}  # trained without alignment


@pytest.mark.parametrize(
    ("fall", "words"),
    [(0.004, "it fell by 0.4 %"), (0.0, "it fell by 0 %"), (-0.03, "it rose by 3 %")],
)
def test_a_loss_that_does_not_fall_is_flat(fall: float, words: str) -> None:
    assert said(loss_fall=fall)[FLAT].endswith(words)
    assert said(loss_fall=0.011) == {}


def test_the_fall_is_between_the_second_and_the_last_quarter() -> None:
    falling = [(step, 100.0 if step <= 10 else 2 - step / 40) for step in range(1, 41)]
    second, last = 2 - 15.5 / 40, 2 - 35.5 / 40
    assert loss_fall(falling) == pytest.approx((second - last) / second)
    assert loss_fall([(step, 0.7) for step in range(10, 401, 10)]) == pytest.approx(0)
    rising = [(step, float(step)) for step in range(1, 41)]
    assert loss_fall(rising) == pytest.approx(-20 / 15.5)
    assert loss_fall([(step, -value) for step, value in falling]) == pytest.approx(
        (last - second) / second
    )


def test_too_few_log_lines_say_nothing_of_a_loss() -> None:
    assert loss_fall([]) is None
    assert loss_fall([(step, 1.0) for step in range(1, 9)]) is None
    assert loss_fall([(step, 1.0) for step in range(1, 13)]) == 0
