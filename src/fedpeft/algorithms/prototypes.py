"""Prototypes: the mean features of each class, which clients tell and compare theirs with (FedPCL:
Tan et al., 2022, arXiv:2209.10083)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft.algorithms.feature_sums import (
    COUNTS,
    SUMS,
    check_sums,
    count_examples,
    labelled_features,
)
from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import PARAMS, Answer, Ask, Flow, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors

PHASE = OWNER = "prototypes"
MEAN, KNOWN, PEERS = "mean", "known", "peers"
SLACK = 1e-3
"""By which share a sum of vectors of length 1 may be longer than their number: float32 rounds."""


@dataclass(frozen=True)
class Prototypes:
    """Before its training each client of a round tells the sums S_c of z = features / ‖features‖ of
    its examples of class c, and their numbers n_c. All who train then receive

        P̄_c = Σ_j S_jc / Σ_j n_jc      P_jc = S_jc / n_jc  of up to `peers` clients j.

    The term "prototypes" of local.terms compares with them; nothing else reads them. A client's
    features are those of its own model, so that with personal layers no weight of these travels.

    A class that a client j lacks has P̄_c in P_j, as in the authors' code. One that nobody of the
    round has keeps its last P̄_c. The authors send the sets of all clients; here the server draws
    `peers` of those who take part in the round, and who does not answer has P̄ in its place.

    Attributes:
      peers: how many clients' own prototypes go down, (classes, features) each; 0 for none.
      head: the name of the head's module, whose input is the features; "auto" finds the usual ones.

    Raises:
      ValueError: a value out of range.
    """

    peers: int = 4
    head: str = "auto"
    reveals: ClassVar[frozenset[str]] = frozenset(
        {
            "in each round, for each class the sum of its examples' features, each of length 1, "
            "and how many there are",
        }
    )
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SHARES_PROTOTYPES})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.ASYNCHRONOUS: "prototypes are asked for at the beginning of a round, and asynchronous "
        "steps have no rounds: leave out one of them",
        Fact.SEVERAL_MODELS: "{other} {what}, and prototypes are features of one: leave out one of "
        "them",
    }

    def __post_init__(self) -> None:
        if self.peers < 0:
            raise ValueError(f"peers must be at least 0, got {self.peers}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared, from which the
        shape of the features follows."""
        linear_head(params, self.head, OWNER)

    def shares(self, params: Tensors) -> Mapping[str, Layout]:
        classes, features = params[linear_head(params, self.head, OWNER)].shape
        layout: Layout = [
            (KNOWN, [classes], "float32"),
            (MEAN, [classes, features], "float32"),
            (PEERS, [self.peers, classes, features], "float32"),
        ]
        return {OWNER: layout}

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None:
        """What goes to "fit", without the prototypes, on which features do not depend."""
        return {group: one for group, one in layout.items() if group != OWNER}

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The cohort tells, and then the inner algorithm has its round with what it told."""
        answers = yield self._ask(state, round)
        shared = self._merged(state.shared[OWNER], answers, round)
        told = {"classes": int(shared[KNOWN].sum()), "peers": self.peers}
        round.report(OWNER, told)
        return (yield from inner(replace(state, shared={**state.shared, OWNER: shared}), round))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _ask(self, state: State, round: Round) -> Ask:
        others = {owner: x for owner, x in state.shared.items() if owner != OWNER}
        shape = list(state.params[linear_head(state.params, self.head, OWNER)].shape)
        layout: Layout = [(COUNTS, shape[:1], "float32"), (SUMS, shape, "float32")]
        return Ask(
            PHASE,
            round.messages(replace(state, shared=others), round.cohort),
            lambda _: {PHASE: layout},
            _check,
            weight=count_examples(PHASE),
        )

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: by class the sum of its features, each of length 1, and how many
        there are."""
        params = message.tensors[PARAMS]
        weight = linear_head(params, self.head, OWNER)
        sums = torch.zeros(params[weight].shape)
        counts = torch.zeros(len(sums))
        for x, label, mask in labelled_features(client, weight):
            # rows that only fill up a batch are zeros, which `normalize` leaves as they are
            sums.index_add_(0, label, normalize(x))
            counts.index_add_(0, label, mask)
        return Message({PHASE: {COUNTS: counts, SUMS: sums}})

    def _merged(
        self, before: Tensors, answers: Iterable[Answer], round: Round
    ) -> dict[str, Tensor]:
        """What all who train receive, of what the cohort told."""
        places = _draw(round.cohort, self.peers, generator(round.seed, OWNER))
        sums = torch.zeros(before[MEAN].shape, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        own: dict[int, Tensors] = {}
        for answer in answers:
            told = answer.message.tensors[PHASE]
            sums, counts = sums + told[SUMS].double(), counts + told[COUNTS].double()
            if answer.client in places:  # the others' are not kept: a cohort may be large
                own[places[answer.client]] = told
        mean = _mean(sums, counts, before[MEAN])
        peers = mean.expand(before[PEERS].shape).clone()
        for place, told in own.items():
            peers[place] = _mean(told[SUMS].double(), told[COUNTS].double(), mean)
        known = torch.maximum(before[KNOWN], (counts > 0).float())
        return {KNOWN: known, MEAN: mean, PEERS: peers}


def _draw(clients: Iterable[ClientId], number: int, stream: torch.Generator) -> dict[ClientId, int]:
    """Up to so many of the clients, in the order of their names, with their places."""
    names = sorted(clients)
    chosen = sorted(torch.randperm(len(names), generator=stream)[:number].tolist())
    return {names[k]: place for place, k in enumerate(chosen)}


def _mean(sums: Tensor, counts: Tensor, otherwise: Tensor) -> Tensor:
    """sums / counts by class, in float32; where there is no example, `otherwise`."""
    means = (sums / counts.clamp_min(1)[:, None]).float()
    return torch.where(counts[:, None] > 0, means, otherwise)


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for sums that no vectors of length 1 have."""
    check_sums(PHASE)(client, message)
    told = message.tensors[PHASE]
    lengths, counts = told[SUMS].double().norm(dim=1), told[COUNTS].double()
    if (lengths > counts * (1 + SLACK)).any():
        raise ValueError("its sums are longer than so many features of length 1 can be")
