"""A report's tables as plain values, for the page, for CSV and for LaTeX."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.core.units import duration, size
from fedpeft.evaluation.statistics import Estimate
from fedpeft.report.axes import PlanAxis, axes
from fedpeft.report.groups import CENTRALISED, WAYS, Group, Measure, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.rows import drawn_ends, format_value, with_interval
from fedpeft.report.schema import Range

REASONS = 200
OVER_CLIENTS = {
    "mean": "mean of clients",
    "worst_decile": "worst tenth of clients",
    "std": "standard deviation over clients",
}
"""How a result serves each client: the words of a heading by what a summary calls it."""


@dataclass(frozen=True)
class Entry:
    """What a cell of a table shows, and the value by which it is sorted and written to a file.

    Attributes:
      ends: of a mean the ends of its interval, for files.
    """

    text: str
    value: str | float | None = None
    ends: tuple[float, float] | None = None

    @property
    def number(self) -> bool:
        return isinstance(self.value, int | float)


@dataclass(frozen=True)
class ReportTable:
    """Lines of entries, as many as `head` has columns; `name` is a word for its file."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Entry]]

    def numeric(self, column: int) -> bool:
        return all(row[column].number or row[column].value is None for row in self.rows)


def word(text: str) -> Entry:
    return Entry(text, text)


def number(value: float | None, text: str) -> Entry:
    return Entry("–" if value is None else text, value)


def integer(value: float | None) -> Entry:
    return number(value, f"{value or 0:,.0f}")


def amount(value: float | None) -> Entry:
    return number(value, size(value or 0))


def groups(section: Section) -> ReportTable:
    """A line for each group: a group that is no federation has no bytes, and one client no
    spread."""
    name = section.measure.name
    over_clients = (f"{name}, {words}" for words in OVER_CLIENTS.values())
    head = (
        *("group", "seeds", f"{name}, last", "interval", *over_clients),
        *("parameters trained", "of full", "up, client and round", "down, client and round"),
        *("up, client and run", "down, client and run", "Pareto front", "time"),
    )
    fronts = {way: section.front(way) for way in WAYS}
    rows = []
    for group in section.groups:
        ways = [way for way in WAYS if any(group is one for one in fronts[way])]
        rows.append(_group(group, section.measure, ways))
    return _without_empty(ReportTable("groups", "Groups", head, rows))


def _group(group: Group, measure: Measure, ways: Sequence[str]) -> list[Entry]:
    """A line of `groups`; `ways` are those on whose Pareto front the group lies."""
    trained, spent = group.mean("trainable_params"), group.mean("seconds")
    return [
        word(group.label),
        integer(len(group.finished)),
        _metric(group.last, measure),
        word(group.last.kind if group.last else "not finished"),
        *(_metric(_over_clients(group, key), measure) for key in OVER_CLIENTS),
        integer(trained),
        _share(trained, group.mean("full_params")),
        *(_each_round(group, way) for way in WAYS),
        *(amount(group.sent(way)) for way in WAYS),
        word(" and ".join(ways)),
        number(spent, duration(spent or 0)),
    ]


def _share(part: float | None, whole: float | None) -> Entry:
    share = part / whole if part is not None and whole else None
    return number(share, f"{share or 0:.2%}")


def _each_round(group: Group, way: str) -> Entry:
    """The bytes of one client in one round; none where there is no federation."""
    return amount(None if group.reference else group.mean(f"bytes_{way}_per_client_round"))


def _metric(found: Estimate | None, measure: Measure) -> Entry:
    if found is None or found.low is None:
        return number(found.mean if found else None, with_interval(found, measure))
    ends = drawn_ends(found, measure)
    return Entry(with_interval(found, measure), found.mean, (ends["low"], ends["high"]))


def _over_clients(group: Group, key: str) -> Estimate | None:
    """What the runs tell of the accuracies of their clients."""
    if group.reference == CENTRALISED:
        return None
    return group.over(
        lambda cell: getattr(cell.summary and cell.summary.client_accuracy, key, None)
    )


def runs(section: Section) -> ReportTable:
    """A line for each run."""
    name = section.measure.name
    head = (
        *(
            "group",
            "seed",
            "state",
            f"{name}, last",
            f"{name}, best",
            "rounds",
            "replies",
            "failed",
        ),
        *("up, all clients", "down, all clients", "folder"),
    )
    rows = [_run(group, cell, section.measure) for group in section.groups for cell in group.cells]
    return ReportTable("runs", "Runs", head, rows)


def _run(group: Group, cell: KeptRun, measure: Measure) -> list[Entry]:
    values = list(cell.measured(measure.name).values())
    last, best = (values[-1], max(values, key=measure.worth)) if values else (None, None)
    clients = [client for r in cell.rounds for client in r.clients.values()]
    failed = sum(client.failed is not None for client in clients)
    return [
        word(group.label),
        number(cell.seed, f"{cell.seed}"),
        word("finished" if cell.finished else "unfinished"),
        number(last, format_value(last, measure, 2)),
        number(best, format_value(best, measure, 2)),
        number(len(cell.rounds), f"{len(cell.rounds)} of {cell.planned}"),
        integer(len(clients) - failed),
        integer(failed),
        amount(sum(r.bytes_up for r in cell.rounds)),
        amount(sum(r.bytes_down for r in cell.rounds)),
        word(f"{cell.path}"),
    ]


def failures(section: Section) -> ReportTable:
    """A line for each reply that was not counted and each round that changed nothing, up to
    `REASONS`."""
    rows = []
    for group in section.groups:
        for cell in group.cells:
            for r in cell.rounds:
                about = [word(group.label), integer(cell.seed), integer(r.round)]
                rows += [
                    [*about, word(name), word(c.failed)]
                    for name, c in r.clients.items()
                    if c.failed is not None
                ]
                rows += [[*about, word("(the round)"), word(r.note)]] if r.note else []
    title = (
        "Failures" if len(rows) <= REASONS else f"Failures (the first {REASONS} of {len(rows):,})"
    )
    return ReportTable(
        "failures", title, ("group", "seed", "round", "client", "reason"), rows[:REASONS]
    )


def samples(section: Section) -> ReportTable:
    """A line for each sampled answer of a language model."""
    head = (
        "group",
        "seed",
        "after round",
        "given",
        "untuned model",
        "tuned model",
        "held-out text",
    )
    rows = [
        [
            word(group.label),
            integer(cell.seed),
            integer(told.round),
            *map(word, (s.given, s.before, s.after, s.truth)),
        ]
        for group in section.groups
        for cell in group.cells
        if (told := cell.samples)
        for s in told.samples
    ]
    return ReportTable("samples", "Sampled answers", head, rows)


def benchmarks(section: Section) -> ReportTable:
    """A line for each benchmark of a run and each of its metrics."""
    head = (
        *("group", "seed", "after round", "benchmark", "shots", "questions asked", "left out"),
        *("chance", "metric", "base, not tuned", "tuned", "difference, points"),
    )
    rows = [
        [
            *(word(group.label), integer(cell.seed), integer(told.round), word(told.benchmark)),
            *(integer(told.shots), integer(told.questions - told.left_out), integer(told.left_out)),
            *(number(told.chance, f"{told.chance:.1%}"), word(name)),
            *(
                _range_entry(each.base),
                _range_entry(each.tuned),
                _range_entry(each.difference, "+"),
            ),
        ]
        for group in section.groups
        for cell in group.cells
        for told in cell.benchmarks.benchmarks
        for name, each in told.metrics.items()
    ]
    return ReportTable("benchmarks", "Benchmarks", head, rows)


def _range_entry(one: Range, sign: str = "") -> Entry:
    """A share in percent and its interval."""
    value, low, high = (format(100 * x, f"{sign}.1f") for x in (one.value, one.low, one.high))
    return number(one.value, f"{value} ({low} to {high})")


def differences(section: Section) -> ReportTable:
    """In which plan keys the groups differ."""
    found = axes([group.cells[0].experiment for group in section.groups])
    head = ("group", *(axis.path for axis in found))
    rows = [
        [word(group.label), *(_setting(axis, k) for axis in found)]
        for k, group in enumerate(section.groups)
    ]
    return ReportTable("differences", "What differs", head, rows)


def _setting(axis: PlanAxis, k: int) -> Entry:
    """What the k-th group sets on an axis; sorted as a number where the axis has numbers."""
    text = axis.values[k]
    return number(axis.numbers[k], text) if axis.numbers else word(text)


def rounds(section: Section) -> ReportTable:
    """A line for each round of each run, for files only."""
    head = (
        "group",
        "seed",
        "round",
        section.measure.name,
        "bytes up",
        "bytes down",
        "failed",
        "epsilon",
        "seconds",
    )
    rows = []
    for group in section.groups:
        for cell in group.cells:
            for r in cell.rounds:
                value = (r.held_out or {}).get(section.measure.name)
                failed = sum(client.failed is not None for client in r.clients.values())
                epsilon = r.privacy.epsilon if r.privacy else None
                numbers = (
                    cell.seed,
                    r.round,
                    value,
                    r.bytes_up,
                    r.bytes_down,
                    failed,
                    epsilon,
                    r.seconds,
                )
                rows.append([word(group.label), *(number(x, f"{x}") for x in numbers)])
    return ReportTable("rounds", "Rounds", head, rows)


def _without_empty(table: ReportTable) -> ReportTable:
    """Without columns of which nothing is known."""
    some = [
        k
        for k in range(len(table.head))
        if any(row[k].value not in (None, "") for row in table.rows)
    ]
    return ReportTable(
        table.name,
        table.title,
        tuple(table.head[k] for k in some),
        [[r[k] for k in some] for r in table.rows],
    )


def as_csv(named: Sequence[tuple[str, ReportTable]]) -> str:
    """Tables of one kind, below each other, each line beginning with the name of its section. The
    ends of an interval have columns of their own.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head: list[str] = []
    for title, table in named:
        own, lines = _expand(table)
        if own != head:
            head = own
            writer.writerow(["experiment", *map(_inert, head)])
        for line in lines:
            writer.writerow([_inert(title), *("" if x is None else _inert(x) for x in line)])
    return file.getvalue()


def _expand(table: ReportTable) -> tuple[list[str], list[list[str | float | None]]]:
    """Heading and lines, with columns for the ends of intervals."""
    wide = [any(row[k].ends for row in table.rows) for k in range(len(table.head))]
    head: list[str] = []
    for text, ends in zip(table.head, wide, strict=True):
        head += _headings(text, ends)
    lines: list[list[str | float | None]] = []
    for row in table.rows:
        lines.append([])
        for entry, ends in zip(row, wide, strict=True):
            lines[-1] += _values(entry, ends)
    return head, lines


def _headings(heading: str, wide: bool) -> list[str]:
    return [heading, f"{heading}, low", f"{heading}, high"] if wide else [heading]


def _values(entry: Entry, wide: bool) -> list[str | float | None]:
    return [entry.value, *(entry.ends or (None, None))] if wide else [entry.value]


def _inert(value: str | float) -> str | float:
    return (
        f"'{value}"
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        else value
    )


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
} | {sign: f"\\{sign}" for sign in "&%$#_"}
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
"""A table wider than the text is made as wide as the text."""
SIGNS = {"±": r"$\pm$", "–": "--", "ε": r"$\varepsilon$"}


def as_latex(named: Sequence[tuple[str, ReportTable]]) -> str:
    """One table for each, no wider than the text; needs \\usepackage{booktabs,graphicx}."""
    return "\n".join(_latex(title, table) for title, table in named)


def _latex(title: str, table: ReportTable) -> str:
    columns = "".join("r" if table.numeric(k) else "l" for k in range(len(table.head)))
    lines = [
        "\\begin{table}\n  \\centering",
        f"  \\caption{{{escape(title)}}}",
        f"  {FITTED}{{%\n  \\begin{{tabular}}{{{columns}}}\n    \\toprule",
        f"    {' & '.join(map(escape, table.head))} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(escape(entry.text) for entry in row)} \\\\" for row in table.rows),
        "    \\bottomrule\n  \\end{tabular}}\n\\end{table}\n",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join((LATEX | SIGNS).get(sign, sign if sign.isprintable() else " ") for sign in text)
