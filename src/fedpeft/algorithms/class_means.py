"""A head from class means before the first round (Legate et al., 2023, FedNCM, arXiv:2306.03937).

Row c of the head's weight becomes s·μ_c / ‖μ_c‖ for the mean μ_c of the features of class c over
all clients, its bias zero: exact however labels are divided, for one message of (classes, features)
numbers from each client. In the paper s is 1. A class that nobody has keeps its row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.algorithms.feature_sums import (
    COUNTS,
    PHASE,
    SUMS,
    answer_with_sums,
    ask_for_sums,
    begin_head,
    check_row_length,
    sums_layout,
)
from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import Answer, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import State, Tensors


@dataclass(frozen=True)
class ClassMeans:
    """It asks all clients once for the sums of their features by class, before the first round.

    Attributes:
      head: the name of the head's module; "auto" finds the usual ones.
      length: of the head's rows; left out: so long that its probabilities fit the class means; 1 as
        in the paper.

    Raises:
      ValueError: `length` is not positive and finite.
    """

    head: str = "auto"
    length: float | None = None
    reveals: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def __post_init__(self) -> None:
        check_row_length(self.length)

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, PHASE)

    def answers(self, params: Tensors) -> Mapping[str, Layout]:
        return {PHASE: sums_layout(params, self.head)}

    def before_rounds(self, state: State, round: Round) -> Flow:
        """All clients are asked, and the head is set."""
        answers = yield ask_for_sums(state, round, self.head)
        head = self._head_of(state.params, answers)
        return replace(state, params={**state.params, **head})

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The head is set in round 0; all other rounds are the inner algorithm's."""
        if state.round == 0:
            state = yield from self.before_rounds(state, round)
        return (yield from inner(state, round))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _answer(self, client: Any, message: Message) -> Message:
        return answer_with_sums(client, message, self.head)

    def _head_of(self, params: Tensors, answers: Iterator[Answer]) -> dict[str, Tensor]:
        """The head that the clients' messages make. Sums are in float64, in which no number of
        messages overflows."""
        weight = linear_head(params, self.head, PHASE)
        sums = torch.zeros(params[weight].shape, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        for answer in answers:
            told = answer.message.tensors[PHASE]
            sums, counts = sums + told[SUMS].double(), counts + told[COUNTS].double()
        means = sums / counts.clamp_min(1)[:, None]
        return begin_head(params, weight, means, means, counts > 0, self.length)
