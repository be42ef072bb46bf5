"""The numbers behind the figures, as rows of plain values under fixed names.

What comes from run folders is only ever a value of a row, never a name of a field or a part of an
expression.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedpeft.core.units import say_epsilon, size
from fedpeft.evaluation.statistics import Estimate
from fedpeft.report.axes import PlanAxis, label
from fedpeft.report.groups import CENTRALISED, Group, Measure, Section
from fedpeft.report.reading import KeptRun

Row = dict[str, Any]
DIVISIONS = 8
CLIENTS = 64


def format_value(value: float | None, measure: Measure, digits: int = 1) -> str:
    """A value of the metric as people read it: percent for an accuracy."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f} %" if measure.percent else f"{value:#.4g}".rstrip(".")


def with_interval(found: Estimate | None, measure: Measure) -> str:
    """ "97.2 ± 0.3 %"; see `Estimate.text`."""
    if found is None:
        return format_value(None, measure)
    if measure.percent:
        percent = "{:.1f}".format
        shown = lambda value: percent(100 * value)
        return f"{found.within(0, 1).text(shown, shown)} %"
    return found.text(lambda value: format_value(value, measure), "{:.2g}".format)


def describe_interval(found: Estimate, measure: Measure) -> str:
    """The interval in words, as far as it is drawn."""
    if found.low is None:
        return found.kind
    ends = drawn_ends(found, measure)
    low, high = (format_value(ends[end], measure) for end in ("low", "high"))
    return f"{low} to {high} ({found.kind})"


def drawn_ends(found: Estimate, measure: Measure) -> Row:
    """A mean and the ends of its interval as far as a figure has room: accuracies end at 0 and
    1."""
    low, high = found.low, found.high
    if low is not None and high is not None and measure.percent:
        low, high = max(0.0, low), min(1.0, high)
    return {"mean": found.mean, "low": low, "high": high}


def curves(section: Section) -> list[Row]:
    """The metric by round and federation."""
    return [
        {
            "group": group.label,
            "round": at,
            **drawn_ends(found, section.measure),
            "value": format_value(found.mean, section.measure, 2),
            "interval": describe_interval(found, section.measure),
        }
        for group in section.compared
        for at, found in group.curve()
    ]


def further_metrics(section: Section) -> list[str]:
    """Held-out metrics beside the one that a report compares by, which change from round to round;
    no losses."""
    found = dict.fromkeys(
        name for cell in section.cells for one in cell.rounds for name in one.held_out or {}
    )
    others = (name for name in found if name != section.measure.name)
    return [
        name
        for name in others
        if name.partition(" at ")[0] != "loss"
        if any(len(set(cell.measured(name).values())) > 1 for cell in section.cells)
    ]


def across(section: Section) -> list[Row]:
    """The metric after the last round of a group that is no federation, without rounds and bytes
    that compare."""
    return [
        {
            "group": group.label,
            **drawn_ends(group.last, section.measure),
            "value": with_interval(group.last, section.measure),
            "interval": describe_interval(group.last, section.measure),
        }
        for group in section.across
        if group.last
    ]


def costs(section: Section, way: str) -> list[Row]:
    """The metric after the last round against bytes, by group."""
    front = section.front(way)
    return [
        {
            "group": group.label,
            "bytes": sent,
            "sent": size(sent),
            **drawn_ends(group.last, section.measure),
            "value": with_interval(group.last, section.measure),
            "interval": describe_interval(group.last, section.measure),
            "front": any(group is one for one in front),
        }
        for group in section.groups
        if group.last and (sent := group.sent(way))
    ]


def bars(section: Section, axis: PlanAxis) -> list[Row]:
    """The metric by the values of an axis, each beside the groups that are equal in all other axes.

    Groups that have no other to be compared with along this axis are left out.
    """
    others = [other for other in section.axes if other.told and other is not axis]
    rest = [label(others, k) for k in range(len(section.compared))]
    known = [rest[k] for k, group in enumerate(section.compared) if group.last]
    place = {value: number for number, value in enumerate(axis.order())}
    return [
        {
            "group": group.label,
            "level": axis.values[k],
            "place": place[axis.values[k]],
            "other": rest[k],
            **(ends := drawn_ends(group.last, section.measure)),
            "end": ends["mean"] if ends["high"] is None else ends["high"],
            "value": with_interval(group.last, section.measure)
            + (f" · {rest[k]}" if rest[k] else ""),
            "interval": describe_interval(group.last, section.measure),
        }
        for k, group in enumerate(section.compared)
        if group.last and known.count(rest[k]) > 1
    ]


def spreads(section: Section) -> list[Row]:
    """The accuracy on each client, in all finished runs of the groups of which all tell it; not of
    one client. It is that on held-out examples of its own where no run has common ones."""
    own = on_own(section)
    return [
        {
            "group": group.label,
            "client": client,
            "seed": cell.seed,
            "accuracy": value,
            "value": format_value(value, section.measure),
        }
        for group in section.groups
        if group.reference != CENTRALISED
        if all(_on_each(cell, own) for cell in group.finished)
        for cell in group.finished
        for client, value in _on_each(cell, own).items()
        if value is not None
    ]


def on_own(section: Section) -> bool:
    """Whether no run tells what a client may expect on common examples, so that the figure shows
    how each does on examples of its own."""
    return not any(cell.summary and cell.summary.client_accuracy for cell in section.cells)


def _on_each(cell: KeptRun, own: bool) -> Mapping[str, float | None]:
    """The accuracy on each client; empty where a run does not tell it."""
    told = cell.summary
    if told is None:
        return {}
    if not own:
        return told.client_accuracy.each if told.client_accuracy else {}
    found = told.own_held_out
    return found.metrics["accuracy"].each if found and "accuracy" in found.metrics else {}


def budgets(section: Section) -> list[Row]:
    """Epsilon by round and group: the largest of its runs."""
    return list(_budgets(section.groups))


def _budgets(groups: Sequence[Group]) -> Iterator[Row]:
    for group in groups:
        spent: dict[int, tuple[float, str]] = {}
        for cell in group.cells:
            for r in cell.rounds:
                if r.privacy and r.privacy.epsilon is not None:
                    told = (
                        f"delta {r.privacy.delta:g}"
                        if r.privacy.delta is not None
                        else "delta not told"
                    )
                    told += f", per {r.privacy.unit}" if r.privacy.unit else ""
                    spent[r.round] = max(spent.get(r.round, (0.0, told)), (r.privacy.epsilon, told))
        for at, (epsilon, told) in sorted(spent.items()):
            yield {
                "group": group.label,
                "round": at,
                "epsilon": epsilon,
                "value": say_epsilon(epsilon),
                "told": told,
            }


def divisions(section: Section) -> tuple[list[Row], int]:
    """The first divisions of the data that differ, and how many there are."""
    every: dict[str, Row] = {}
    for group in section.compared:
        for cell in group.cells:
            if cell.division and cell.division.histograms:
                key = cell.division.fingerprint or f"{cell.path}"
                every.setdefault(
                    key, {"of": cell.division, "name": _division_name(section, group, cell.seed)}
                )
    names = [one["name"] for one in every.values()]
    rows = []
    for number, one in enumerate(list(every.values())[:DIVISIONS]):
        name = one["name"] if names.count(one["name"]) == 1 else f"{one['name']} ({number + 1})"
        rows += [{"division": name, **row} for row in _held_rows(one["of"])]
    return rows, len(every)


def _division_name(section: Section, group: Group, seed: int) -> str:
    k = section.compared.index(group)
    words = [
        axis.words(k) for axis in section.axes if axis.path.split(".")[0] in ("partition", "data")
    ]
    return ", ".join([*words, f"seed {seed}"])


def _held_rows(division: Any) -> Iterator[Row]:
    """At most `CLIENTS` clients, evenly over their order."""
    names = list(division.histograms)
    step = max(1, -(-len(names) // CLIENTS))
    for client in names[::step]:
        counts = division.histograms[client]
        total = sum(counts)
        for number, (name, count) in enumerate(zip(division.classes, counts, strict=True)):
            if count:
                share = count / total
                told = f"{count:,} of {total:,}"
                yield {
                    "client": client,
                    "label": f"{name}",
                    "place": number,
                    "share": share,
                    "told": told,
                }
