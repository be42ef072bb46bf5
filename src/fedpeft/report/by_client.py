"""Figures of what differs from client to client: the model that each chose, and what it sends."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from math import ceil, log2
from statistics import fmean
from typing import Any

from fedpeft.core.units import size
from fedpeft.report.drawing import BYTES, Figure, altair, made, of_groups, tip
from fedpeft.report.groups import Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.rows import CLIENTS

GROUPS = 4
"""How many groups have a figure of each kind."""
COLOURS = 8
"""Models that the page has a colour for; further ones take these again."""
UNEQUAL = 1.25
"""Clients are drawn where one sends so many times as much as another; messages of one kind differ
by less, as their codecs make some shorter."""


def client_figures(section: Section) -> list[Figure]:
    """The models that clients chose, and what each sends, of the first run of each group that tells
    it; nothing of groups whose clients have one model and send alike."""
    return [*_first(section, _choices), *_first(section, _sent)]


def _first(section: Section, draw: Callable[[Group, KeptRun, int], Figure | None]) -> list[Figure]:
    found: list[Figure] = []
    for group in section.groups:
        drawn = (draw(group, cell, len(found)) for cell in group.cells)
        found += [figure for figure in drawn if figure][:1]
    shown, left_out = found[:GROUPS], len(found) - GROUPS
    if left_out > 0:
        told = f"{shown[-1].told} {left_out} further groups are not drawn."
        shown[-1] = replace(shown[-1], told=told)
    return shown


def _choices(group: Group, cell: KeptRun, place: int) -> Figure | None:
    """A rectangle for each client and round, in the colour of the model that it chose."""
    told = [(r.round, r.reports.ifca) for r in cell.rounds if r.reports.ifca]
    clients, left_out = _some({client for _, one in told for client in one.chosen})
    if not clients:
        return None
    alt, models = altair(), max(len(one.sizes) for _, one in told)
    values = [
        {"group": group.label, "client": client, "round": at, "model": one.chosen[client]}
        for at, one in told
        for client in clients
        if client in one.chosen
    ]
    colours = [f"var(--c{k % COLOURS})" for k in range(models)]
    chart = of_groups(values).mark_rect(stroke="var(--page)", strokeWidth=0.5)
    drawn = chart.encode(
        x=alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=_clients(clients),
        color=alt.Color("model:O", scale=alt.Scale(domain=list(range(models)), range=colours)),
        tooltip=tip("group", "client", "round", "model"),
    )
    last, one = told[-1]
    sizes = "; ".join(f"model {k}: {count}" for k, count in enumerate(one.sizes))
    words = (
        f"The model that each client chose in each round, as the one with the least loss on its "
        f"examples; a colour is a model. Clients of round {last}: {sizes}. "
        f"{group.label}, seed {cell.seed}.{left_out}"
    )
    height = max(7, min(18, 420 // len(clients))) * len(clients)
    return Figure(f"models-{place}", "Who trains which model", words, made(drawn, height), False)


def _sent(group: Group, cell: KeptRun, place: int) -> Figure | None:
    """A bar for each client, where they send unlike."""
    means = _means_sent(cell)
    if not means or max(means.values()) < UNEQUAL * min(means.values()):
        return None
    clients, left_out = _some(means)
    alt = altair()
    values = [
        {"group": group.label, "client": client, "sent": means[client], "told": size(means[client])}
        for client in clients
    ]
    most = max(means.values())
    step = 2 ** ceil(log2(most / 5))  # a label of a power of two is short
    axis = alt.Axis(labelExpr=BYTES, values=[k * step for k in range(int(most // step) + 1)])
    bars = of_groups(values).mark_bar(color="var(--heat)", cornerRadiusEnd=2)
    drawn = bars.encode(
        x=alt.X("sent:Q", title="bytes sent in a round", axis=axis),
        y=_clients(clients),
        tooltip=tip("group", "client", told="sent"),
    )
    words = (
        "The mean over the rounds in which a client's answer counted; of clients that hold other "
        f"parts of the model it is unlike. {group.label}, seed {cell.seed}.{left_out}"
    )
    height = max(9, min(18, 420 // len(clients))) * len(clients)
    return Figure(f"sent-{place}", "What each client sends", words, made(drawn, height), False)


def _means_sent(cell: KeptRun) -> dict[str, float]:
    """By client the mean of what it sent in the rounds in which its update counted."""
    sent: dict[str, list[int]] = {}
    for one in cell.rounds:
        for client, told in one.clients.items():
            if told.up and not told.failed and told.weight is not None:
                sent.setdefault(client, []).append(told.up)
    return {client: fmean(each) for client, each in sent.items()}


def _some(names: Any) -> tuple[Sequence[str], str]:
    """At most `CLIENTS` of them, and in words how many are left out.

    Those that are left out follow from a digest of the name: what differs from client to client
    often does so in turns, of which every second or fourth would show one kind alone.
    """
    every = sorted(names)
    some = sorted(sorted(every, key=_digest)[:CLIENTS])
    left_out = f" Shown are {len(some)} of {len(every)} clients." if len(some) < len(every) else ""
    return some, left_out


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


def _clients(names: Sequence[str]) -> Any:
    alt = altair()
    scale = alt.Scale(domain=list(names))
    return alt.Y("client:N", title=None, scale=scale, axis=alt.Axis(ticks=False, labelOverlap=True))
