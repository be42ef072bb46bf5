"""A lower bound of epsilon that was measured, beside the one that is promised."""

from fedpeft.report.groups import Section
from fedpeft.report.tables import ReportTable, integer, number, word


def audits(section: Section) -> ReportTable:
    """A line for each run whose ε was measured with canaries."""
    head = (
        *("group", "seed", "hidden", "canaries", "rounds", "guesses", "right"),
        *("epsilon, at least (measured)", "epsilon, at most (accountant)", "delta"),
    )
    rows = [
        [
            *(word(group.label), integer(cell.seed), word(f"one {told.unit}")),
            *(integer(told.canaries), integer(told.rounds)),
            *(integer(told.guesses), integer(told.right)),
            number(told.epsilon_lower, f"{told.epsilon_lower:.3g}"),
            number(told.epsilon_upper, f"{told.epsilon_upper or 0:.3g}"),
            number(told.delta, f"{told.delta:g}"),
        ]
        for group in section.groups
        for cell in group.cells
        if (told := cell.audit)
    ]
    return ReportTable("audits", "Epsilon, measured and promised", head, rows)
