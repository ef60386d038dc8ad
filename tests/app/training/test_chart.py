"""The loss curve in characters."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.training.chart import POINT, Curve, Scale, axis_end, draw


def curve_of(losses):
    curve = Curve()
    for step, loss in enumerate(losses, start=1):
        curve.add(step, loss)
    return curve


def text_of(lines):
    return ["".join(text for text, _ in line) for line in lines]


def test_a_falling_loss_runs_from_the_top_left_to_the_bottom_right():
    lines = text_of(draw(curve_of(math.exp(2 - s / 50) for s in range(100)), [], 100, 46, 12))
    area = [line[6:] for line in lines[:10]]
    first = [next(i for i, c in enumerate(line) if c != " ") for line in area]
    assert first == sorted(first)
    assert first[0] == 0
    assert area[-1].rstrip()[-1] != " "
    assert len(area[-1].rstrip()) == 40
    # A straight line where the axis is logarithmic.
    assert all(abs(x - 4 * y) <= 2 for y, x in enumerate(first))


def test_the_line_has_no_gaps_however_few_steps_there_are():
    lines = text_of(draw(curve_of([9.0, 2.0, 8.0, 1.5]), [], 4, 60, 14))
    columns = list(zip(*(line[6:].ljust(54) for line in lines[:12]), strict=True))
    inked = [any(c != " " for c in column) for column in columns]
    first, last = inked.index(True), len(inked) - inked[::-1].index(True)
    assert all(inked[first:last])
    assert last - first > 35  # from the middle of the first step to that of the last


def test_evaluations_are_points_of_their_own_role_at_their_step():
    lines = draw(curve_of([4.0] * 100), [(0, 8.0), (50, 4.0), (100, 2.0)], 100, 46, 12)
    found = []
    for y, line in enumerate(lines):
        x = 0
        for text, role in line:
            if role == "valid":
                assert text == POINT
                found.append((x - 6, y))
            x += len(text)
    assert found == [(0, 0), (20, 5), (39, 9)]


def test_labels_of_losses_are_round_and_apart():
    scale = Scale([1.2, 9.5], 4 * 15)
    ticks = scale.ticks(15)
    assert {"5", "2"} <= set(ticks.values())
    rows = sorted(ticks)
    assert all(b - a >= 2 for a, b in pairwise(rows))
    assert [float(ticks[row]) for row in rows] == sorted(map(float, ticks.values()), reverse=True)


def test_without_losses_there_are_axes_and_no_numbers_on_the_axis_of_losses():
    lines = text_of(draw(Curve(), [], 10, 46, 8))
    assert len(lines) == 8
    assert all(line.strip() == "│" for line in lines[:6])


def test_the_axis_of_steps_is_labelled_at_both_ends():
    *_, axis, labels = text_of(draw(curve_of([3.0]), [], 100, 60, 8))
    assert labels.split()[0] == "0"
    assert labels.split()[-1] == "100"
    assert axis.count("┬") == len(labels.split())


@pytest.mark.parametrize(
    ("step", "max_iters", "end"),
    [(0, 300, 10), (9, 300, 10), (10, 300, 15), (60, 300, 70), (299, 300, 300), (300, 300, 300), (5, 7, 7),
     (100_000, 100_000, 100_000), (1234, 100_000, 1500)],
)  # fmt: skip
def test_the_axis_of_steps_grows_in_round_numbers_up_to_the_end_of_the_run(step, max_iters, end):
    assert axis_end(step, max_iters) == end


def test_a_long_run_takes_no_more_memory_and_keeps_its_means():
    curve = Curve()
    for step in range(1, 20_001):
        curve.add(step, 2.0 if step <= 10_000 else 1.0)
    assert len(curve._sums) <= 1024
    columns = curve.columns(100, 20_000)
    assert columns[:47] == [2.0] * 47
    assert columns[-47:] == [1.0] * 47


def test_losses_that_are_no_numbers_are_left_out():
    curve = curve_of([math.nan, 2.0, math.inf])
    assert draw(curve, [(1, math.nan)], 10, 46, 8) == draw(curve_of_at(2, 2.0), [], 10, 46, 8)


def curve_of_at(step, loss):
    curve = Curve()
    curve.add(step, loss)
    return curve


@given(
    st.lists(st.floats(0, 1e6), max_size=30),
    st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1e6)), max_size=5),
    st.integers(1, 200),
    st.integers(0, 80),
    st.integers(0, 20),
)
def test_it_fills_its_room_whatever_the_losses(losses, points, steps, width, height):
    lines = draw(curve_of(losses), points, max(steps, len(losses)), width, height)
    if width >= 16 and height >= 4:
        assert len(lines) == height
        assert all(len(line) <= width for line in text_of(lines))
    else:
        assert lines == []
