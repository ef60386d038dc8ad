"""Rows of a speed measurement, as JSON objects, Markdown and columns for people."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from llamatui.app.bench.speed import Bench
from llamatui.app.cli.terminal import counted


@dataclass(frozen=True, slots=True)
class Row:
    """One case of one runner. The names of the fields are those of the JSON."""

    model: str
    backend: str
    threads: int
    test: str
    """prefill or decode."""
    n_tokens: int
    depth: int
    tps_median: float
    tps_min: float
    tps_max: float
    bytes_per_token: int
    """Bytes of weights read to decode one token; the KV cache is not counted."""
    bandwidth_fraction: float | None
    """Of the memory's read bandwidth, what decode's weights take: tps_median · bytes_per_token / bandwidth.
    Above 1 where the weights fit the processor's caches. None for prefill."""


def rows_of(bench: Bench) -> list[Row]:
    """A row for each series that has been measured at least once."""
    rows = []
    for series in bench.series:
        if not series.tps:
            continue
        runner, case = series.runner, series.case
        median = statistics.median(series.tps)
        bandwidth = bench.bandwidth(runner.threads) if case.kind == "decode" else None
        rows.append(
            Row(
                model=runner.model,
                backend=runner.name,
                threads=runner.threads,
                test=case.kind,
                n_tokens=case.n_tokens,
                depth=case.depth,
                tps_median=median,
                tps_min=min(series.tps),
                tps_max=max(series.tps),
                bytes_per_token=runner.bytes_per_token,
                bandwidth_fraction=median * runner.bytes_per_token / bandwidth if bandwidth else None,
            )
        )
    return rows


COLUMNS = ("backend", ">threads", "test", ">depth", ">tok/s", ">min", ">max", ">MB/token", ">bandwidth")
"""Heads of `cells`; `>` marks a column of numbers."""


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.backend,
        str(row.threads),
        f"{row.test} {row.n_tokens}",
        str(row.depth),
        _rate(row.tps_median),
        _rate(row.tps_min),
        _rate(row.tps_max),
        f"{row.bytes_per_token / 1e6:.4g}",
        "" if row.bandwidth_fraction is None else f"{row.bandwidth_fraction:.0%}",
    )


def _rate(tps: float) -> str:
    return f"{tps:,.0f}" if tps >= 1000 else f"{tps:.1f}"


def markdown(rows: Sequence[Row]) -> str:
    """A table with aligned columns."""
    heads = [name.lstrip(">") for name in COLUMNS]
    table = [heads, *(list(cells(row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = [name.startswith(">") for name in COLUMNS]
    lines = [
        "| "
        + " | ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        + " |"
        for line in table
    ]
    rule = "|".join(
        "-" * (width + 1) + ":" if right else "-" * (width + 2)
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def legend(bench: Bench) -> str:
    """What the columns do not say: models, rounds, and what the memory gives."""
    rounds = max(len(series.tps) for series in bench.series)
    # A peer comes last, and has a file of its own.
    (model, _), *others = {series.runner.model: series.runner.name for series in bench.series}.items()
    models = [model, *(f"{name} runs {other}" for other, name in others)]
    speeds = [
        f"memory is read at {speed / 1e9:.1f} GB/s by {counted(threads, 'thread')}"
        for threads in sorted(bench.bandwidths)
        if (speed := bench.bandwidth(threads))
    ]
    return "; ".join([", ".join(models), f"median of {counted(rounds, 'round')}", *speeds])
