"""The tables that only some runs have, and those that go to files."""

from collections.abc import Iterator, Sequence
from typing import Any

from fedpeft.report import tables
from fedpeft.report.groups import Section
from fedpeft.report.measured import arrivals, audits, metrics, rouge_scores
from fedpeft.report.owners import confusion_tables, owner_table
from fedpeft.report.tables import ReportTable


def further_tables(section: Section) -> dict[str, Any]:
    """By the page's name for it, what was measured beside the metric, of privacy, of a merge and at
    the owners."""
    return {
        "metrics": metrics(section),
        "audits": audits(section),
        "arrivals": arrivals(section),
        "owners": owner_table(section),
        "rouge": rouge_scores(section),
        "confusions": confusion_tables(section),
    }


def csv_tables(sections: Sequence[Section]) -> Iterator[list[tuple[str, ReportTable]]]:
    """For each file, the tables of all sections under their titles; that of owners only where some
    told anything."""
    for make in (tables.groups, tables.runs, tables.rounds, tables.failures, owner_table):
        made = [(section.title, make(section)) for section in sections]
        if make is not owner_table or any(table.rows for _, table in made):
            yield made
