"""Figures of ROC curves, of the examples that owners hold out."""

from collections.abc import Sequence
from typing import Any

from fedpeft.report.drawing import Figure, altair, made, of_groups, style, tip
from fedpeft.report.groups import Section

CLASSES = 6
"""Classes that have a figure each."""


def roc_figures(section: Section) -> list[Figure]:
    """One for each class, a line for each group, by the run of its first seed whose owners told
    scores; nothing where none did."""
    curves = {
        group.label: next(
            (one.owners.roc for one in group.cells if one.owners is not None and one.owners.roc), {}
        )
        for group in section.groups
    }
    classes = list(dict.fromkeys(name for some in curves.values() for name in some))
    return [
        _figure(
            section, name, k, {group: some[name] for group, some in curves.items() if name in some}
        )
        for k, name in enumerate(classes[:CLASSES])
    ]


def _figure(
    section: Section, name: str, place: int, curves: dict[str, Sequence[tuple[float, float]]]
) -> Figure:
    alt = altair()
    values = [
        {"group": group, "at": at, "others": others, "found": found}
        for group, points in curves.items()
        for at, (others, found) in enumerate(points)
    ]
    share = alt.Axis(format="%")
    x = alt.X("others:Q", title="taken for it by mistake, of the others", axis=share)
    y = alt.Y("found:Q", title=f"found, of those that are {name}", axis=share)
    look = style(section, "strokeDash", symbol="stroke")
    hover: Any = tip("group", found="found", others="mistaken")
    lines = of_groups(values).mark_line(strokeWidth=2)
    ends = alt.Chart(alt.InlineData(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    chance = ends.mark_line(color="var(--faint)", strokeDash=[3, 3]).encode(x="x:Q", y="y:Q")
    drawn = lines.encode(x=x, y=y, order="at:Q", tooltip=hover, **look)
    told = (
        f"What share of the owners' held-out examples of {name} is found, and what share of the "
        "others is taken for it, at each threshold of the score; all owners together, the first "
        "seed that told it. Dashes: chance."
    )
    return Figure(f"roc-{place}", f"ROC: {name}", told, made(alt.layer(chance, drawn), 260), False)
