"""The results of a race as a table in Markdown and as a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ABOUT = ("machine", "products", "quiet", "megabytes")
"""Of a race's results what is of no work."""
HEAD = """| {name} | s a round | least to most | of the loop | first round after | MB | difference |
|---|---|---|---|---|---|---|
"""


def table(results: Mapping[str, Any]) -> str:
    """One table for each work, below the machine that it was done on."""
    machine = results["machine"]
    said = [f"{key} {value}" for key, value in machine.items() if key not in ("cpu", "engines")]
    parts = [f"{machine['cpu']}: {', '.join(said)}\n", *_speeds(results)]
    for name, found in results.items():
        if name in ABOUT:
            continue
        rows = [f"| {key} | {value} |" for key, value in found.items() if key != "what"]
        if "racers" in found:
            rows = [_row(racer, row) for racer, row in found["racers"].items()]
        head = HEAD.format(name=name) if "racers" in found else f"| {name} | |\n|---|---|\n"
        absent = "".join(
            f"\nWithout {racer}: {why}.\n" for racer, why in found.get("out", {}).items()
        )
        racing = found.get("racers", {}).items()
        chose = "".join(
            f"\n{racer} chose {row['chose']}.\n" for racer, row in racing if "chose" in row
        )
        parts.append(f"{name}: {found['what']}\n\n{head}" + "\n".join(rows) + f"\n{chose}{absent}")
    return "\n".join(parts)


def _speeds(results: Mapping[str, Any]) -> Iterator[str]:
    """How fast the processor multiplies, how quiet it was, and how memory was measured."""
    for kind, rates in results.get("products", {}).items():
        told = ", ".join(f"{rate} on {threads}" for threads, rate in rates.items())
        yield f"Products, {kind}: {told} (10^9 operations a second).\n"
    for when, quiet in results.get("quiet", {}).items():
        yield f"Quiet, {when}: load of a core {quiet['load']}, spread {quiet['spread']}.\n"
    if "megabytes" in results:
        yield f"MB: {results['megabytes']}.\n"


def _row(racer: str, row: Mapping[str, Any]) -> str:
    spread = f"{row['least']:.3g} to {row['most']:.3g}"
    ratio = f"{row['of_loop']:.2f}" if "of_loop" in row else ""
    apart = f"{row['difference']:.1g}" if "difference" in row else ""
    seconds, first = f"{row['seconds']:.3g}", f"{row['first']:.1f} s"
    return f"| {racer} | {seconds} | {spread} | {ratio} | {first} | {row['memory_mb']} | {apart} |"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Bars of each racer's time over the loop's, one panel for each work; the loop is the line at
    1."""
    import altair as alt

    values = [
        {"work": name, "racer": racer, "ratio": row["of_loop"]}
        for name, found in results.items()
        if name not in ABOUT
        for racer, row in found.get("racers", {}).items()
        if "of_loop" in row
    ]
    if not values:
        return
    base = alt.Chart(alt.InlineData(values=values))
    ratio = alt.X(
        "ratio:Q",
        scale=alt.Scale(type="log"),
        title="time of a round over the bare loop's (logarithmic)",
    )
    points = base.mark_circle(size=80).encode(
        x=ratio,
        y=alt.Y("racer:N", sort=None, title=None),
        color=alt.condition(
            "indexof(datum.racer, 'fedpeft') == 0", alt.value("#1f5fa8"), alt.value("#888888")
        ),
    )
    names = base.mark_text(align="left", dx=8).encode(
        x=ratio, y=alt.Y("racer:N", sort=None), text="ratio:Q"
    )
    chart = alt.layer(points, names).properties(width=420).facet(row=alt.Row("work:N", title=None))
    chart.resolve_scale(x="independent", y="independent").save(str(path))
