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
from fedpeft.report import tables
from fedpeft.report.drawing import DASHES, scripts
from fedpeft.report.figures import figures, intervals
from fedpeft.report.further import csv_tables, further_tables
from fedpeft.report.gallery import galleries
from fedpeft.report.groups import Group, Section
from fedpeft.report.introduction import describe_results, introduce, title_of
from fedpeft.storage.files import write_atomically


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
        return title_of(self.sections)


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
        "about": introduce(section),
        "told": describe_results(section),
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
