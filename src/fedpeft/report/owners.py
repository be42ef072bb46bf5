"""What owners measured on their own held-out examples, as tables."""

from collections.abc import Iterator, Sequence

from fedpeft.report.groups import Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.schema import KeptMetric, KeptOwners
from fedpeft.report.tables import Entry, ReportTable, integer, number, word

LINES = 200
"""Owners of a section that get a line."""
CLASSES = 30
"""Classes of a matrix that is shown whole; of more, as many pairs that are confused most often."""
ALL = "(all together)"


def owner_table(section: Section) -> ReportTable:
    """A line for each owner, and one for all examples together: each metric with its 95 % interval,
    where it has one. Owners that told nothing have a line that says why."""
    told = list(_told(section))
    names = list(dict.fromkeys(name for _, _, owners in told for name in owners.metrics))
    rows = [
        row for group, cell, owners in told for row in _rows_of(group.label, cell, owners, names)
    ]
    title = "At the owners"
    if len(rows) > LINES:
        title += f" (the first {LINES} of {len(rows):,} lines)"
    head = ("group", "seed", "owner", "examples", *names, "why nothing is told")
    return ReportTable("owners", title, head, rows[:LINES])


def confusion_tables(section: Section) -> list[ReportTable]:
    """The confusion matrix of all owners' examples for each run: a line for each true class, a
    column for each that it was taken for."""
    return [
        _confusion(f"{group.label}, seed {cell.seed}", owners)
        for group, cell, owners in _told(section)
        if owners.confusion
    ]


def _told(section: Section) -> Iterator[tuple[Group, KeptRun, KeptOwners]]:
    for group in section.groups:
        for cell in group.cells:
            if cell.owners is not None:
                yield group, cell, cell.owners


def _rows_of(
    label: str, cell: KeptRun, owners: KeptOwners, names: Sequence[str]
) -> Iterator[list[Entry]]:
    about = [word(label), integer(cell.seed)]
    nothing = [number(None, "") for _ in names]
    found = [owners.metrics.get(name, KeptMetric()) for name in names]
    if owners.examples:
        pooled = [_entry(one.pooled, one.interval) for one in found]
        yield [*about, word(ALL), integer(sum(owners.examples.values())), *pooled, word("")]
    for owner, examples in owners.examples.items():
        own = [_entry(one.each.get(owner), one.intervals.get(owner)) for one in found]
        yield [*about, word(owner), integer(examples), *own, word("")]
    for owner in owners.without:
        yield [*about, word(owner), integer(0), *nothing, word("it has no held-out examples")]
    for owner, why in {**owners.failed, **owners.not_asked}.items():
        yield [*about, word(owner), number(None, ""), *nothing, word(why)]


def _entry(value: float | None, interval: tuple[float, float] | None) -> Entry:
    if value is None or interval is None:
        return number(value, f"{value or 0:.4f}")
    return Entry(f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})", value, interval)


def _confusion(label: str, owners: KeptOwners) -> ReportTable:
    classes = owners.classes
    if len(classes) > CLASSES:
        return _confused_pairs(label, owners)
    rows = [
        [word(truth), *map(integer, counts)]
        for truth, counts in zip(classes, owners.confusion, strict=True)
    ]
    title = f"Confusion matrix: {label}"
    return ReportTable("confusion", title, ("truth", *classes), rows)


def _confused_pairs(label: str, owners: KeptOwners) -> ReportTable:
    pairs = [
        (count, truth, guess)
        for truth, counts in zip(owners.classes, owners.confusion, strict=True)
        for guess, count in zip(owners.classes, counts, strict=True)
        if count and guess != truth
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:CLASSES]
    rows = [[word(truth), word(guess), integer(count)] for count, truth, guess in most]
    title = f"The {len(rows)} of {len(pairs):,} confusions that are most frequent: {label}"
    return ReportTable("confusion", title, ("truth", "taken for", "examples"), rows)
