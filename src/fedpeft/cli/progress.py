"""A run as it is seen in the terminal: a line for each round, and a table at the end."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.box import SIMPLE
from rich.table import Table

from fedpeft.core.units import duration, say_epsilon, size
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from rich.console import Console

    from fedpeft.core.interfaces import Engine
    from fedpeft.core.types import Failure, Job, Reply
    from fedpeft.plan.plan import Plan
    from fedpeft.runs.record import RoundRecord

REASONS = 3
"""Different reasons for which clients failed in a round that have a line each."""


@dataclass(frozen=True)
class Watched:
    """An engine whose replies are seen as they pass. Beside the data of its clients it is there
    still, so that a run is the same whether somebody watches or not."""

    engine: "Engine"
    seen: Callable[[int], None]

    def __post_init__(self) -> None:
        for name in ("site", "store"):
            if hasattr(self.engine, name):  # as an attribute, by which `LocalEngine` is known
                object.__setattr__(self, name, getattr(self.engine, name))

    @property
    def clients(self) -> Sequence[str]:
        return self.engine.clients

    def run(self, jobs: "Iterable[Job]") -> "Iterator[Reply | Failure]":
        for number, reply in enumerate(self.engine.run(jobs), 1):
            yield reply
            self.seen(number)


def show_rounds(
    console: "Console",
    rounds: int,
    records: "Iterable[RoundRecord]",
    after: Callable[[], None] = lambda: None,
) -> None:
    """A line for each round as it comes, then `after`."""
    spent: list[float] = []
    shown = "held out"  # until the first round that is measured says what its metric is called
    for record in records:
        shown = _metric(record) or shown
        spent.append(record.seconds)
        # the first has waited for worker processes: of three or more the median does not heed it
        left = median(spent) * (rounds - record.round) if len(spent) >= 3 else 0
        console.print(round_line(record, rounds, left, shown))
        if failure := failure_line(record):
            console.print(failure, style="yellow")
        after()


def round_line(record: "RoundRecord", rounds: int, left: float, metric: str) -> str:
    """One round with its held-out `metric`; `left` is the time in seconds that the others are
    likely to take, 0 if unknown."""
    width = len(str(rounds))
    asked, failed = len(record.clients), len(record.failed)
    columns = [
        f"round {record.round:>{width}}/{rounds}" if rounds else "no training",
        f"{metric} {_number((record.held_out or {}).get(metric))}",
        f"loss {_number(record.metrics.get('loss'))}",
        f"{asked - failed}/{asked} answered",
        f"{size(record.bytes_up)} up",
        *([f"ε {_epsilon(record.privacy)}"] if record.privacy else []),
        duration(record.seconds),
    ]
    return "  ".join([*columns, f"{duration(left)} left"] if left else columns)


def _metric(record: "RoundRecord") -> str:
    """The name of the held-out metric that is no loss, as a rule the accuracy; "" where nothing was
    measured."""
    names = list(record.held_out or {})
    return next((name for name in names if name != "loss"), "loss" if names else "")


def _epsilon(privacy: Mapping[str, Any]) -> str:
    return say_epsilon(privacy["epsilon"])


def _number(value: float | None) -> str:
    return "   -  " if value is None else f"{value:.4f}"


def describe_work(plan: "Plan", clients: int) -> str:
    """What a run is about to do: "30 rounds, 8 of 32 clients in each"."""
    if plan.rounds:
        cohort = min(plan.cohort, clients)
        of = say_count(clients, "clients")
        return f"{say_count(plan.rounds, 'rounds')}, {cohort} of {of} in each"
    asked = "sums from" if plan.hooks("before_rounds") else "measured at"
    return f"{asked} {say_count(clients, 'clients')}, and nobody trains"


def failure_line(record: "RoundRecord") -> str:
    """The clients that failed in a round, a line for each of the first reasons."""
    by_reason: dict[str, list[str]] = {}
    for client, reason in record.failed.items():
        by_reason.setdefault(reason, []).append(client)
    lines = []
    for reason, clients in list(by_reason.items())[:REASONS]:
        more = f" (and {len(clients) - 1} more)" if len(clients) > 1 else ""
        lines.append(f"  not counted: {clients[0]}{more}: {reason}")
    if rest := sum(map(len, list(by_reason.values())[REASONS:])):
        lines.append(f"  not counted: {rest} more, for other reasons; rounds.jsonl names them")
    return "\n".join(lines)


def warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """What a user should not overlook in a summary."""
    from fedpeft.runs.measured import ended_worse

    if summary["failed"]:
        first = summary["first_failure"]
        where = f"first {first['client']} in round {first['round']}: {first['reason']}"
        yield f"{summary['failed']} of {summary['asked']} replies were not counted; {where}"
    if worse := ended_worse(summary):
        yield worse
    if (still := summary["rounds_without_change"]) and summary["rounds"]:
        rounds = say_count(summary["rounds"], "rounds")
        yield f"{still} of {rounds} changed nothing; rounds.jsonl says why"
    if why := summary.get("one_after_another"):
        yield f"the engine {summary['engine']} trained clients one after another: {why}"
    if (privacy := summary.get("privacy")) and privacy["epsilon"] is None:
        yield f"this run's noise gives no {privacy['unit']} a guarantee: there is no epsilon"


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Accuracy, parameters and bytes, these against full fine-tuning."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    rounds = say_count(summary["rounds"], "rounds")
    table.add_column(f"{summary['name']}: {summary['method']}, {rounds}")
    for heading in ("this run", "full fine-tuning", "share"):
        table.add_column(heading, justify="right")
    for label, value in _results(summary):
        table.add_row(label, value, "", "")
    for label, own, full, shown in _costs(summary):
        if own is not None:
            of_full = f"{own / full:.2%}" if full else ""
            table.add_row(label, shown(own), "-" if full is None else shown(full), of_full)
    table.add_row("time", duration(summary["seconds"]), "", "")
    return table


def _results(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How well the model does on held-out examples, and what it gives away at most."""
    named: tuple[str, ...] = ()
    if summary["accuracy_last"] is not None:
        yield from _accuracies(summary)
        named = "accuracy", "loss"
    for name, value in (summary.get("held_out_last") or {}).items():
        if name not in named:
            yield f"held-out {name}, last", _number(value)
    if privacy := summary.get("privacy"):
        at = f" at δ = {privacy['delta']:g}" if privacy["delta"] else ""
        yield f"ε for one {privacy['unit']}{at}", _epsilon(privacy)


def _accuracies(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    begun = summary.get("start") or {"round": 1, "metrics": {}}
    if not begun["round"] and begun["metrics"].get("accuracy") is not None:
        yield "accuracy, before the first round", f"{begun['metrics']['accuracy']:.4f}"
    yield "accuracy, last", f"{summary['accuracy_last']:.4f}"
    yield f"accuracy, best (round {summary['best_round']})", f"{summary['accuracy_best']:.4f}"


Cost: TypeAlias = tuple[str, float | None, float | None, Callable[[float], str]]


def _costs(summary: Mapping[str, Any]) -> Iterator[Cost]:
    """What was trained and sent, of this run and of full fine-tuning, and how to write it."""
    trained, full = summary["trainable_params"], summary["full_params"]
    yield "parameters trained", trained, full, lambda count: f"{count:,}"
    for way in ("up", "down"):
        for words, key in (
            ("a client and round", f"bytes_{way}_per_client_round"),
            ("in all", f"bytes_{way}"),
        ):
            yield f"bytes {way}, {words}", summary[key], summary[f"full_{key}"], size
