"""How a merge's model changed with each contribution file."""

from collections.abc import Iterator

from fedpeft.report.groups import Section
from fedpeft.report.rows import format_value
from fedpeft.report.tables import Entry, ReportTable, integer, number, word


def arrivals(section: Section) -> ReportTable:
    """A line for each file of a merge, in the order in which they came, and one for the model
    before the first."""
    head = ("group", "seed", "files", "came", "its examples", section.measure.name)
    return ReportTable("arrivals", "Arrivals", head, list(_rows(section)))


def _rows(section: Section) -> Iterator[list[Entry]]:
    measure = section.measure
    for group in section.groups:
        for cell in group.cells:
            for count, one in enumerate(cell.arrivals.arrivals if cell.arrivals else ()):
                value = one.held_out.get(measure.name)
                shown = "not finite" if value is None else format_value(value, measure)
                yield [
                    *(word(group.label), integer(cell.seed), integer(count)),
                    word("nobody yet" if one.client is None else one.client),
                    integer(one.examples),
                    number(value, shown),
                ]
