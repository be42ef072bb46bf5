"""Measure whether the code keeps the limits of its design; `make check` fails where it does not.

    python -m tools.measures             # the figures, beside those of six other packages
    python -m tools.measures --json      # the same for a program
    python -m tools.measures --shrink    # shorten the list of what is allowed

The list `tools/measures_allowed.txt` lets breaches pass. Each of its lines is

    path:name measure value

and it may only shrink: a line fails whose breach is gone or has become smaller. What the measures
count is said in `tools/sources.py`; "function-lines" are code lines, signature included.
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tools.sources import (
    Function,
    Source,
    count_body_lines,
    count_branches,
    count_comments,
    count_methods,
    find_cycles,
    find_definitions,
    find_imports,
    find_scopes,
    find_wide_lines,
    lines_of,
    read_sources,
)

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tools" / "measures_allowed.txt"
FOLDERS = ("src", "tests", "benchmarks", "tools", "examples")
PACKAGE = "src/fedpeft"
# What is shipped with exported models has the names of what it was made from.
ASSETS = f"{PACKAGE}/assets/"


class Limit(NamedTuple):
    """The most that is allowed, and what mends a breach."""

    most: int
    remedy: str


LIMITS = {
    "complexity": Limit(10, "name what it computes on the way, or split it by purpose"),
    "function-lines": Limit(50, "split it by purpose"),
    "file-lines": Limit(400, "split it by subject"),
    "wide-lines": Limit(0, "wrap the lines"),
    "methods": Limit(3, "make an interface of each purpose"),
    "imports": Limit(12, "move what needs few of them to a module of its own"),
    "cycle": Limit(0, "move what both sides need below them"),
    "definitions": Limit(1, "rename all but one"),
}
FIGURES = (
    "complexity per ten lines of a function's body",
    "comprehensions per hundred lines",
    "ternaries per hundred lines",
    "lines wider than 100, per cent",
    "comments per hundred code lines",
)
ANCHORS = {
    "fedjax": (2.2, 1.1, 0.2, 0.4, 7.5),
    "optax": (1.2, 0.4, 0.4, 0.3, 11.5),
    "dp_accounting": (2.5, 0.4, 0.3, 0.4, 12.2),
    "httpx": (3.1, 0.8, 1.2, 0.0, 7.8),
    "equinox": (2.2, 0.7, 0.5, 0.1, 10.7),
    "torchtune": (1.7, 0.5, 0.9, 3.8, 7.6),
}
"""FIGURES of packages that are pleasant to read, counted once from their sources in November 2026.

Where a release may be installed, this script comes close: httpx 0.28.1 has 3.2, 0.8, 1.2, 0.0, 7.8.
"""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one thing, within its limit or not.

    Attributes:
      place: "path:name" of a function or class, or "path" of a whole file.
      measure: a key of LIMITS.
      note: what helps to find it.
    """

    place: str
    measure: str
    value: int
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """By what the list of allowed breaches knows it."""
        return self.place, self.measure


def measure_file(source: Source) -> Iterator[Measurement]:
    """Every measure of one file."""
    wide = find_wide_lines(source)
    yield Measurement(source.path, "file-lines", len(source.lines))
    yield Measurement(source.path, "wide-lines", len(wide), f"lines {', '.join(map(str, wide))}")
    for name, scope in find_scopes(source.tree):
        place = f"{source.path}:{name}"
        if isinstance(scope, ast.ClassDef):
            yield Measurement(place, "methods", count_methods(scope))
        else:
            code = source.code.intersection(lines_of(scope))
            yield Measurement(place, "complexity", count_branches(scope), f"line {scope.lineno}")
            yield Measurement(place, "function-lines", len(code), f"line {scope.lineno}")


def measure_package(package: Sequence[Source]) -> Iterator[Measurement]:
    """Every measure of the modules together."""
    modules = {source.module for source in package}
    imports = {source.module: find_imports(source, modules) for source in package}
    cycles = find_cycles(imports)
    for source in package:
        ring = cycles.get(source.module, [])
        yield Measurement(source.path, "imports", len(imports[source.module]))
        yield Measurement(source.path, "cycle", len(ring), ", ".join(ring))
    named = [source for source in package if not source.path.startswith(ASSETS)]
    for name, owners in find_definitions(named).items():
        yield Measurement(f"{PACKAGE}:{name}", "definitions", len(owners), ", ".join(owners))


def compute_figures(package: Sequence[Source]) -> tuple[float, ...]:
    """FIGURES of a package; lines are those that are not blank."""
    nodes = [node for source in package for node in source.nodes]
    comprehensions = sum(isinstance(node, ast.comprehension) for node in nodes)
    ternaries = sum(isinstance(node, ast.IfExp) for node in nodes)
    branches = sum(count_branches(node) for node in nodes if isinstance(node, Function))
    lines = sum(bool(line.strip()) for source in package for line in source.lines)
    return (
        10 * branches / max(sum(map(count_body_lines, package)), 1),
        100 * comprehensions / max(lines, 1),
        100 * ternaries / max(lines, 1),
        100 * sum(len(find_wide_lines(source)) for source in package) / max(lines, 1),
        100 * sum(map(count_comments, package)) / max(sum(len(one.code) for one in package), 1),
    )


# --- what is allowed ---


def find_breaches(sources: Sequence[Source]) -> list[Measurement]:
    """What passes its limit; of two things of one name in a file, the worse."""
    package = [source for source in sources if source.path.startswith(f"{PACKAGE}/")]
    measured = [breach for source in sources for breach in measure_file(source)]
    measured += measure_package(package)
    worst: dict[tuple[str, str], Measurement] = {}
    for one in measured:
        if one.value > LIMITS[one.measure].most:
            worst[one.key] = max(one, worst.get(one.key, one), key=lambda breach: breach.value)
    return sorted(worst.values(), key=lambda breach: breach.key)


def read_allowed(text: str) -> dict[tuple[str, str], int]:
    """The values that the list of allowed breaches gives.

    Raises:
      ValueError: a line that is no breach.
    """
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 3 or words[1] not in LIMITS or not words[2].isdecimal():
                raise ValueError(f"{line!r} is no allowed breach: a line is `path:name measure 12`")
            found[words[0], words[1]] = int(words[2])
    return found


def find_problems(
    breaches: Sequence[Measurement], allowed: Mapping[tuple[str, str], int]
) -> Iterator[str]:
    """In words: breaches that are not listed or have grown, and lines that are to go."""
    for one in breaches:
        listed = allowed.get(one.key, LIMITS[one.measure].most)
        words = f"{one.place}: {one.measure} is {one.value}, and "
        if one.value > listed:
            note = f" ({one.note})" if one.note else ""
            yield f"{words}at most {listed} is allowed{note}: {LIMITS[one.measure].remedy}"
        elif one.value < listed:
            yield f"{words}the list still allows {listed}: lower it, e.g. by --shrink"
    gone = set(allowed) - {one.key for one in breaches}
    for place, measure in sorted(gone):
        yield f"{place}: {measure} keeps its limit: take it off the list, e.g. by --shrink"


def shrink(text: str, breaches: Sequence[Measurement]) -> str:
    """The list without what is mended, and with lower values where breaches became smaller."""
    values = {one.key: one.value for one in breaches}
    kept = []
    for line in text.splitlines(keepends=True):
        for (place, measure), listed in read_allowed(line).items():
            value = min(listed, values.get((place, measure), 0))
            line = f"{place} {measure} {value}\n" if value else ""
        kept.append(line)
    return "".join(kept)


def table(own: Sequence[float]) -> Iterator[str]:
    """The figures of this package beside those of the others."""
    columns = {"fedpeft": own, **ANCHORS}
    width = max(map(len, FIGURES))
    yield " ".join([" " * width, *(f"{name:>13}" for name in columns)])
    for k, figure in enumerate(FIGURES):
        yield " ".join(
            [f"{figure:<{width}}", *(f"{column[k]:>13.1f}" for column in columns.values())]
        )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure whether the code keeps its limits.")
    parser.add_argument("--root", type=Path, default=ROOT, help="The repository.")
    parser.add_argument("--allowed", type=Path, default=ALLOWED, help="The list of breaches.")
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    parser.add_argument("--shrink", action="store_true", help="Shorten the list.")
    chosen = parser.parse_args(words)
    sources = read_sources(chosen.root, FOLDERS)
    breaches = find_breaches(sources)
    text = chosen.allowed.read_text() if chosen.allowed.exists() else ""
    if chosen.shrink:
        text = shrink(text, breaches)
        chosen.allowed.write_text(text)
    allowed = read_allowed(text)
    problems = list(find_problems(breaches, allowed))
    own = compute_figures([source for source in sources if source.path.startswith(f"{PACKAGE}/")])
    if chosen.json:
        told = {
            "figures": {"fedpeft": own, **ANCHORS},
            "names": FIGURES,
            "limits": {measure: limit.most for measure, limit in LIMITS.items()},
            "breaches": [asdict(one) for one in breaches],
            "problems": problems,
        }
        print(json.dumps(told, indent=2))
    else:
        print("\n".join([*table(own), f"{len(allowed)} breaches are allowed", *problems]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
