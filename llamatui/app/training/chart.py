"""A loss curve in characters: training loss as a line of braille dots, validation losses as points on it.

The axis of losses is logarithmic: the first steps fall from 9 to 3; what matters later is between 3 and 1.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Literal

Role = Literal["axis", "train", "valid"]
Part = tuple[str, Role]

BUCKETS = 1024  # more than a screen has columns of dots
NEIGHBOURS = 2  # columns of dots at either side that are averaged with one
LABEL = 4  # columns for a loss
POINT = "●"
# Bits of the dots of a braille character: (row, column).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class Curve:
    """Means over stretches of steps, which double when there are too many: as small for a million steps."""

    def __init__(self) -> None:
        self._span = 1  # steps in a bucket
        self._sums: list[float] = []
        self._counts: list[int] = []

    def add(self, step: int, value: float) -> None:
        """`step` from 1. A value that is no number is left out."""
        if not math.isfinite(value):
            return
        while (step - 1) // self._span >= BUCKETS:
            self._span *= 2
            self._sums = [sum(self._sums[i : i + 2]) for i in range(0, len(self._sums), 2)]
            self._counts = [sum(self._counts[i : i + 2]) for i in range(0, len(self._counts), 2)]
        bucket = (step - 1) // self._span
        missing = bucket + 1 - len(self._sums)
        self._sums += [0.0] * missing
        self._counts += [0] * missing
        self._sums[bucket] += value
        self._counts[bucket] += 1

    def columns(self, n: int, steps: int) -> list[float | None]:
        """Smoothed means over `n` equal stretches of steps 1..`steps`; None where there is no step."""
        sums, counts = [0.0] * n, [0] * n
        for bucket, (total, count) in enumerate(zip(self._sums, self._counts, strict=True)):
            column = min(int((bucket + 0.5) * self._span / steps * n), n - 1)
            sums[column] += total
            counts[column] += count
        means: list[float | None] = []
        for column, count in enumerate(counts):
            near = slice(max(column - NEIGHBOURS, 0), column + NEIGHBOURS + 1)
            means.append(sum(sums[near]) / sum(counts[near]) if count else None)
        return means


def draw(
    curve: Curve, points: Sequence[tuple[int, float]], steps: int, width: int, height: int
) -> list[list[Part]]:
    """`height` lines of `width` columns, in parts of one role each.

    Args:
        points: (step, loss) of evaluations.
        steps: Where the axis ends.

    Returns:
        Nothing where there is no room for a chart.
    """
    columns, rows = width - LABEL - 2, height - 2  # of the area between the axes
    if columns < 10 or rows < 2:
        return []
    line = curve.columns(2 * columns, steps)
    points = [(step, loss) for step, loss in points if math.isfinite(loss) and 0 <= step <= steps]
    losses = [*(value for value in line if value is not None), *(loss for _, loss in points)]
    scale = Scale(losses or [1.0], 4 * rows)

    cells = [[0] * columns for _ in range(rows)]
    for x, y in _connected([None if value is None else scale.dot(value) for value in line]):
        cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    grid: list[list[Part]] = [
        [(chr(0x2800 + bits) if bits else " ", "train") for bits in row] for row in cells
    ]
    for step, loss in points:
        grid[scale.dot(loss) // 4][_column(step, steps, columns)] = (POINT, "valid")

    labels = scale.ticks(rows) if losses else {}
    result: list[list[Part]] = []
    for y, row in enumerate(grid):
        axis = f"{labels[y]:>{LABEL}} ┤" if y in labels else " " * (LABEL + 1) + "│"
        parts = groupby(row, key=lambda cell: cell[1])
        result.append([(axis, "axis"), *(("".join(c for c, _ in cells), role) for role, cells in parts)])
    return result + [[(text, "axis")] for text in _step_axis(steps, columns)]


def axis_end(step: int, max_iters: int) -> int:
    """A round number of steps that leaves some room after `step`, at most the run's last."""
    power = 10 ** max(len(str(step)) - 1, 1)
    end = next(int(power * m) for m in (1, 1.5, 2, 3, 4, 5, 7, 10) if power * m > step)
    return max(min(end, max_iters), 1)


class Scale:
    """From losses to rows of dots, the first at the top."""

    def __init__(self, losses: list[float], dots: int) -> None:
        self._dots = dots
        high = max(*losses, 1e-3)
        low = max(min(losses), high / 1000)
        if high < 1.1 * low:  # a flat line lies in the middle
            low, high = low / 1.05, high * 1.05
        self._low, self._high = math.log(low), math.log(high)

    def dot(self, loss: float) -> int:
        below = (self._high - math.log(max(loss, 1e-9))) / (self._high - self._low)
        return min(max(round(below * (self._dots - 1)), 0), self._dots - 1)

    def ticks(self, rows: int) -> dict[int, str]:
        """Round losses by their row: the roundest first, and others where there is room between them."""
        low, high = math.exp(self._low), math.exp(self._high)
        apart = 2 if rows < 12 else 4
        found: dict[int, str] = {}
        for step in (500, 200, 100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
            if len(found) * apart >= rows or high / step > 300:
                break
            for multiple in range(math.ceil(low / step), math.floor(high / step) + 1):
                row, label = self.dot(multiple * step) // 4, f"{multiple * step:g}"
                if multiple and len(label) <= LABEL and all(abs(row - r) >= apart for r in found):
                    found[row] = label
        return found


def _connected(line: list[int | None]) -> Iterable[tuple[int, int]]:
    """Dots (x, y) of a line through those that are known, without gaps."""
    known = [(x, y) for x, y in enumerate(line) if y is not None]
    yield from known[:1]
    for (x0, y0), (x1, y1) in pairwise(known):
        last = y0
        for x in range(x0 + 1, x1 + 1):
            y = round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
            toward = 1 if y >= last else -1
            # A steep piece fills the column from where the last one ended.
            yield from ((x, between) for between in range(last + toward, y, toward))
            yield x, y
            last = y


def _column(step: int, steps: int, columns: int) -> int:
    return min(int(step / steps * columns), columns - 1)


def _step_axis(steps: int, columns: int) -> tuple[str, str]:
    """The axis of steps, and its labels."""
    wanted = steps / max(columns // 14, 1)
    power = 10 ** math.floor(math.log10(max(wanted, 1)))
    apart = next(power * m for m in (1, 2, 5, 10) if power * m >= wanted)
    axis, labels = ["─"] * columns, ""
    for step in range(0, steps + 1, apart):
        column, text = _column(step, steps, columns), f"{step:,}"
        start = min(max(column - len(text) // 2, 0), columns - len(text))
        if step == 0 or start > len(labels) + 1:
            axis[column] = "┬"
            labels = labels.ljust(start) + text
    indent = " " * (LABEL + 1)
    return f"{indent}└{''.join(axis)}", f"{indent} {labels}"
