"""A report as one HTML file that needs nothing else, and the files beside it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from fedpeft import __version__
from fedpeft.errors import RunError
from fedpeft.evaluation.statistics import Estimate
from fedpeft.report import tables
from fedpeft.report.drawing import DASHES, scripts
from fedpeft.report.figures import figures, intervals
from fedpeft.report.further import csv_tables, further_tables
from fedpeft.report.gallery import galleries
from fedpeft.report.groups import REFERENCES, Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.rows import format_value, with_interval
from fedpeft.storage.files import write_atomically

NEAR = 4
"""How many groups are named that seeds alone may tell from the best."""


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
      problems: a line for each thing that is left out.
      command: what made the page.
    """

    sections: Sequence[Section]
    problems: Sequence[str]
    command: str

    @property
    def title(self) -> str:
        names = dict.fromkeys(
            str(cell.plan.get("name", "run")) for s in self.sections for cell in s.cells
        )
        return ", ".join(names) if len(names) <= 3 else f"{len(names)} experiments"


def html(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined

    folder = files("fedpeft") / "assets" / "report"
    page, style, script = (
        (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return template.from_string(page).render(
        report=report,
        parts=[_part(k, section) for k, section in enumerate(report.sections)],
        style=style,
        script=script,
        library=scripts(),
        versions={"fedpeft": __version__, "python": ".".join(map(str, sys.version_info[:3]))},
    )


def _part(k: int, section: Section) -> dict[str, Any]:
    drawn = figures(section)
    return {
        "id": f"s{k}",
        "section": section,
        "told": _describe_results(section),
        "intervals": intervals(section),
        "galleries": galleries(section),
        "figures": drawn,
        "specs": _safe_json({figure.name: figure.spec for figure in drawn if figure.spec}),
        "groups": tables.groups(section),
        "runs": tables.runs(section),
        "failures": tables.failures(section),
        **further_tables(section),
        "benchmarks": tables.benchmarks(section),
        "samples": tables.samples(section),
        "differences": tables.differences(section),
        "common": _common(section),
        "plans": [(group.label, _toml(group)) for group in section.groups],
        "chips": [
            (g.label, look.colour, DASHES[look.form])
            for g, look in zip(section.groups, section.looks, strict=True)
        ],
        "versions": _versions(section),
    }


def _safe_json(value: Any) -> str:
    """JSON that may stand in a script element whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _describe_results(section: Section) -> list[str]:
    """What the runs came to, in words."""
    seeds = ", ".join(map(str, sorted({cell.seed for cell in section.cells})))
    runs = _plural(len(section.cells), "run")
    said = [f"{runs} in {_plural(len(section.groups), 'group')}; seeds: {seeds}."]
    return said + _compare_groups(section) + _ended_worse(section) + _incomplete(section.cells)


def _compare_groups(section: Section) -> list[str]:
    """Which groups did best, and what they are compared with."""
    said = []
    if ranked := [group for _, group in sorted(_worths(section), key=lambda pair: -pair[0])]:
        said.append(_ranking(section, ranked))
    if across := "; ".join(_together(section, kind) for kind in REFERENCES if _of(section, kind)):
        said.append(f"To compare with, no federations: {across}.")
    if len(section.compared) > 1 and section.front("up"):
        front = "; ".join(group.label for group in section.front("up"))
        said.append(f"On the Pareto front of {section.measure.name} and bytes sent: {front}.")
    return said


def _ended_worse(section: Section) -> list[str]:
    """Which finished runs are worse at their end than what they began with."""
    worse = [
        words
        for group in section.groups
        for cell in group.finished
        if (words := _drop(section, cell))
    ]
    if not worse:
        return []
    more = f"; and {len(worse) - NEAR} more" if len(worse) > NEAR else ""
    runs = _plural(len(worse), "run is", "runs are")
    return [f"{runs} worse at the end than at the beginning: {'; '.join(worse[:NEAR])}{more}."]


def _drop(section: Section, cell: KeptRun) -> str:
    """How much worse a run ended than it began, with both numbers; empty if it did not."""
    measure, begun = section.measure, cell.summary and cell.summary.start
    values = list(cell.measured(measure.name).values())
    before = begun.metrics.get(measure.name) if begun else None
    if not begun or before is None or not values:
        return ""
    if measure.worth(values[-1]) >= measure.worth(before):
        return ""
    ends = " to ".join(format_value(value, measure, 2) for value in (before, values[-1]))
    since = f", counted from round {begun.round}" if begun.round else ""
    return f"{cell.path.name}, {measure.name} from {ends}{since}"


def _incomplete(cells: Sequence[KeptRun]) -> list[str]:
    """What failed, and what is not finished."""
    said = []
    clients = [c for cell in cells for r in cell.rounds for c in r.clients.values()]
    if failed := sum(client.failed is not None for client in clients):
        said.append(
            f"{_plural(failed, 'reply', 'replies')} failed and counted for nothing; a table below "
            "names them."
        )
    if unfinished := sum(not cell.finished for cell in cells):
        said.append(
            f"{_plural(unfinished, 'run is', 'runs are')} unfinished and in no mean; only where no "
            "run of a group is finished, its curve shows them."
        )
    return said


def _worths(section: Section) -> list[tuple[float, Group]]:
    return [
        (section.measure.worth(group.last.mean), group) for group in section.compared if group.last
    ]


def _of(section: Section, kind: str) -> list[Group]:
    return [group for group in section.across if group.reference == kind]


def _together(section: Section, kind: str) -> str:
    """A kind of what federations are compared with: the only group, or from where to where several
    are."""
    found = _of(section, kind)
    if len(found) == 1:
        return f"{found[0].label} {with_interval(found[0].last, section.measure)}"
    means = sorted(group.last.mean for group in found if group.last)
    low, high = (format_value(mean, section.measure) for mean in (means[0], means[-1]))
    return f"{kind} {low} to {high}"


def _ranking(section: Section, ranked: Sequence[Group]) -> str:
    name, best, worst = section.measure.name, ranked[0], ranked[-1]
    reached = f"{name} {with_interval(best.last, section.measure)}"
    if len(section.compared) == 1:
        return f"After the last round {best.label} has {reached}."
    text = f"Best is {best.label} with {reached} after the last round"
    if worst is not best:
        text += f"; worst is {worst.label} with {with_interval(worst.last, section.measure)}"
    near = [group.label for group in ranked[1:] if _overlap(best.last, group.last)]
    if near:
        more = f" and {len(near) - NEAR} more" if len(near) > NEAR else ""
        text += f". Seeds alone may account for the lead over {'; '.join(near[:NEAR])}{more}: "
        text += "the intervals overlap"
    return f"{text}."


def _overlap(one: Estimate | None, other: Estimate | None) -> bool:
    """Whether two intervals have a point in common; False where there is none."""
    if (
        not (one and other)
        or one.low is None
        or one.high is None
        or other.low is None
        or other.high is None
    ):
        return False
    return one.low <= other.high and other.low <= one.high


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _common(section: Section) -> str:
    """What all plans have in common, as TOML."""
    shared = dict(section.groups[0].cells[0].experiment)
    for group in section.groups[1:]:
        shared = _intersection(shared, group.cells[0].experiment)
    return tomli_w.dumps(shared)


def _intersection(one: Any, other: Any) -> dict[str, Any]:
    both = {}
    for key, value in one.items():
        there = other.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            if inner := _intersection(value, there):
                both[key] = inner
        elif key in other and value == there:
            both[key] = value
    return both


def _toml(group: Group) -> str:
    return tomli_w.dumps(dict(group.cells[0].asked))


def _versions(section: Section) -> list[str]:
    """With what the runs were made; several lines if with several."""
    found = dict.fromkeys(
        ", ".join(
            [
                *(f"{name} {version}" for name, version in told.versions.items()),
                f"on {told.device} {told.cpu}",
            ]
        )
        for cell in section.cells
        if (told := cell.summary)
    )
    return list(found)


def write_report(
    report: Report, out: Path, as_csv: bool = False, as_latex: bool = False
) -> list[Path]:
    """Write the page and what is asked for beside it; what was there under these names is replaced.

    Raises:
      RunError: `out` is a folder.
    """
    if out.is_dir():
        raise RunError(f"{out} is a folder: give -o the name of a file")
    texts = {out: html(report)}
    if as_csv:
        for made in csv_tables(report.sections):
            texts[out.with_name(f"{out.stem}-{made[0][1].name}.csv")] = tables.as_csv(made)
    if as_latex:
        texts[out.with_suffix(".tex")] = tables.as_latex(
            [(s.title, tables.groups(s)) for s in report.sections]
        )
    for path, text in texts.items():
        write_atomically(path, text.encode())
    return list(texts)
