"""What a page compares and what came out, for a reader who knows neither fedpeft nor the plans."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TypeVar

from fedpeft.core.units import size
from fedpeft.errors import say_count
from fedpeft.evaluation.statistics import Estimate
from fedpeft.report.groups import REFERENCES, Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.rows import format_value, with_interval

UNNAMED = "run"
"""The name of a plan that has none."""
FLOAT = 4  # bytes of a weight, as full fine-tuning sends it

NEAR = 4
"""How many groups are named that seeds alone may tell from the best."""

T = TypeVar("T")


def title_of(sections: Sequence[Section]) -> str:
    """The names of the plans; of plans without one what they learn."""
    names = dict.fromkeys(
        str(cell.plan.get("name", UNNAMED)) for section in sections for cell in section.cells
    )
    if list(names) == [UNNAMED]:
        names = dict.fromkeys(section.title for section in sections)
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} experiments"


def introduce(section: Section) -> list[str]:
    """What was compared, in two or three sentences."""
    return [*_subject(section), *_work(section)]


def describe_results(section: Section) -> list[str]:
    """What the runs came to, in words."""
    seeds = ", ".join(map(str, sorted({cell.seed for cell in section.cells})))
    runs = _plural(len(section.cells), "run")
    said = [f"{runs} in {_plural(len(section.groups), 'group')}; seeds: {seeds}."]
    return [
        *(*_compare_groups(section), *_compare_bytes(section)),
        *(*_ended_worse(section), *_incomplete(section.cells)),
        *said,
    ]


def _compare_groups(section: Section) -> list[str]:
    """Which groups did best, and what they are compared with."""
    said = []
    if ranked := [group for _, group in sorted(_worths(section), key=lambda pair: -pair[0])]:
        said.append(_ranking(section, ranked))
    if across := "; ".join(_together(section, kind) for kind in REFERENCES if _of(section, kind)):
        said.append(f"To compare with, no federations: {across}.")
    if len(section.compared) > 1 and section.front("up"):
        front = "; ".join(group.label for group in section.front("up"))
        said.append(f"On the Pareto front of {section.measure.words} and bytes sent: {front}.")
        if len(section.front("up")) < len(section.compared):
            said.append("For each other group one of these is as good at least, for no more bytes.")
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
    return f"{cell.path.name}, {measure.words} from {ends}{since}"


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
    name, best, worst = section.measure.words, ranked[0], ranked[-1]
    reached = f"{name} {with_interval(best.last, section.measure)}"
    if len(section.compared) == 1:
        return f"After the last round {best.label} has {reached}."
    if _level(ranked):
        return f"After the last round all groups have {reached}."
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


def _compare_bytes(section: Section) -> list[str]:
    """What a client sends in a round, by the way that sends least and the one that sends most."""
    sent = [
        (up, group.label)
        for group in section.compared
        if not group.reference and (up := group.mean("bytes_up_per_client_round"))
    ]
    if not sent:
        return []
    (least, cheapest), (most, dearest) = min(sent), max(sent)
    text = f"A client sends {size(least)} in a round"
    if size(least) == size(most):
        text += " with each of them" if len(sent) > 1 else f" with {cheapest}"
    else:
        text += f" with {cheapest}, the least of all, and {size(most)} with {dearest}, the most"
    full = _only(c.summary and c.summary.full_params for c in section.cells if c.summary)
    if full and full * FLOAT > most:
        text += f"; all weights of the model would be {size(full * FLOAT)}"
    return [f"{text}."]


def _subject(section: Section) -> Iterator[str]:
    cells = _federated(section)
    if not cells:
        return
    count = sum(not group.reference for group in section.groups)
    ways, verb = say_count(count, "ways"), "compares" if count > 1 else "shows"
    model = _only(_model(cell) for cell in cells)
    owners = _only(cell.summary.clients for cell in cells if cell.summary)
    holders = say_count(owners, "owners") if owners else "several owners"
    theirs = "its owner" if owners == 1 else "their owners"
    yield (
        f"This page {verb} {ways} to tune {model or 'a model'} on examples of {holders}. The "
        f"examples stay with {theirs}, and only what was tuned is sent."
    )


def _work(section: Section) -> Iterator[str]:
    cells = _federated(section)
    planned = _only(cell.planned for cell in cells)
    if planned:
        cohort = _only(_cohort(cell) for cell in cells)
        who = f", with {say_count(cohort, 'owners')} in each" if cohort else ""
        yield f"Training took {say_count(planned, 'rounds')}{who}."


def _federated(section: Section) -> list[KeptRun]:
    return [cell for group in section.groups if not group.reference for cell in group.cells]


def _cohort(cell: KeptRun) -> int | None:
    cohort, clients = cell.plan.get("cohort"), cell.summary and cell.summary.clients
    return min(cohort, clients) if isinstance(cohort, int) and clients else None


def _model(cell: KeptRun) -> str:
    task = cell.plan.get("task")
    name = task.get("model", "") if isinstance(task, dict) else ""
    # a place on the author's machine tells a reader nothing
    return PurePath(str(name)).name if str(name).startswith(("/", "~", ".")) else str(name)


def _only(values: Iterable[T]) -> T | None:
    """The value that all have; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _level(groups: Sequence[Group]) -> bool:
    """Whether several groups have the same mean and interval to the bit."""
    return len(groups) > 1 and len({group.last for group in groups}) == 1
