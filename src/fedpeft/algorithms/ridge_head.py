"""A head by ridge regression before the first round (Fanì et al., 2024, Fed3R,
arXiv:2402.05001).

Row c of the head's weight becomes (Σ x·xᵀ + λ·I)⁻¹·Σ_c x for the features x of all clients, of
length s, its bias zero: the regression on everybody's examples, exact however labels are divided.
Beside the sums by class a client tells its Σ x·xᵀ, (features, features) numbers. From these two
sums more of a single example may be told than from class means; of one example alone, all of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.algorithms.feature_sums import (
    COUNTS,
    SUMS,
    begin_head,
    check_row_length,
    check_sums,
    count_examples,
    sum_features,
)
from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors

PRODUCTS = "feature_products"


@dataclass(frozen=True)
class RidgeHead:
    """It asks all clients once for sums of their features, by class and as products, before the
    first round.

    Attributes:
      ridge: λ.
      head: the name of the head's module; "auto" finds the usual ones.
      length: of the head's rows; left out: so long that its probabilities fit the class means; 1 as
        in the paper.

    Raises:
      ValueError: `ridge` or `length` is not positive and finite.
    """

    ridge: float = 0.01
    head: str = "auto"
    length: float | None = None
    reveals: ClassVar[frozenset[str]] = frozenset({"class_means", PRODUCTS})
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PRODUCTS})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PRODUCTS: frozenset({0})}

    def __post_init__(self) -> None:
        check_row_length(self.length)
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge must be positive and finite, got {self.ridge}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, "ridge_head")

    def answers(self, params: Tensors) -> Mapping[str, Layout]:
        classes, features = params[linear_head(params, self.head, PRODUCTS)].shape
        layout: Layout = [
            (SUMS, [classes, features], "float32"),
            (COUNTS, [classes], "float32"),
            (PRODUCTS, [features, features], "float32"),
        ]
        return {PRODUCTS: layout}

    def before_rounds(self, state: State, round: Round) -> Flow:
        """All clients are asked, and the head is set."""
        answers = yield self._ask(state, round)
        head = self._head_of(state.params, answers)
        return replace(state, params={**state.params, **head})

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The head is set in round 0; all other rounds are the inner algorithm's."""
        if state.round == 0:
            state = yield from self.before_rounds(state, round)
        return (yield from inner(state, round))

    def handlers(self) -> Mapping[str, Handler]:
        return {PRODUCTS: self._answer}

    def _ask(self, state: State, round: Round) -> Ask:
        layout = self.answers(state.params)
        return Ask(
            PRODUCTS,
            round.messages(state, round.clients),
            lambda _: layout,
            _check,
            _usual_length,
            weight=count_examples(PRODUCTS),
        )

    def _answer(self, client: Any, message: Message) -> Message:
        weight = linear_head(message.tensors["params"], self.head, PRODUCTS)
        return Message({PRODUCTS: sum_features(client, weight, PRODUCTS)})

    def _head_of(self, params: Tensors, answers: Iterator[Answer]) -> dict[str, Tensor]:
        weight = linear_head(params, self.head, PRODUCTS)
        sums = torch.zeros(params[weight].shape, dtype=torch.float64)
        counts = sums.new_zeros(len(sums))
        gram = self.ridge * torch.eye(sums.shape[1], dtype=sums.dtype)
        for answer in answers:
            told = answer.message.tensors[PRODUCTS]
            sums, counts = sums + told[SUMS].double(), counts + told[COUNTS].double()
            gram = gram + told[PRODUCTS].double()
        rows = torch.linalg.solve(gram, sums.T).T
        means = sums / counts.clamp_min(1)[:, None]
        return begin_head(params, weight, rows, means, counts > 0, self.length)


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for sums that no examples have."""
    check_sums(PRODUCTS)(client, message)
    products = message.tensors[PRODUCTS][PRODUCTS]
    if not torch.equal(products, products.T) or (products.diagonal() < 0).any():
        raise ValueError("its feature products are no sum of x·xᵀ")


def _usual_length(message: Message) -> float:
    """The root of the mean of ‖x‖², which is no less than the length of any mean of all."""
    told = message.tensors[PRODUCTS]
    examples = told[COUNTS].double().sum().clamp_min(1)
    return float((told[PRODUCTS].double().trace() / examples).sqrt())
