"""The figures of a report, drawn with Vega-Altair and embedded as Vega-Lite.

Colours are not here: the page's style sheet has them, so that one figure serves light, dark and print.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.errors import FedpeftError
from fedpeft.report import rows
from fedpeft.report.axes import Axis
from fedpeft.report.rows import Row
from fedpeft.report.study import Measure, Section

BYTES = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~g') + ' GiB'"
    " : datum.value >= 1048576 ? format(datum.value / 1048576, '~g') + ' MiB'"
    " : datum.value >= 1024 ? format(datum.value / 1024, '~g') + ' KiB' : datum.value + ' B'"
)
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2, 4, 6], [1, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SEEN = "indexof(hidden, datum.group) < 0"
NAMED = "named"
"""Of a view whose points on the front the page writes the names of, where there is room."""
CROWD = 30
"""With more classes than this their names are left to the hover."""


class MissingLibrary(FedpeftError):
    """What draws the figures is not installed."""


@dataclass(frozen=True)
class Figure:
    """One picture of a page.

    Attributes:
      name: a word for its file and its place on the page.
      told: what there is to know to read it.
      spec: Vega-Lite, or None where there is nothing to draw; `told` then says why.
      wide: whether it takes the page's full width.
      legend: whether it shows the section's groups in their colours.
    """

    name: str
    title: str
    told: str
    spec: dict[str, Any] | None = None
    wide: bool = True
    legend: bool = True


def altair() -> Any:
    """The library, or what to install.

    Raises:
      MissingLibrary: it is not there.
    """
    try:
        import altair
        import vl_convert  # noqa: F401  it has the page's scripts
    except ImportError as error:
        raise MissingLibrary(f"a report needs {error.name}: pip install 'fedpeft[report]'") from None
    return altair


def scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed, to stand in a page."""
    version = ".".join(altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    import vl_convert

    text: str = vl_convert.javascript_bundle(vl_version=version)
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def figures(section: Section) -> list[Figure]:
    """All that there is to draw of a section; of what is missing a sentence."""
    return [
        _curves(section),
        _cost(section, "up", "sent"),
        _cost(section, "down", "received"),
        *(_bars(section, axis) for axis in section.axes if axis.told and rows.bars(section, axis)),
        _spread(section),
        _budget(section),
        _division(section),
    ]


def intervals(section: Section) -> str:
    """What the bands and whiskers of a section are."""
    kinds = {found.kind for group in section.groups if (found := group.last)}
    kinds |= {found.kind for group in section.groups for _, found in group.curve()[-1:]}
    words = {
        "95 % t interval": "Student's 95 % t interval of the mean where there are three seeds or more",
        "range of 2": "the range where there are two seeds",
        "one run": "nothing where there is one",
    }
    if kinds <= {"one run"}:
        return "There is one run of each, so that nothing tells how far another seed would be."
    cut = " They are drawn no further than 0 and 100 %." if section.measure.percent else ""
    return f"Bands and whiskers are {'; '.join(text for kind, text in words.items() if kind in kinds)}.{cut}"


def _curves(section: Section) -> Figure:
    title = f"{_metric(section)} per round"
    values = rows.curves(section)
    if not values:
        return Figure("rounds", title, "No run has a measured round yet.")
    alt, measure = altair(), section.measure
    lowest = min(row["mean"] if row["low"] is None else row["low"] for row in values)
    highest = max(row["mean"] if row["high"] is None else row["high"] for row in values)
    scale = alt.Scale(domain=[lowest, highest], nice=True)
    x = alt.X("round:Q", title="round", scale=alt.Scale(zero=False), axis=alt.Axis(tickMinStep=1, grid=False, format="d"))
    near = alt.selection_point(
        name="near", on="pointerover", nearest=True, fields=["group", "round"], empty=False, clear="pointerout"
    )
    base = _chart(values).encode(x=x, detail="group:N", **_style(section))
    band = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.16, clip=True)
        .encode(y=alt.Y("low:Q", title=measure.name, scale=scale, axis=_axis(measure)), y2="high:Q")
    )
    line = base.mark_line(strokeWidth=2, clip=True, point=_few(values)).encode(
        y="mean:Q", **_style(section, "strokeDash")
    )
    dots = (
        base.mark_point(filled=True, size=70)
        .encode(
            y="mean:Q",
            opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(0)),
            tooltip=_tip("group", "round", value=measure.name, interval="interval"),
        )
        .add_params(near)
    )
    told = "The mean over a group's seeds, on the common held-out examples, wherever all its runs were measured."
    return Figure("rounds", title, f"{told} {intervals(section)}", _spec(alt.layer(band, line, dots), 340))


def _cost(section: Section, way: str, verb: str) -> Figure:
    title = f"{_metric(section)} against bytes {verb}"
    values, front = rows.costs(section, way), section.front(way)
    if not values:
        told = "It needs a finished run that tells its number of clients."
        return Figure(f"bytes-{way}", title, told, wide=False)
    alt, measure = altair(), section.measure
    x = alt.X(
        "bytes:Q",
        title=f"bytes {verb} by a client in the whole run, on average (log scale)",
        scale=alt.Scale(type="log", base=2, nice=False, padding=24),
        axis=alt.Axis(labelExpr=BYTES, tickCount=6, labelOverlap="greedy", labelFlush=False),
    )
    ends = [row[end] for row in values for end in ("low", "mean", "high") if row[end] is not None]
    margin = 0.06 * (max(ends) - min(ends) or 1)
    scale = alt.Scale(domain=[min(ends) - margin, max(ends) + margin], nice=False)
    y = alt.Y("mean:Q", title=measure.name, scale=scale, axis=_axis(measure))
    base = _chart(values)
    steps = (
        base.transform_filter("datum.front")
        .mark_line(interpolate="step-after", strokeDash=[2, 3], strokeWidth=1.5, color="var(--faint)")
        .encode(x=x, y=y, order="bytes:Q")
    )
    whiskers = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.5, opacity=0.55)
        .encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", **_style(section))
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x,
        y=y,
        **_style(section, "shape"),
        tooltip=_tip("group", sent=f"bytes {verb}", value=measure.name, interval="interval"),
    )
    points = points.properties(name=NAMED)
    spec = _spec(alt.layer(steps, whiskers, points), 320)
    names = "; ".join(group.label for group in front)
    told = f"The Pareto front, by the means: {names}. Every other group costs as much or more for no better a result."
    return Figure(f"bytes-{way}", title, told, spec, wide=False)


def _bars(section: Section, axis: Axis) -> Figure:
    alt, measure = altair(), section.measure
    values = rows.bars(section, axis)
    levels = [level for level in axis.order() if any(row["level"] == level for row in values)]
    if not axis.numbers:
        best = {level: max(measure.worth(row["mean"]) for row in values if row["level"] == level) for level in levels}
        levels.sort(key=lambda level: -best[level])
    scale = alt.Scale(domain=[0, 1.3 * max(row["end"] for row in values)], nice=False)
    grid = {"values": [k / 10 for k in range(11)]} if measure.percent else {}
    bare = alt.Axis(domain=False, ticks=False, labelPadding=8)
    y = alt.Y("level:N", title=None, scale=alt.Scale(domain=levels), axis=bare)
    x = alt.X("mean:Q", title=measure.name, scale=scale, axis=_axis(measure, **grid))
    others = sorted({row["other"] for row in values})
    offset = {"yOffset": alt.YOffset("other:N", scale=alt.Scale(domain=others))} if len(others) > 1 else {}
    base = _chart(values).encode(y=y, **offset)
    bar = base.mark_bar(cornerRadiusEnd=2, opacity=0.88, height={"band": 0.78}).encode(
        x=x, tooltip=_tip("group", value=measure.name, interval="interval"), **_style(section)
    )
    whisker = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, color="var(--ink)")
    text = base.mark_text(align="left", dx=8, color="var(--ink)", fontSize=11.5).encode(
        x=alt.X("end:Q"), text="value:N"
    )
    chart = alt.layer(bar, whisker.encode(x=alt.X("low:Q"), x2="high:Q"), text)
    spec = _spec(chart, len(levels) * (20 * len(others) + 8))
    told = f"After the last round, by {axis.path}"
    told += "; beside each value what else the group is." if offset else "."
    return Figure(f"axis-{axis.path}", f"{_metric(section)} by {axis.path}", f"{told} {intervals(section)}", spec)


def _spread(section: Section) -> Figure:
    title, values = "How the result serves each client", rows.spreads(section)
    if not values:
        told = "Left out: no finished run here tells the accuracy of each client."
        return Figure("clients", title, told, wide=False)
    alt = altair()
    order = [group.label for group in section.groups if any(row["group"] == group.label for row in values)]
    base = _chart(values).encode(y=alt.Y("group:N", title=None, scale=alt.Scale(domain=order), axis=alt.Axis(domain=False, ticks=False)))
    x = alt.X("accuracy:Q", title="accuracy on one client", scale=alt.Scale(zero=False), axis=_axis(section.measure))
    each = base.mark_tick(thickness=2, bandSize=18, opacity=0.5).encode(
        x=x, tooltip=_tip("group", "client", "seed", value="accuracy"), **_style(section)
    )
    middle = base.mark_point(filled=True, shape="diamond", size=70, opacity=1, color="var(--ink)").encode(
        x=alt.X("mean(accuracy):Q"), tooltip=[alt.Tooltip("mean(accuracy):Q", title="mean", format=".3f")]
    )
    told = "A tick for each client of each finished run; the diamond is their mean."
    return Figure("clients", title, told, _spec(alt.layer(each, middle), 30 * len(order)))


def _budget(section: Section) -> Figure:
    title, values = "Privacy spent", rows.budgets(section)
    if not values:
        return Figure("epsilon", title, "Left out: no round here was private.", wide=False)
    alt = altair()
    chart = (
        _chart(values)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=40))
        .encode(
            x=alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, grid=False, format="d")),
            y=alt.Y("epsilon:Q", title="epsilon so far"),
            tooltip=_tip("group", "round", value="epsilon", told="at"),
            **_style(section, "strokeDash"),
        )
    )
    unit = ", ".join(dict.fromkeys(row["told"] for row in values))
    told = f"Epsilon after each round ({unit}): the largest among the runs of a group."
    return Figure("epsilon", title, told, _spec(chart, 280))


def _division(section: Section) -> Figure:
    title = "Who holds what"
    values, count = rows.divisions(section)
    if not values:
        return Figure("partition", title, "Left out: no run here keeps its partition.json.", wide=False)
    alt = altair()
    names = list(dict.fromkeys(row["division"] for row in values))
    labels = dict(sorted({row["label"]: row["place"] for row in values}.items(), key=lambda pair: pair[1]))
    clients = list(dict.fromkeys(row["client"] for row in values))
    pick = alt.binding_select(options=names, name="division: ")
    chosen = alt.param(name="chosen", value=names[0], **({"bind": pick} if len(names) > 1 else {}))
    few = len(labels) <= CROWD
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .add_params(chosen)
        .transform_filter("datum.division === chosen")
        .mark_rect(color="var(--heat)", stroke="var(--page)", strokeWidth=0.5 if few else 0)
        .encode(
            x=alt.X(
                "label:N",
                title="class" if few else f"{len(labels)} classes",
                scale=alt.Scale(domain=list(labels)),
                axis=alt.Axis(labels=few, ticks=False, labelAngle=0 if len(labels) <= 12 else -60, labelLimit=90),
            ),
            y=alt.Y(
                "client:N", title="client", scale=alt.Scale(domain=clients), axis=alt.Axis(ticks=False, labelOverlap=True)
            ),
            fillOpacity=alt.FillOpacity(
                "share:Q", title="share of the client", scale=alt.Scale(type="sqrt", range=[0.08, 1]), legend=None
            ),
            tooltip=_tip("client", label="class", told="examples"),
        )
    )
    told = "Darker: a larger share of the client's examples."
    told += "" if count <= rows.DIVISIONS else f" The first {rows.DIVISIONS} of {count} divisions."
    spec = _spec(chart, len(clients) * max(7, min(18, 420 // len(clients))))
    return Figure("partition", title, told, spec, legend=False)


def _chart(values: Sequence[Row]) -> Any:
    """Rows of groups, of which the page may hide some."""
    alt = altair()
    return alt.Chart(alt.InlineData(values=list(values))).transform_filter(SEEN)


def _spec(chart: Any, height: int) -> dict[str, Any]:
    alt = altair()
    hidden = alt.param(name="hidden", value=[])
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    made = chart.add_params(hidden).properties(width="container", height=height, autosize=fit)
    spec: dict[str, Any] = made.to_dict()
    spec.pop("config", None)
    return spec


def _style(section: Section, *channels: str) -> dict[str, Any]:
    """Colour, and the dash or shape that tells apart what shares a colour; all by the group, so as to be one legend."""
    alt = altair()
    domain = [group.label for group in section.groups]
    ranges = {
        "color": [f"var(--c{look.colour})" for look in section.looks],
        "strokeDash": [DASHES[look.form] for look in section.looks],
        "shape": [SHAPES[look.form] for look in section.looks],
    }
    kinds = {"color": alt.Color, "strokeDash": alt.StrokeDash, "shape": alt.Shape}
    return {
        channel: kinds[channel]("group:N", title=None, scale=alt.Scale(domain=domain, range=ranges[channel]))
        for channel in ("color", *channels)
    }


def _axis(measure: Measure, **more: Any) -> Any:
    return altair().Axis(format=".0%" if measure.percent else "~g", **more)


def _metric(section: Section) -> str:
    return section.measure.name[:1].upper() + section.measure.name[1:]


def _few(values: Sequence[Row]) -> Any:
    """Points where a line has few of them."""
    return altair().OverlayMarkDef(size=28) if len({row["round"] for row in values}) <= 12 else False


def _tip(*fields: str, **titles: str) -> list[Any]:
    """What hovering tells: fields under their own names, or under others."""
    named = {**{field: field for field in fields}, **titles}
    return [altair().Tooltip(f"{field}:N", title=title) for field, title in named.items()]
