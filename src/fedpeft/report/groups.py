"""Runs in order: by what is learned, by experiment, and what each experiment came to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from fedpeft.core.units import is_less_better
from fedpeft.evaluation.statistics import Estimate, estimate_or_none, pareto
from fedpeft.report.axes import PlanAxis, axes, label
from fedpeft.report.reading import KeptRun

WAYS = ("up", "down")
COLOURS, FORMS = 8, 6
"""How many colours, and how many dashes and shapes, a page has for federations."""
CENTRALISED, LOCAL_ONLY = "centralised", "local only"
REFERENCES = (CENTRALISED, LOCAL_ONLY)
"""Runs that are no federation: all data in one client; nothing travels, so that each client learns
alone."""


@dataclass(frozen=True)
class Measure:
    """The held-out metric that a report compares by."""

    name: str

    @property
    def words(self) -> str:
        """Its name as a reader of a page takes it."""
        return self.name.replace("_", " ")

    @property
    def lower_is_better(self) -> bool:
        return is_less_better(self.name)

    @property
    def percent(self) -> bool:
        return self.name.partition(" at ")[0] == "accuracy"

    def worth(self, value: float) -> float:
        return -value if self.lower_is_better else value


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, which differ in the seed; cells in the order of their seeds.

    Attributes:
      label: its name in tables and figures.
      colour: what of the name has a colour of its own; the rest has a shape.
      reference: which of `REFERENCES` it is; empty of a federation.
    """

    label: str
    colour: str
    rest: str
    cells: tuple[KeptRun, ...]
    measure: Measure
    reference: str = ""

    @cached_property
    def finished(self) -> tuple[KeptRun, ...]:
        return tuple(cell for cell in self.cells if cell.finished)

    @cached_property
    def last(self) -> Estimate | None:
        """The metric after the last round, over finished runs."""
        return self.over(lambda cell: list(cell.measured(self.measure.name).values())[-1])

    def over(self, value: Callable[[KeptRun], float | None]) -> Estimate | None:
        """A value over the finished runs; None unless all have it, so that no mean is over fewer
        seeds than told."""
        try:
            found = [one for cell in self.finished if (one := value(cell)) is not None]
        except (IndexError, ZeroDivisionError):
            return None
        return estimate_or_none(found) if len(found) == len(self.finished) else None

    def curve(self) -> list[tuple[int, Estimate]]:
        """The metric by round, where all runs have it; unfinished ones count only if none is
        finished."""
        lines = [cell.measured(self.measure.name) for cell in self.finished or self.cells]
        shared = sorted(set.intersection(*map(set, lines)))
        return [(at, e) for at in shared if (e := estimate_or_none([line[at] for line in lines]))]

    def sent(self, way: str) -> float | None:
        """Bytes that a client of a federation sends ("up") or receives in the whole run, on
        average."""
        if self.reference:
            return None
        found = self.over(
            lambda cell: sum(getattr(r, f"bytes_{way}") for r in cell.rounds) / clients(cell)
        )
        return found.mean if found else None

    def mean(self, key: str) -> float | None:
        """The mean of a number of the summaries."""
        found = self.over(lambda cell: getattr(cell.summary, key))
        return found.mean if found else None


@dataclass(frozen=True)
class Look:
    """How a group is drawn: the numbers of its colour and of its dash and shape."""

    colour: int
    form: int


@dataclass(frozen=True)
class Section:
    """Runs that learn the same from the same data, and so may be compared.

    Attributes:
      axes: in what the federations differ.
      groups: the federations, in the order of `axes`, then what they are compared with.
    """

    title: str
    measure: Measure
    axes: tuple[PlanAxis, ...]
    groups: tuple[Group, ...]

    @cached_property
    def cells(self) -> tuple[KeptRun, ...]:
        return tuple(cell for group in self.groups for cell in group.cells)

    @cached_property
    def compared(self) -> tuple[Group, ...]:
        """The federations; all groups where none is one."""
        return tuple(group for group in self.groups if not group.reference) or self.groups

    @cached_property
    def across(self) -> tuple[Group, ...]:
        """The groups that are no federations and have a result, to compare federations with."""
        return tuple(group for group in self.groups[len(self.compared) :] if group.last)

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """The look of each group; when the colours are used up they come again in another form."""
        colours = list(dict.fromkeys(group.colour for group in self.groups))
        rests = list(dict.fromkeys(group.rest for group in self.groups))
        return tuple(
            _look(group, colours.index(group.colour), rests.index(group.rest))
            for group in self.groups
        )

    def front(self, way: str) -> list[Group]:
        """The federations that no other beats both in bytes and in the metric, cheapest first; by
        the means alone."""
        known = [(sent, g.last.mean, g) for g in self.groups if g.last and (sent := g.sent(way))]
        return [
            known[k][2]
            for k in pareto([(sent, self.measure.worth(mean)) for sent, mean, _ in known])
        ]


def _look(group: Group, colour: int, rest: int) -> Look:
    if group.reference:
        return Look(colour % COLOURS, FORMS + REFERENCES.index(group.reference))
    return Look(colour % COLOURS, (colour // COLOURS + rest) % FORMS)


def clients(cell: KeptRun) -> int:
    """How many clients the federation of a run has; 0 if nothing tells."""
    if cell.summary and cell.summary.clients:
        return cell.summary.clients
    if cell.division:
        return len(cell.division.histograms)
    planned = _table(cell.plan.get("partition")).get("clients")
    return planned if isinstance(planned, int) else 0


def reference(cell: KeptRun) -> str:
    """Which of `REFERENCES` a run is; empty of a federation."""
    if clients(cell) == 1:
        return CENTRALISED
    return LOCAL_ONLY if "*" in _personal(cell.plan) else ""


def _personal(plan: Mapping[str, Any]) -> list[Any]:
    """The patterns of what stays with the clients; plans of version 1 have a key for them."""
    parts = [_table(one) for one in plan.get("routing") or ()]
    told = [one.get("patterns") for one in parts if one.get("name") == "personal"]
    return [x for some in (*told, plan.get("personal")) if isinstance(some, list) for x in some]


def sections(cells: Sequence[KeptRun]) -> list[Section]:
    """One for each task on each data set, in the order in which the cells come."""
    return [_section(title, inside) for title, inside in _by(_problem, cells).items()]


def _problem(cell: KeptRun) -> str:
    task, data = (_table(cell.plan.get(key)) for key in ("task", "data"))
    where = PurePath(str(data.get("path") or "")).name or data.get("name", "data")
    return f"{where}, {task.get('name', 'task')}"


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"name": value}


def _section(title: str, cells: Sequence[KeptRun]) -> Section:
    measure = _measure(cells)
    kinds = _by(reference, cells)
    federations, found = _groups("", kinds.get("", ()), measure)
    others = [
        group for kind in REFERENCES for group in _groups(kind, kinds.get(kind, ()), measure)[0]
    ]
    return Section(title, measure, tuple(found), (*federations, *others))


def _groups(
    kind: str, cells: Sequence[KeptRun], measure: Measure
) -> tuple[list[Group], list[PlanAxis]]:
    """The groups of cells that are of one kind, and in what they differ."""
    every = list(_by(lambda cell: cell.identity, cells).values())
    found = axes([members[0].experiment for members in every])
    told = [axis for axis in found if axis.told]
    groups = []
    for k, members in enumerate(every):
        method = str(_table(members[0].plan.get("method")).get("name", "run"))
        ordered = tuple(sorted(members, key=lambda cell: cell.seed))
        groups.append(Group(*_name_group(kind, method, told, k), ordered, measure, kind))
    return groups, found


def _name_group(kind: str, method: str, told: Sequence[PlanAxis], k: int) -> tuple[str, str, str]:
    """The name of a group, what of it has a colour, and what a shape: of what is no federation, its
    method and kind."""
    if kind and (not told or told[0].path != "method"):
        return ", ".join(filter(None, (kind, method, label(told, k)))), method, kind
    first, rest = (told[0].words(k), label(told[1:], k)) if told else (method, "")
    return (
        (", ".join(filter(None, (kind, first, rest))), first, kind)
        if kind
        else (label(told, k) or first, first, rest)
    )


def _measure(cells: Sequence[KeptRun]) -> Measure:
    """Accuracy where there is one; else the first metric that is no loss; else the loss."""
    names = dict.fromkeys(name for cell in cells for r in cell.rounds for name in r.held_out or {})
    if not names or "accuracy" in names:
        return Measure("accuracy")
    return Measure(next((name for name in names if name != "loss"), "loss"))


def _by(key: Callable[[KeptRun], str], cells: Sequence[KeptRun]) -> dict[str, list[KeptRun]]:
    found: dict[str, list[KeptRun]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found
