"""A grid in this process, whose nodes are workers or whatever else answers envelopes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rounds import SCAFFOLD, points_plan

from fedpeft.core.types import State
from fedpeft.deploy.node import Node
from fedpeft.deploy.terms import terms_of
from fedpeft.engines.flower.engine import Flower
from fedpeft.engines.inprocess import InProcess
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site
from fedpeft.wire.sockets import Envelope

PLAN = points_plan(
    partition={"name": "dirichlet", "clients": 3, "alpha": 10.0}, cohort=3, **SCAFFOLD
)
TOKEN = "0123456789abcdef" * 2


@dataclass
class Town:
    """A grid whose nodes are functions from an envelope to none, one or several answers."""

    nodes: dict[int, Callable[[Envelope], Iterable[Envelope]]]
    waiting: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        from fedpeft.engines.flower.courier import unpack_envelope

        names: list[str | None] = []
        for message in messages:
            name = f"message {len(self.waiting)}"
            message.metadata.__dict__["_message_id"] = name
            node = self.nodes.get(message.metadata.dst_node_id, silent)
            self.waiting[name] = message, node(unpack_envelope(message))
            names.append(name if message.metadata.dst_node_id in self.nodes else None)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        """The answers, all of them."""
        from flwr.app import Message

        from fedpeft.engines.flower.courier import pack_envelope

        made: list[Any] = []
        for name in names:
            asked, answers = self.waiting[name]
            made += [Message(pack_envelope(answer), reply_to=asked) for answer in answers]
        return made


def node(site: Site, client: str, folder: Path) -> Callable[[Envelope], list[Envelope]]:
    worker = Node(site, client, folder, lambda words: None)
    return lambda envelope: [worker.answer(envelope)]


def town(site: Site, folder: Path) -> Town:
    return Town(
        {7 + k: node(site, client, folder / client) for k, client in enumerate(site.data.clients)}
    )


def engine(site: Site, grid: Town, said: list[str], deadline: float = 0.7) -> Flower:
    terms = {"token": TOKEN, **terms_of(site)}
    return Flower(grid, site.data.clients, terms, deadline, said.append)


def run(
    site: Site, made: Flower | InProcess, rounds: int | None = None
) -> list[tuple[State, Ledger]]:
    return list(islice(federate(site.plan, made, start(site.plan, site.params())), rounds))


def silent(envelope: Envelope) -> list[Envelope]:
    return []
