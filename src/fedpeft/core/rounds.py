"""One round as an algorithm sees it: who takes part, with which seed and view, and on what plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedpeft.core.conversation import DELTA, PARAMS, Ask, Message
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import Layout, layout, length
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.core.views import EVERYTHING, View


def _ignore(*_: Any) -> None:
    """What is reported to nobody."""


@dataclass(frozen=True)
class Bench:
    """What the server itself has, for steps that compute something: model, task, public data.

    Attributes:
      model: with the method injected; parameters are swapped in for each call and never written.
      data: the server's own held-out examples, as batches by `data.held_out()`.
    """

    model: Any
    task: Any
    data: Any


@dataclass(frozen=True)
class Round:
    """Frozen; an algorithm passes it on to the one that it wraps, changed with `replace` if need
    be.

    Attributes:
      plan: as it is in this round, with phases and schedules resolved.
      run: what clients tell the experiment from others by.
      clients: all clients of the federation; `cohort`: those drawn for this round, by name.
      seed: the root of the round's public randomness.
      secret: what the server's noise is drawn from.
      bench: the server's own model and data, where the engine lies beside them.
      report: takes a name and a plain value for the round's ledger, e.g. "aggregation_error".
      refuse: takes a client and the reason why what it sent cannot be used.
      classes: what labels are called, as far as the server knows.
    """

    index: int
    plan: Any
    clients: Sequence[ClientId]
    cohort: Sequence[ClientId]
    seed: int
    run: str = ""
    secret: Secret | None = None
    bench: Bench | None = None
    report: Callable[[str, Any], None] = _ignore
    refuse: Callable[[ClientId, str], None] = _ignore
    classes: Sequence[str] = ()

    def views(self, clients: Sequence[ClientId]) -> dict[ClientId, View]:
        """What these clients see in this round."""
        routes = self.plan.hooks("view")
        if not routes:
            return dict.fromkeys(clients, EVERYTHING)
        return {client: self.plan.view(client, self.index, self.clients) for client in clients}

    def silent(self) -> "Round":
        """The same round, whose reports and refusals reach nobody: for what is tried out."""
        return replace(self, report=_ignore, refuse=_ignore)

    def messages(
        self, state: State, clients: Sequence[ClientId], **groups: Tensors
    ) -> dict[ClientId, Message]:
        """What each client receives of a state; clients with equal views share one message."""
        views = self.views(clients)
        by_view = {
            view: Message({PARAMS: view.select(state.params), **state.shared, **groups})
            for view in set(views.values())
        }
        return {client: by_view[view] for client, view in views.items()}

    def ask_to_fit(
        self,
        clients: Sequence[ClientId],
        states: Mapping[ClientId, State],
        rounds: Mapping[ClientId, int] | None = None,
    ) -> Ask:
        """The question of federated averaging: train what you see, and send the change back.

        Args:
          states: the state from which each client starts; usually one for all.
          rounds: the round for which a client trains, where it is another than the present one.
        """
        to: dict[ClientId, Message] = {}
        groups: dict[int, list[ClientId]] = {}
        for client in clients:
            # By identity, since a state has no hash: clients of one state must get one `Message`,
            # as it is encoded once for each.
            groups.setdefault(id(states[client]), []).append(client)
        for same in groups.values():
            to |= self.messages(states[same[0]], same)
        views = self.views(clients)
        shares: tuple[str, ...] = self.plan.local_shares
        known: dict[tuple[int, View], dict[str, Layout]] = {}

        def expects(client: ClientId) -> dict[str, Layout]:
            # A cohort has many clients and few layouts. `to` keeps the messages alive, so no
            # identity comes twice.
            key = id(to[client]), views[client]
            if key not in known:
                known[key] = {DELTA: update_layout(to[client], views[client], shares)}
            return known[key]

        return Ask(
            "fit",
            to,
            expects,
            length=lambda message: update_length(message.tensors.get(DELTA, {})),
            updates=True,
            rounds=rounds or {},
            views=views,
            weight=lambda message: message.values["weight"],
        )


def update_layout(sent: Message, view: View, shares: Sequence[str] = ()) -> Layout:
    """The layout of the update of a client that received `sent`; `shares` are the groups whose
    changes it sends back beside those of the parameters."""
    return layout(find_changed(sent, view, shares))


def find_changed(sent: Message, view: View, shares: Sequence[str] = ()) -> dict[str, Tensor]:
    """What a client that received `sent` changes, as it was before, under the update's names."""
    changed = view.trained(sent.tensors.get(PARAMS, {}))
    for group in shares:
        changed |= {f"{group}/{name}": x for name, x in sent.tensors.get(group, {}).items()}
    return changed


def update_length(delta: Tensors) -> float:
    """The length of all that is no count, as one vector."""
    floats = {name: x for name, x in delta.items() if x.is_floating_point()}
    return length(floats) if floats else 0.0
