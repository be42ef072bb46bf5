"""Figures of lines that models continue: forecasts of held-out windows beside what came."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.report.drawing import Figure, altair, made, of_groups, style, tip
from fedpeft.report.groups import Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.rows import Row
from fedpeft.report.schema import KeptCurves, KeptWindow

GROUPS = 8
"""How many groups a figure shows."""
POINTS = 160
"""About how many points a line has in a window; of longer ones each second step is drawn, or each
third."""
GAP = 0.15
"""Between two windows, as a share of one."""

HELD_OUT = {"color": "var(--ink)", "strokeWidth": 1.2}
UNTUNED = {"color": "var(--faint)", "strokeDash": [3, 3]}

_Member = tuple[Group, KeptRun, KeptCurves]


def continued_figures(section: Section) -> list[Figure]:
    """One for each client, over the groups that continue the same windows, each by the run of its
    first seed that has some; nothing where no run has."""
    alike: dict[str, list[_Member]] = {}
    for group in section.groups:
        first = next(((one, kept) for one in group.cells if (kept := one.curves)), None)
        if first and first[1].windows:
            alike.setdefault(_conditions(first[1]), []).append((group, *first))
    return [
        _figure(section, members[:GROUPS], client, f"{k}-{place}", len(members))
        for k, members in enumerate(alike.values())
        for place, client in enumerate(dict.fromkeys(w.client for w in members[0][2].windows))
    ]


def _conditions(kept: KeptCurves) -> str:
    """Equal where the windows are the same."""
    return json.dumps([(w.client, w.place, w.given, w.truth) for w in kept.windows])


def _figure(
    section: Section, members: Sequence[_Member], client: str, name: str, groups: int
) -> Figure:
    windows, place = _of(members[0][2], client), _Place.of(members[0][2], client)
    alt = altair()
    x = alt.X("at:Q", title=place.title, scale=place.scale(), axis=place.axis())
    layers = [
        place.begins(),
        _line(place.points([[*w.given, *w.truth] for w in windows], 0), x, **HELD_OUT),
    ]
    base = _shared_base(members, client)
    if base:
        layers.append(_line(place.points(base, place.past), x, **UNTUNED))
    values = [
        {"group": group.label, **point}
        for group, _, kept in members
        for point in place.points([w.after for w in _of(kept, client)], place.past)
    ]
    look = style(section, "strokeDash", symbol="stroke")
    lines = of_groups(values).mark_line(strokeWidth=2)
    layers.append(lines.encode(x=x, y="value:Q", detail="window:N", tooltip=tip("group"), **look))
    title = f"Held-out steps of {client}" if client else "Held-out steps"
    told = _describe(windows, members, groups, bool(base))
    return Figure(f"steps-{name}", title, told, made(alt.layer(*layers), 220), wide=False)


def _of(kept: KeptCurves, client: str) -> list[KeptWindow]:
    return [one for one in kept.windows if one.client == client]


@dataclass(frozen=True)
class _Place:
    """Where windows stand on their axis, side by side.

    Attributes:
      past, horizon: steps that are given, and that follow.
      step: each so many-th one is drawn.
    """

    windows: int
    past: int
    horizon: int
    step: int

    @classmethod
    def of(cls, kept: KeptCurves, client: str) -> "_Place":
        windows = _of(kept, client)
        past, horizon = len(windows[0].given), len(windows[0].truth)
        return cls(len(windows), past, horizon, max(1, (past + horizon) // POINTS))

    @property
    def span(self) -> int:
        """From the first step of a window to that of the next."""
        width = self.past + self.horizon
        return width + max(1, round(GAP * width))

    @property
    def title(self) -> str:
        return "step" if self.step == 1 else f"step, of which one in {self.step} is drawn"

    def points(self, lines: Sequence[Sequence[float | None]], first: int) -> list[Row]:
        """A line of each window, that begins `first` steps after it; a value that was not finite
        breaks it."""
        return [
            {"window": window, "at": window * self.span + first + k, "value": value}
            for window, line in enumerate(lines)
            for k, value in list(enumerate(line))[:: self.step]
        ]

    def begins(self) -> Any:
        """A thin line in each window, after the last step that the models are given."""
        alt = altair()
        places = [{"at": k * self.span + self.past - 0.5} for k in range(self.windows)]
        chart = alt.Chart(alt.InlineData(values=places))
        return chart.mark_rule(color="var(--line)").encode(x="at:Q")

    def scale(self) -> Any:
        return altair().Scale(domain=[0, self.windows * self.span - 1], nice=False)

    def axis(self) -> Any:
        """Labels count from the last step that is given, which is 0 in each window."""
        ends = (0, self.past - 1, self.past + self.horizon - 1)
        return altair().Axis(
            values=[k * self.span + end for k in range(self.windows) for end in ends],
            labelExpr=f"format(datum.value % {self.span} - {self.past - 1}, '+d')",
            labelFlush=False,
            grid=False,
        )


def _line(points: Sequence[Row], x: Any, **look: Any) -> Any:
    alt = altair()
    chart = alt.Chart(alt.InlineData(values=list(points))).mark_line(**look)
    y = alt.Y("value:Q", title="value", scale=alt.Scale(zero=False))
    return chart.encode(x=x, y=y, detail="window:N")


def _shared_base(members: Sequence[_Member], client: str) -> Sequence[Sequence[float | None]]:
    """What the untuned model says of each window, where all groups have the same."""
    found = [[w.before for w in kept.windows if w.client == client] for _, _, kept in members]
    return found[0] if all(one == found[0] for one in found) else ()


def _describe(
    windows: Sequence[KeptWindow], members: Sequence[_Member], groups: int, base: bool
) -> str:
    _, _, kept = members[0]
    places = " and ".join(str(w.place + 1) for w in windows)
    said = [f"Held-out windows {places} of {windows[0].of:,}, side by side."]
    said.append("Thin: what came. Coloured: what each group's model says after 0.")
    said += ["Dashed: what the untuned model says."] if base else []
    said.append(
        "; ".join(f"{g.label}: seed {c.seed}, round {k.round}" for g, c, k in members) + "."
    )
    clients = len({w.client for w in kept.windows})
    if clients < kept.clients:
        said.append(f"Shown are {clients} of {kept.clients} clients.")
    if groups > len(members):
        said.append(f"Shown are the first {len(members)} of {groups} groups.")
    return " ".join(said)
