"""What all figures share: the library, its scripts for the page, and how a group looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.errors import FedpeftError, explain_install
from fedpeft.report.groups import Measure, Section
from fedpeft.report.rows import Row

DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2, 4, 6], [1, 4], [14, 4], [3, 8])
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "stroke",
    "stroke",
)
"""Of federations, then of each kind of what they are compared with, which is a line across."""
BYTES = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~g') + ' GiB'"
    " : datum.value >= 1048576 ? format(datum.value / 1048576, '~g') + ' MiB'"
    " : datum.value >= 1024 ? format(datum.value / 1024, '~g') + ' KiB' : datum.value + ' B'"
)
SEEN = "indexof(hidden, datum.group) < 0"


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
    """

    name: str
    title: str
    told: str
    spec: dict[str, Any] | None = None
    wide: bool = True


def altair() -> Any:
    """The library, or what to install.

    Raises:
      MissingLibrary: it is not there.
    """
    try:
        import altair
        import vl_convert  # noqa: F401  it has the page's scripts
    except ImportError as error:
        raise MissingLibrary(f"a report needs {error.name}: {explain_install('report')}") from None
    return altair


def scripts() -> str:
    """Vega, Vega-Lite and Vega-Embed, to stand in a page."""
    version = ".".join(altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    import vl_convert

    text: str = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]  # its stub asks for a snippet
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def of_groups(values: Sequence[Row]) -> Any:
    """Rows of groups, of which the page may hide some."""
    alt = altair()
    return alt.Chart(alt.InlineData(values=list(values))).transform_filter(SEEN)


def made(chart: Any, height: int) -> dict[str, Any]:
    alt = altair()
    hidden = alt.param(name="hidden", value=[])
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    made = chart.add_params(hidden).properties(width="container", height=height, autosize=fit)
    spec: dict[str, Any] = made.to_dict()
    spec.pop("config", None)
    return spec


def style(
    section: Section, *channels: str, legend: bool = True, symbol: str = ""
) -> dict[str, Any]:
    """Colour, and the dash or shape that tells apart what shares a colour; all by the group, so as
    to be one legend.

    The page has its own beside the figures; a legend is in what is saved, unless the figure names
    its groups itself.
    """
    alt = altair()
    domain = [group.label for group in section.groups]
    ranges = {
        "color": [f"var(--c{look.colour})" for look in section.looks],
        "strokeDash": [DASHES[look.form] for look in section.looks],
        "shape": [SHAPES[look.form] for look in section.looks],
    }
    told = alt.Legend(**({"symbolType": symbol} if symbol else {})) if legend else None
    kinds = {"color": alt.Color, "strokeDash": alt.StrokeDash, "shape": alt.Shape}
    return {
        channel: kinds[channel](
            "group:N",
            title=None,
            scale=alt.Scale(domain=domain, range=ranges[channel]),
            legend=told,
        )
        for channel in ("color", *channels)
    }


def lines_across(section: Section, values: Sequence[Row]) -> list[Any]:
    """Layers of groups that are no federations, as lines over the whole width; over all others,
    where the pointer finds them."""
    if not values:
        return []
    hover = tip("group", value=section.measure.words, interval="interval")
    base = of_groups(values).encode(y="mean:Q")
    lines = base.mark_rule(strokeWidth=2).encode(**style(section, "strokeDash"))
    # named, as the page's script keeps names off it; between dashes there is nothing that a pointer
    # could meet
    return [
        lines.properties(name="across"),
        base.mark_rule(strokeWidth=6, opacity=0).encode(tooltip=hover),
    ]


def metric_axis(measure: Measure, **more: Any) -> Any:
    """Vega gives a label as many digits as tell it from its neighbours, where the format says
    nothing of them."""
    return altair().Axis(format="%" if measure.percent else "f", **more)


def metric(section: Section) -> str:
    name = section.measure.words
    return name[:1].upper() + name[1:]


def few_dots(values: Sequence[Row]) -> Any:
    """Points where a line has few of them."""
    return (
        altair().OverlayMarkDef(size=28) if len({row["round"] for row in values}) <= 12 else False
    )


def tip(*fields: str, **titles: str) -> list[Any]:
    """What hovering tells: fields under their own names, or under others."""
    named = {**{field: field for field in fields}, **titles}
    return [altair().Tooltip(f"{field}:N", title=title) for field, title in named.items()]
