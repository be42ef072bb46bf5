"""What was measured beside the rounds: a lower bound of epsilon, a merge after each file, and how
near to the truth are the answers that a model writes."""

from collections.abc import Iterator, Mapping

from fedpeft.core.units import say_epsilon
from fedpeft.report.groups import Group, Measure, Section
from fedpeft.report.rows import format_value, with_interval
from fedpeft.report.tables import Entry, ReportTable, integer, number, word

LINES = 200
"""Lines of the further metrics: of a hundred classes each may have one of its own."""


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
            number(told.epsilon_upper, say_epsilon(told.epsilon_upper)),
            number(told.delta, f"{told.delta:g}"),
        ]
        for group in section.groups
        for cell in group.cells
        if (told := cell.audit)
    ]
    return ReportTable("audits", "Epsilon, measured and promised", head, rows)


WRITERS = {"before": "untuned model", "after": "tuned model"}
"""By the key of samples.json, whose answers were scored."""


def rouge_scores(section: Section) -> ReportTable:
    """Two lines for each run whose sampled answers were scored: of the untuned model and of the
    tuned one, the mean F1 over the answers."""
    scored = list(_scored(section))
    names = list(dict.fromkeys(name for _, values in scored for name in values))
    rows = [[*about, *(_score(values.get(name)) for name in names)] for about, values in scored]
    head = ("group", "seed", "after round", "answers", "written by", *names)
    return ReportTable("rouge", "ROUGE of sampled answers", head, rows)


def _scored(section: Section) -> Iterator[tuple[list[Entry], Mapping[str, float | None]]]:
    """Whose answers were scored, and by score their mean."""
    for group in section.groups:
        for cell in group.cells:
            told = cell.samples
            if told is None:
                continue
            about = [word(group.label), integer(cell.seed), integer(told.round)]
            for writer, values in (told.rouge or {}).items():
                answers = [integer(len(told.samples)), word(WRITERS.get(writer, writer))]
                yield [*about, *answers], values


def _score(value: float | None) -> Entry:
    return number(value, "" if value is None else f"{value:.4f}")


def metrics(section: Section) -> ReportTable:
    """A line for each group and each held-out metric beside the one that the report compares by and
    the loss; none where nothing else was measured."""
    told = dict.fromkeys(
        name for cell in section.cells for one in cell.rounds for name in one.held_out or {}
    )
    names = [name for name in told if name not in (section.measure.name, "loss")]
    rows = [
        [word(group.label), word(name), _after(group, Measure(name))]
        for group in section.groups
        for name in names
    ]
    title = "Further metrics"
    if len(rows) > LINES:
        title += f" (the first {LINES} of {len(rows):,} lines)"
    return ReportTable("metrics", title, ("group", "metric", "after the last round"), rows[:LINES])


def _after(group: Group, measure: Measure) -> Entry:
    """A metric after the last round, over finished runs."""
    found = group.over(lambda cell: list(cell.measured(measure.name).values())[-1])
    return number(found.mean if found else None, with_interval(found, measure))


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
