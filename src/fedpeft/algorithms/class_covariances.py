"""A head from class means and the covariances that can be told from them (Goswami et al., 2025,
FedCOF, arXiv:2412.14326), for the same message as `class_means`.

A client's mean of a class is a mean of so many draws, so that the spread of the clients' means
tells the spread of the draws. For class c with clients' means μ_kc of n_kc examples, m_c clients
and n_c examples in all,

    Σ̂_c = Σ_k n_kc·(μ_kc − μ_c)(μ_kc − μ_c)ᵀ / (m_c − 1) + γ·I      (γ·I alone for one client)
    G = Σ_c (n_c − 1)·Σ̂_c + N·μμᵀ

for N examples with the mean μ, and row c of the head is s·G⁺·n_c·μ_c, normalised; the bias is zero.
These formulas were read in the published code.
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
class ClassCovariances:
    """It asks all clients once for the sums of their features by class, before the first round.

    Attributes:
      gamma: γ, what is added to each variance.
      head: the name of the head's module; "auto" finds the usual ones.
      length: of the head's rows; left out: so long that its probabilities fit the class means; 1 as
        in the paper.

    Raises:
      ValueError: `gamma` or `length` is not positive and finite.
    """

    gamma: float = 1.0
    head: str = "auto"
    length: float | None = None
    reveals: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def __post_init__(self) -> None:
        check_row_length(self.length)
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"gamma must be positive and finite, got {self.gamma}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, "class_covariances")

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
        weight = linear_head(params, self.head, PHASE)
        classes, sums, counts = [], [], []
        for answer in answers:
            told = answer.message.tensors[PHASE]
            held = told[COUNTS].nonzero().flatten()  # of what a client has none, nothing is kept
            classes.append(held)
            sums.append(told[SUMS][held].double())
            counts.append(told[COUNTS][held].double())
        if not classes:
            return {}
        which, spread = torch.cat(classes), (torch.cat(sums), torch.cat(counts))
        totals, numbers = sum_by_class(which, *spread, len(params[weight]))
        gram = estimate_gram(which, *spread, totals, numbers, self.gamma)
        rows = totals @ torch.linalg.pinv(gram, hermitian=True)
        means = totals / numbers.clamp_min(1)[:, None]
        return begin_head(params, weight, rows, means, numbers > 0, self.length)


def sum_by_class(
    which: Tensor, sums: Tensor, counts: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """n_c·μ_c, (classes, features), and n_c, (classes,), of clients' sums (pairs, features) and
    counts (pairs,) of the classes `which` (pairs,)."""
    totals = sums.new_zeros(classes, sums.shape[1]).index_add_(0, which, sums)
    return totals, counts.new_zeros(classes).index_add_(0, which, counts)


def estimate_gram(
    which: Tensor, sums: Tensor, counts: Tensor, totals: Tensor, numbers: Tensor, gamma: float
) -> Tensor:
    """G (features, features), of the arguments and the result of `sum_by_class`."""
    clients = numbers.new_zeros(len(numbers)).index_add_(0, which, torch.ones_like(counts))
    beyond = (numbers - 1).clamp_min(0)
    by = torch.where(clients > 1, beyond / (clients - 1).clamp_min(1), 0.0)
    means = totals / numbers.clamp_min(1)[:, None]
    apart = sums / counts[:, None] - means[which]
    within = (apart * (by[which] * counts)[:, None]).T @ apart
    whole = totals.sum(0)
    ridge = gamma * beyond.sum() * torch.eye(len(whole), dtype=whole.dtype)
    return within + ridge + torch.outer(whole, whole) / numbers.sum().clamp_min(1)
