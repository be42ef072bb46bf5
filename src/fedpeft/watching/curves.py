"""Curves of a page that has no script: lines as SVG, coloured by the page's style sheet."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 180
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 24
"""What is left free around the line, for the numbers of the axes."""
MOST = 400
"""Of more points than this only every so many is drawn; a screen has no room for more."""


@dataclass(frozen=True)
class Scale:
    """Where a value of a round lies in the picture.

    Attributes:
      low, high: the values at the lower and at the upper edge.
      last: the round at the right edge; round 1 is at the left one.
    """

    low: float
    high: float
    last: int

    @classmethod
    def of(cls, values: Mapping[int, float], planned: int) -> "Scale":
        """The scale that fits these values, of which there is at least one."""
        low, high = min(values.values()), max(values.values())
        if low == high:  # a line that does not move lies in the middle
            half = abs(high) / 2 or 0.5
            low, high = low - half, high + half
        return cls(low, high, max(2, planned, *values))

    def across(self, at: float) -> float:
        return LEFT + (at - 1) / (self.last - 1) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def draw_curve(name: str, values: Mapping[int, float], planned: int) -> str:
    """One curve over the rounds 1 to `planned`, as a figure of HTML.

    Args:
      values: finite numbers by round, in order, at least one.
    """
    scale, last = Scale.of(values, planned), max(values)
    places = [
        f"{scale.across(at):.1f},{scale.up(value):.1f}" for at, value in _thinned(values).items()
    ]
    x, y = places[-1].split(",")
    words = escape(f"{name}: {_short(values[last])} after round {last}")
    return (
        f"<figure><figcaption>{words}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{_axes(scale)}'
        f'<polyline points="{" ".join(places)}"/><circle cx="{x}" cy="{y}" r="3.5"/></svg></figure>'
    )


def _axes(scale: Scale) -> str:
    """Three lines across with their values, and the first and last round below."""
    made = []
    for value in (scale.low, (scale.low + scale.high) / 2, scale.high):
        y = scale.up(value)
        made.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        made.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{_short(value)}</text>')
    below = HEIGHT - 6
    made.append(f'<text x="{LEFT}" y="{below}">round 1</text>')
    made.append(f'<text x="{WIDTH - RIGHT}" y="{below}" class="end">{scale.last}</text>')
    return "".join(made)


def _thinned(values: Mapping[int, float]) -> dict[int, float]:
    """At most about MOST of them, the last one always."""
    step = -(-len(values) // MOST)
    every = list(values.items())
    return dict([*every[:-1:step], every[-1]])


def _short(value: float) -> str:
    """Four digits; large and tiny numbers with a power of ten."""
    return f"{value:.4g}"
