"""A node as `fedpeft watch` draws it in a terminal, for the owner."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedpeft.deploy.status import NodeStatus

PAUSE = 2.0
"""Seconds between two looks."""


def watch_node(folder: Path, once: bool) -> None:
    """Show what a node did, once or until Ctrl-C: a node is never finished."""
    from rich.console import Console
    from rich.live import Live

    from fedpeft.deploy.status import read_status

    console = Console(highlight=False)
    if once:
        console.print(picture_of_node(read_status(folder)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(picture_of_node(read_status(folder)), refresh=True)
            sleep(PAUSE)


def picture_of_node(plans: "Sequence[NodeStatus]") -> "RenderableType":
    """A node's work, plan by plan."""
    from rich.console import Group

    return Group(*(piece for one in plans for piece in _plan(one)))


def _plan(one: "NodeStatus") -> "Iterator[RenderableType]":
    from rich.table import Table
    from rich.text import Text

    from fedpeft.watching.node_page import facts_of_node, rows_of_runs, title_of_node

    who = one.facts.get("client")
    yield Text(title_of_node(one) + (f" at {who}" if who else ""), style="bold")
    if one.problem:
        yield Text(one.problem, style="red")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for word, said in facts_of_node(one):
        table.add_row(word, Text(said))
    for run, phase, rounds, _ in rows_of_runs(one):
        table.add_row(f"run {run}", Text(f"{phase}: round {rounds}"))
    for refused in one.refusals:
        told = f"{refused.count}x, last {refused.last}: {refused.reason}"
        table.add_row("not answered", Text(told, style="yellow"))
    yield table
    yield Text()
