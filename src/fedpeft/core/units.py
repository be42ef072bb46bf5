"""Amounts as people and JSON read them."""

from collections.abc import Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Context, Decimal
from math import isfinite

LESS_IS_BETTER = ("loss", "perplexity", "mae", "rmse", "ece", "wer", "cer")
"""Metrics whose best value is the lowest; of all others it is the highest."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def is_less_better(metric: str) -> bool:
    """Whether a metric's best value is the lowest; one "at" some place is as it is elsewhere."""
    return metric.partition(" at ")[0] in LESS_IS_BETTER


def size(count: float) -> str:
    """Bytes in the largest unit of 1,024 that leaves at least 1.

    >>> size(1023), size(1536), size(5 * 1024**2)
    ('1023 B', '1.5 KiB', '5.0 MiB')
    """
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {UNITS[power]}" if power else f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours.

    >>> duration(9.5), duration(12.3), duration(185), duration(7620)
    ('9.5 s', '12 s', '3 min 05 s', '2 h 07 min')
    """
    # From these bounds on the rounded number would be that of the next form, "10.0 s" or "120 s".
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def say_epsilon(bound: float | None) -> str:
    """An upper bound of ε in three digits, for people: "7.99"; "not bounded" of None and infinity.

    It is rounded up, so that no more is promised than the accountant found.
    """
    if bound is None or not isfinite(bound):
        return "not bounded"
    # twelve digits first: what an accountant's last bits say must not lift 3.0 to 3.01
    exact = Decimal(f"{bound:.12g}")
    return f"{Context(prec=3, rounding=ROUND_CEILING).plus(exact):f}"


def now() -> str:
    """The local time, for a line in a log: "2026-05-01 09:30:00"."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity."""
    return {name: value if isfinite(value) else None for name, value in metrics.items()}
