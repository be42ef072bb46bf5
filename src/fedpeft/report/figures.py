"""The figures of a report, drawn with Vega-Altair and embedded as Vega-Lite.

Colours are names here and values in the page's style sheet, so that one figure serves light, dark
and print.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from math import ceil, floor, log2
from typing import Any

from fedpeft.report import rows
from fedpeft.report.axes import PlanAxis
from fedpeft.report.by_client import client_figures
from fedpeft.report.continued import continued_figures
from fedpeft.report.drawing import (
    BYTES,
    Figure,
    altair,
    few_dots,
    lines_across,
    made,
    metric,
    metric_axis,
    of_groups,
    style,
    tip,
)
from fedpeft.report.groups import Measure, Section
from fedpeft.report.roc import roc_figures
from fedpeft.report.rows import Row

NAMED = "named"
"""Of a view whose points on the front the page writes the names of, where there is room."""
FURTHER = 8
"""Metrics beside the first that have a figure each."""
CROWD = 30
"""With more classes than this their names are left to the hover."""
ENDS = ("low", "mean", "high")
TICKS = 12
"""How many an axis of rounds has at most."""


def figures(section: Section) -> list[Figure]:
    """All that there is to draw of a section; of what is missing a sentence."""
    along = [(axis, rows.bars(section, axis)) for axis in section.axes if axis.told]
    return [
        _curves(section),
        *_further_curves(section),
        *client_figures(section),
        *continued_figures(section),
        *roc_figures(section),
        _cost(section, "up", "sent"),
        _cost(section, "down", "received"),
        *(_bars(section, axis, values) for axis, values in along if values),
        _spread(section),
        _budget(section),
        _division(section),
    ]


def intervals(section: Section) -> str:
    """What the bands and whiskers of a section are."""
    kinds = {found.kind for group in section.groups if (found := group.last)}
    kinds |= {found.kind for group in section.groups for _, found in group.curve()[-1:]}
    words = {
        "95 % t interval": "Student's 95 % t interval of the mean where there are three seeds or "
        "more",
        "range of 2": "the range where there are two seeds",
        "one run": "nothing where there is one",
    }
    if kinds <= {"one run"}:
        return "There is one run of each, so that nothing tells how far another seed would be."
    cut = " They are drawn no further than 0 and 100 %." if section.measure.percent else ""
    drawn = "; ".join(text for kind, text in words.items() if kind in kinds)
    return f"Bands and whiskers are {drawn}.{cut}"


def _further_curves(section: Section) -> list[Figure]:
    """Metrics beside the one that the report compares by, as the accuracy at each exit; without
    losses, and without those that were measured once."""
    every = (_measured_by(section, Measure(name)) for name in rows.further_metrics(section))
    names = [one.measure.name for one in every if rows.curves(one)]  # that all runs of a group have
    sections = [_measured_by(section, Measure(name)) for name in names[:FURTHER]]
    found = [_curves(one, f"rounds-{k}", 200) for k, one in enumerate(sections)]
    if len(names) > FURTHER:
        told = f"{found[-1].told} {len(names) - FURTHER} further metrics are in the table alone."
        found[-1] = replace(found[-1], told=told)
    return found


def _measured_by(section: Section, measure: Measure) -> Section:
    """The section as another metric has it."""
    groups = tuple(replace(group, measure=measure) for group in section.groups)
    return replace(section, measure=measure, groups=groups)


def _curves(section: Section, name: str = "rounds", height: int = 340) -> Figure:
    title, values = f"{metric(section)} per round", rows.curves(section)
    if not values:
        return Figure(name, title, "No run has a measured round yet.")
    alt, measure, across = altair(), section.measure, rows.across(section)
    scale = _scale([*values, *across], measure)
    y = alt.Y("mean:Q", title=measure.words, scale=scale, axis=metric_axis(measure))
    near = alt.selection_point(
        name="near",
        on="pointerover",
        nearest=True,
        fields=["group", "round"],
        empty=False,
        clear="pointerout",
    )
    base = of_groups(values).encode(
        x=_round(values), detail="group:N", **style(section, symbol="stroke")
    )
    band = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.1)
        .encode(y="low:Q", y2="high:Q")
    )
    line = base.mark_line(strokeWidth=2, point=few_dots(values)).encode(
        y=y, **style(section, "strokeDash", symbol="stroke")
    )
    dots = base.mark_point(filled=True, size=70).encode(
        y="mean:Q",
        opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0)),
        tooltip=tip("group", "round", value=measure.words, interval="interval"),
    )
    told = (
        "The mean over a group's seeds, on held-out examples, wherever all its runs were measured."
    )
    told = " ".join(filter(None, (told, _across(section), intervals(section))))
    layers = [line, band, dots.add_params(near), *lines_across(section, across)]
    wide = name == "rounds"
    return Figure(name, title, told, made(alt.layer(*layers), height), wide)


def _across(section: Section) -> str:
    """What the lines over the whole width are, if there are any."""
    names = "; ".join(group.label for group in section.across)
    return f"Lines across are no federations, after their last round: {names}." if names else ""


def _cost(section: Section, way: str, verb: str) -> Figure:
    title, values = f"{metric(section)} against bytes {verb}", rows.costs(section, way)
    if not values:
        told = "Left out: it needs a finished federation that tells its number of clients."
        return Figure(f"bytes-{way}", title, told)
    alt, measure, across = altair(), section.measure, rows.across(section)
    # room for a name above what is at 100 %
    scale = _scale([*values, *across], measure, range=[alt.ExprRef("height"), 18])
    base = of_groups(values).encode(
        x=_bytes(values, f"bytes {verb} per client, all rounds"),
        y=alt.Y("mean:Q", title=measure.words, scale=scale, axis=metric_axis(measure)),
    )
    steps = base.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeDash=[2, 3], strokeWidth=1.5, color="var(--faint)"
    )
    hover = tip("group", sent=f"bytes {verb}", value=measure.words, interval="interval")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        tooltip=hover, **style(section, "shape")
    )
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, opacity=0.55)
    layers = [
        steps.encode(order="bytes:Q"),
        # Before the whiskers: the legend of a saved figure is of the first with colours.
        points.properties(name=NAMED),
        # Over the points.
        whiskers.encode(
            y=alt.Y("low:Q", scale=scale), y2="high:Q", tooltip=hover, **style(section)
        ),
        *lines_across(section, across),
    ]
    names, told = "; ".join(group.label for group in section.front(way)), ""
    if len(section.compared) > 1:
        told = (
            f"On the Pareto front, by the means: {names}. For every other group there is one that "
            "costs no more and is better, or is as good and costs less. "
        )
    told += (
        f"Bytes: all that was sent, over all clients; logarithmic axis. {_across(section)}".rstrip()
    )
    return Figure(f"bytes-{way}", title, told, made(alt.layer(*layers), 320), wide=False)


def _bars(section: Section, axis: PlanAxis, values: Sequence[Row]) -> Figure:
    alt, measure = altair(), section.measure
    levels, others = _levels(axis, values, measure), sorted({row["other"] for row in values})
    # the room between bars is the scale's: a bar's own height would be put in the middle of all
    # bars of its level
    offset = alt.YOffset(
        "other:N", scale=alt.Scale(domain=others, paddingInner=0.22, paddingOuter=0.11)
    )
    room = alt.ExprRef(f"max(60, width - {8 * max(len(row['value']) for row in values)})")
    scale = alt.Scale(domain=[0, max(row["end"] for row in values)], nice=False, range=[0, room])
    bare = alt.Axis(domain=False, ticks=False, labelPadding=8)
    y = alt.Y("level:N", title=None, scale=alt.Scale(domain=levels), axis=bare)
    base = of_groups(values).encode(
        y=y, yOffset=offset, tooltip=tip("group", value=measure.words, interval="interval")
    )
    bar = base.mark_bar(cornerRadiusEnd=2, opacity=0.88).encode(
        x=alt.X(
            "mean:Q",
            title=measure.words,
            scale=scale,
            axis=metric_axis(measure, tickCount=10),
            stack=None,
        ),
        **style(section, legend=False),
    )
    whisker = base.transform_filter("isValid(datum.low)").mark_rule(
        strokeWidth=1.5, color="var(--ink)"
    )
    text = base.mark_text(align="left", dx=8, color="var(--ink)", fontSize=11.5).encode(
        x="end:Q", text="value:N"
    )
    spec = made(
        alt.layer(bar, whisker.encode(x="low:Q", x2="high:Q"), text),
        len(levels) * (20 * len(others) + 8),
    )
    told = f"After the last round, by {axis.path}"
    told += "; beside each value what else the group is." if len(others) > 1 else "."
    return Figure(
        f"axis-{axis.path}",
        f"{metric(section)} by {axis.path}",
        f"{told} {intervals(section)}",
        spec,
    )


def _levels(axis: PlanAxis, values: Sequence[Row], measure: Measure) -> list[str]:
    """Numbers upwards, others from the best down."""
    levels = [level for level in axis.order() if any(row["level"] == level for row in values)]
    if axis.numbers:
        return levels
    return sorted(
        levels,
        key=lambda level: -max(measure.worth(r["mean"]) for r in values if r["level"] == level),
    )


def _spread(section: Section) -> Figure:
    title, values = "How the result serves each client", rows.spreads(section)
    if not values:
        told = "Left out: no finished run here tells the accuracy of each client."
        return Figure("clients", title, told)
    alt = altair()
    order = list(dict.fromkeys(row["group"] for row in values))
    bare = alt.Axis(domain=False, ticks=False)
    base = of_groups(values).encode(
        y=alt.Y("group:N", title=None, scale=alt.Scale(domain=order), axis=bare)
    )
    own = Measure("accuracy")
    x = {
        "title": "accuracy on one client",
        "scale": _scale(values, own, ("accuracy",)),
        "axis": metric_axis(own, tickCount=10),
    }
    each = base.mark_tick(thickness=2, bandSize=18, opacity=0.5).encode(
        x=alt.X("accuracy:Q", **x),
        tooltip=tip("group", "client", "seed", value="accuracy"),
        **style(section, legend=False),
    )
    middle = base.mark_point(
        filled=True, shape="diamond", size=70, opacity=1, color="var(--ink)"
    ).encode(
        x="mean(accuracy):Q", tooltip=[alt.Tooltip("mean(accuracy):Q", title="mean", format=".1%")]
    )
    on = (
        "held-out examples of its own"
        if rows.on_own(section)
        else "the common held-out examples, each class weighted as the client has it"
    )
    told = f"Each tick is a client of a finished run, measured on {on}. The diamond is their mean."
    return Figure("clients", title, told, made(alt.layer(each, middle), 30 * len(order)))


def _budget(section: Section) -> Figure:
    title, values = "Privacy spent", rows.budgets(section)
    if not values:
        return Figure("epsilon", title, "Left out: no round here was private.")
    alt = altair()
    line = of_groups(values).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=40))
    chart = line.encode(
        x=_round(values),
        y=alt.Y("epsilon:Q", title="epsilon so far"),
        tooltip=tip("group", "round", value="epsilon", told="at"),
        **style(section, "strokeDash", symbol="stroke"),
    )
    units = "; ".join(dict.fromkeys(row["told"] for row in values))
    told = f"Epsilon after each round, at {units}: the largest among the runs of a group."
    return Figure("epsilon", title, told, made(chart, 280))


def _division(section: Section) -> Figure:
    title = "Who holds what"
    values, count = rows.divisions(section)
    if not values:
        return Figure(
            "partition",
            title,
            "Left out: no run here keeps its partition.json with the classes that its clients "
            "hold.",
        )
    clients = list(dict.fromkeys(row["client"] for row in values))
    drawn = _cells_of_division(values, clients)
    told = "Stronger colour: a larger share of the client's examples."
    told += "" if count <= rows.DIVISIONS else f" The first {rows.DIVISIONS} of {count} divisions."
    height = max(7, min(18, 420 // len(clients)))
    return Figure("partition", title, told, made(drawn, len(clients) * height))


def _cells_of_division(values: Sequence[Row], clients: Sequence[str]) -> Any:
    """A rectangle for each client and class; where there are several divisions, one is chosen."""
    alt = altair()
    names = list(dict.fromkeys(row["division"] for row in values))
    places = {row["label"]: row["place"] for row in values}
    labels = sorted(places, key=lambda label: places[label])
    few = len(labels) <= CROWD
    pick = {"bind": alt.binding_select(options=names, name="division: ")} if len(names) > 1 else {}
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .add_params(alt.param(name="chosen", value=names[0], **pick))
        .transform_filter("datum.division === chosen")
        .mark_rect(color="var(--heat)", stroke="var(--page)", strokeWidth=0.5 if few else 0)
    )
    return chart.encode(
        x=alt.X(
            "label:N",
            title="class" if few else f"{len(labels)} classes",
            scale=alt.Scale(domain=labels),
            axis=alt.Axis(
                labels=few, ticks=False, labelAngle=0 if len(labels) <= 12 else -60, labelLimit=90
            ),
        ),
        y=alt.Y(
            "client:N",
            title="client",
            scale=alt.Scale(domain=clients),
            axis=alt.Axis(ticks=False, labelOverlap=True),
        ),
        fillOpacity=alt.FillOpacity(
            "share:Q", scale=alt.Scale(type="sqrt", range=[0.08, 1]), legend=None
        ),
        tooltip=tip("client", label="class", told="examples"),
    )


def _round(values: Sequence[Row]) -> Any:
    """Ticks at the rounds that are drawn, or at round numbers between them where they are many."""
    alt = altair()
    at = sorted({row["round"] for row in values})
    if len(at) > TICKS:
        steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
        step = next(step for step in steps if (at[-1] - at[0]) / step < TICKS)
        ticks = list(range(-(-at[0] // step) * step, at[-1] + 1, step))
    axis = alt.Axis(values=ticks if len(at) > TICKS else at, grid=False, format="d")
    return alt.X(
        "round:Q", title="round", scale=alt.Scale(domain=[at[0], at[-1]], nice=False), axis=axis
    )


def _bytes(values: Sequence[Row], title: str) -> Any:
    """From one power of two to another, which are the ticks."""
    alt = altair()
    first = floor(log2(min(row["bytes"] for row in values)))
    last = max(first + 1, ceil(log2(max(row["bytes"] for row in values))))
    step = -(-(last - first) // 6)
    axis = alt.Axis(
        values=[2**k for k in range(first, last + 1, step)],
        labelExpr=BYTES,
        labelFlush=False,
        grid=False,
    )
    scale = alt.Scale(type="log", base=2, domain=[2**first, 2**last], nice=False, padding=24)
    return alt.X("bytes:Q", title=title, scale=scale, axis=axis)


def _scale(
    values: Sequence[Row], measure: Measure, fields: Sequence[str] = ENDS, **more: Any
) -> Any:
    """From a little below what is drawn to a little above, but not to where no value can be: below
    0, above 100 %."""
    known = [row[end] for row in values for end in fields if row[end] is not None]
    low, high = min(known), max(known)
    margin = 0.06 * (high - low or abs(high) or 1)
    bottom, top = low - margin, high + margin
    if low >= 0:
        bottom = max(0.0, bottom)
    if measure.percent:
        top = min(1.0, top)
    return altair().Scale(domain=[bottom, top], nice=False, **more)
