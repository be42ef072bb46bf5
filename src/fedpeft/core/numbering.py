"""Numbers as a reader has them."""

from collections.abc import Iterable, Iterator


def number_ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, neighbours as one: "1-3, 7". The text is empty for none."""
    return ", ".join(
        f"{first}-{last}" if last > first else f"{first}" for first, last in _stretches(numbers)
    )


def _stretches(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each row of neighbours."""
    first = last = None
    for number in sorted(set(numbers)):
        if first is None or last is None or number > last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
