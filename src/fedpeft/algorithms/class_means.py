"""A head from class means before the first round (Legate et al., 2023, FedNCM, arXiv:2306.03937).

Row c of the head's weight becomes μ_c / ‖μ_c‖ for the mean μ_c of the features of class c over all
clients, its bias zero: exact however labels are divided, for one message of (classes, features)
numbers from each client. A class that nobody has keeps its row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.outputs import FEATURES
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = "class_means"


@dataclass(frozen=True)
class ClassMeans:
    """It asks all clients once for the sums of their features by class, before the first round.

    Attributes:
      head: the name of the head's module; "auto" finds the usual ones.
    """

    head: str = "auto"
    reveals: ClassVar[frozenset[str]] = frozenset({"class_means"})
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, "class_means")

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The head is set in round 0; all other rounds are the inner algorithm's."""
        if state.round == 0:
            answers = yield self._ask(state, round)
            head = self._head_of(state.params, answers)
            state = replace(state, params={**state.params, **head})
        return (yield from inner(state, round))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _ask(self, state: State, round: Round) -> Ask:
        shape = list(state.params[linear_head(state.params, self.head, PHASE)].shape)
        layout: Layout = [("sums", shape, "float32"), ("counts", shape[:1], "float32")]
        messages = round.messages(state, round.clients)
        return Ask(PHASE, messages, lambda _: {PHASE: layout}, _check, _longest_mean)

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: by class the sum of its features and how many there are.

        Raises:
          PlanError: its examples have no labels.
        """
        params = message.tensors["params"]
        weight = linear_head(params, self.head, PHASE)
        sums, counts = torch.zeros(params[weight].shape), torch.zeros(len(params[weight]))
        for batch, outputs in client.outputs(weight.removesuffix(".weight")):
            if "label" not in batch:
                raise PlanError("class means are for examples with labels: leave them out")
            label, mask = batch["label"].cpu(), batch["mask"].cpu()
            sums.index_add_(0, label, outputs[FEATURES].float().cpu() * mask[:, None])
            counts.index_add_(0, label, mask)
        return Message({PHASE: {"sums": sums, "counts": counts}})

    def _head_of(self, params: Tensors, answers: Iterator[Answer]) -> dict[str, Tensor]:
        """The head that the clients' messages make. Sums are in float64, in which no number of
        messages overflows."""
        weight = linear_head(params, self.head, PHASE)
        bias = f"{weight.removesuffix('.weight')}.bias"
        sums = torch.zeros(params[weight].shape, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        for answer in answers:
            told = answer.message.tensors[PHASE]
            sums, counts = sums + told["sums"].double(), counts + told["counts"].double()
        held = counts > 0
        means = normalize(sums / counts.clamp_min(1)[:, None]).to(params[weight])
        started = {weight: torch.where(held[:, None], means, params[weight])}
        if bias in params:
            started[bias] = torch.where(held, 0.0, params[bias])
        return started


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for sums of no examples that anyone could have."""
    sums, counts = message.tensors[PHASE]["sums"], message.tensors[PHASE]["counts"]
    if (counts < 0).any() or (counts != counts.round()).any():
        raise ValueError("its class counts are no numbers of examples")
    if sums[counts == 0].any():
        raise ValueError("it tells sums of classes of which it has no example")


def _longest_mean(message: Message) -> float:
    sums, counts = (message.tensors[PHASE][name].double() for name in ("sums", "counts"))
    return float((sums / counts.clamp_min(1)[:, None]).norm(dim=1).max())
