"""Pictures of more than 8 bits: which of their values become black and white.

A model's task sees 8 bits. X-rays and CT slices have 10 to 16, or are floating-point numbers, and
most of that range is often unused: to keep the upper 8 of 16 bits would leave 16 grey levels of a
picture of 12 bits. The values between the two ends of a window are spread over 0 to 255 instead.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from fedpeft.errors import DataError, say_count

Window: TypeAlias = str | tuple[float, float] | None
Span: TypeAlias = tuple[float, float]

DEEP = ("I", "F")
"""What the modes of Pillow begin with that have more than 8 bits."""
BITS = (8, 10, 12, 14, 16)
"""What pictures of integers are recorded with."""
PERCENTILES = (0.5, 99.5)
OWN = "own"
"""The window that a medical file names for display."""
WINDOW, INVERTED = "fedpeft.window", "fedpeft.inverted"
"""What `info` of a picture of a medical format has: the ends of that window, and whether low values
are bright, as in MONOCHROME1."""


def check_window(window: Window) -> None:
    """Raises ValueError for a value that is no window."""
    if isinstance(window, str) and window not in ("minmax", "percentile", OWN):
        raise ValueError(
            f'window = {window!r} is none: write "minmax", "percentile", "{OWN}" or [low, high], '
            "the values that become black and white"
        )
    if isinstance(window, tuple) and not window[0] < window[1]:
        raise ValueError(f"window = {list(window)}: the first value must be below the second")


def is_deep(picture: Any) -> bool:
    """Whether a picture has more than 8 bits."""
    return str(picture.mode).startswith(DEEP)


def in_window(picture: Any, window: Window, usual: Span) -> Any:
    """A deep picture as one of 8 bits, `usual` being the ends where the plan does not say."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)
    own = picture.info.get(WINDOW)
    if window == OWN:
        window = own or "minmax"
    low, high = usual if window is None else _ends(values, window)
    width = high - low if high > low else 1.0
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    grey = ((values - low) * (255 / width)).clip(0, 255).round()
    grey = 255 - grey if picture.info.get(INVERTED) else grey
    return Image.fromarray(grey.astype(np.uint8))


def as_deep(values: Any) -> Any:
    """Numbers as Pillow keeps those of more than 8 bits: int32 where all are whole, else
    float32."""
    import numpy as np

    whole = np.abs(values).max(initial=0) < 2**31 and bool((values == np.rint(values)).all())
    return np.ascontiguousarray(values, dtype=np.int32 if whole else np.float32)


def _ends(values: Any, window: str | Span) -> Span:
    import numpy as np

    if isinstance(window, tuple):
        return window
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    least, most = float(finite.min()), float(finite.max())
    if window == "minmax":
        return least, most
    low, high = np.percentile(finite, PERCENTILES).tolist()
    return (low, high) if low < high else (least, most)


def name_window(span: Span) -> str:
    """What a run's notes call the window of its pictures of more than 8 bits."""
    return f"of more than 8 bits, {span[0]!r} being black and {span[1]!r} white"


def window_in(names: Iterable[str]) -> Span | None:
    """The window that one of these notes names; None where none does."""
    found = (
        re.fullmatch(r"of more than 8 bits, (\S+) being black and (\S+) white", x) for x in names
    )
    first = next(filter(None, found), None)
    return (float(first[1]), float(first[2])) if first else None


def usual_window(pictures: Iterator[Any], which: str) -> tuple[Span, int, str] | None:
    """The window of a data set, how many pictures it was found from, and a line that says so; of
    deep pictures only. None if there are none.

    `which` says what the pictures are, in the plural: "pictures to train on".

    Integers from 0 are taken as recorded with the fewest of 8, 10, 12, 14 or 16 bits that hold the
    largest of all. Floating-point numbers between 0 and 1 are taken as they are. Anything else,
    such as the Hounsfield units of CT, goes from the least value of all to the largest.

    Raises:
      DataError: no value is finite.
    """
    import numpy as np

    count, empty, whole, least, most = 0, 0, True, float("inf"), float("-inf")
    for picture in pictures:
        values = np.asarray(picture)
        finite = values[np.isfinite(values)]
        count, whole = count + 1, whole and values.dtype.kind in "iu"
        empty += not finite.size
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if not count:
        return None
    if most < least:
        raise DataError("the pictures of floating-point numbers hold no finite value")
    ends = _span(whole, least, most)
    seen = say_count(count, f"{which} have more than 8 bits")
    seen += f", with values from {least:g} to {most:g}"
    what = f"{seen}: {ends[0]:g} becomes black and {ends[1]:g} white"
    if empty:
        what += f"; without a finite value, and so black: {say_count(empty, 'pictures')}"
    return ends, count, f"{what}. Set data.window to choose other values"


def _span(whole: bool, least: float, most: float) -> Span:
    if whole and least >= 0:
        bits = next((bits for bits in BITS if most < 2**bits), None)
        return (0.0, 2.0**bits - 1) if bits else (0.0, most)
    if not whole and least >= 0 and most <= 1:
        return 0.0, 1.0
    return least, most
