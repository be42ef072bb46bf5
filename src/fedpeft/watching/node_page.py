"""A node's page for its owner: what left, what it cost, and what was refused."""

from collections.abc import Iterator, Sequence

from fedpeft.core.numbering import number_ranges
from fedpeft.core.units import size
from fedpeft.deploy.refusals import REASONS
from fedpeft.deploy.status import NodeStatus, RunAnswers
from fedpeft.watching.html import document, draw_table, heading, paragraph, term_list

SHOWN = 8
"""Digits of a plan or a run that are enough to know it by, as in the node's log."""


def show_node(plans: Sequence[NodeStatus], path: str) -> str | None:
    """The page at a path, or None where there is none."""
    if path != "/":
        return None
    name = next((str(one.facts["client"]) for one in plans if "client" in one.facts), "node")
    body = [heading(name, 1), paragraph("What this node did, from its own folder.", "faint")]
    for one in plans:
        body += _plan(one)
    return document(name, body, True)


def facts_of_node(one: NodeStatus) -> Iterator[tuple[str, str]]:
    """What is said of a plan at a node, in pairs of a word and what follows it."""
    count, agreed = len(one.runs), one.runs_agreed
    yield "runs", f"{count} answered; you agreed to {agreed}"
    yield "rounds trained", f"{one.trained}{_of_planned(one)}"
    yield "bytes sent", _bytes(list(one.runs.values()))
    yield "epsilon spent", one.spent
    yield "last answer", max((run.last for run in one.runs.values()), default="") or "none yet"
    yield "not answered", str(sum(refused.count for refused in one.refusals) + one.more)


def title_of_node(one: NodeStatus) -> str:
    """A plan at a node, by its name and the beginning of its fingerprint."""
    return f"{one.facts.get('plan', 'plan')} ({one.fingerprint[:SHOWN]})"


def rows_of_runs(one: NodeStatus) -> list[tuple[str, str, str, str]]:
    """A row for each run and phase: run, message, rounds, and the run's bytes in its first row."""
    rows = []
    for token, run in one.runs.items():
        for k, (phase, rounds) in enumerate(run.rounds.items()):
            rows.append((token[:SHOWN], phase, number_ranges(rounds), "" if k else size(run.sent)))
    return rows


def _of_planned(one: NodeStatus) -> str:
    rounds = one.facts.get("rounds")
    return f"; the plan has {rounds}" if rounds is not None else ""


def _bytes(runs: Sequence[RunAnswers]) -> str:
    sent, unsized = sum(run.sent for run in runs), sum(run.unsized for run in runs)
    more = f", and {unsized} answers of an earlier version, of unknown size" if unsized else ""
    return f"{sent:,} ({size(sent)}), each answer counted once{more}"


def _plan(one: NodeStatus) -> Iterator[str]:
    yield heading(title_of_node(one))
    if one.problem:
        yield paragraph(one.problem, "bad")
    yield term_list(facts_of_node(one))
    if one.runs:
        yield heading("Answered", 3)
        yield draw_table(("run", "message", "rounds", "bytes of the run"), rows_of_runs(one), (3,))
    if one.refusals:
        yield heading("Not answered", 3)
        rows = [(str(r.count), r.reason, r.first, r.last) for r in one.refusals]
        yield draw_table(("times", "why", "first", "last"), rows, (0,))
    if one.more:
        yield paragraph(f"{one.more} more, for reasons beyond the first {REASONS}.", "faint")
    yield heading("Agreed to", 3)
    yield term_list(one.agreed) if one.agreed else paragraph("Nothing is written down.", "faint")
