"""A head from class means before the first round (Legate et al., 2023, FedNCM, arXiv:2306.03937).

Row c of the head's weight becomes s·μ_c / ‖μ_c‖ for the mean μ_c of the features of class c over
all clients, its bias zero: exact however labels are divided, for one message of (classes, features)
numbers from each client. In the paper s is 1. A class that nobody has keeps its row.

With `clip_norm` each client adds noise to what it tells, once, and no example can be told from it;
see `noisy_sums`. The means are then of noisy sums, and a class that nobody has may get a row of
noise.
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
    check_sums,
    sums_layout,
)
from fedpeft.algorithms.noisy_sums import check_shortened, sum_with_noise
from fedpeft.compute.trainable import linear_head
from fedpeft.core.accounting import check_noise
from fedpeft.core.conversation import Answer, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, Event, State, Tensors
from fedpeft.errors import PlanError


@dataclass(frozen=True)
class ClassMeans:
    """It asks all clients once for the sums of their features by class, before the first round.

    Attributes:
      head: the name of the head's module; "auto" finds the usual ones.
      length: of the head's rows; left out: so long that its probabilities fit the class means; 1 as
        in the paper.
      clip_norm: to what length each example's features are shortened before noise; left out: no
        noise, and no guarantee.
      noise_multiplier: of the noise; left out, it follows from the plan's `target_epsilon`.

    Raises:
      ValueError: a value out of range.
    """

    head: str = "auto"
    length: float | None = None
    clip_norm: float | None = None
    noise_multiplier: float | None = None
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def __post_init__(self) -> None:
        check_row_length(self.length)
        if self.clip_norm is not None:
            check_noise(self.clip_norm, self.noise_multiplier)
        elif self.noise_multiplier is not None:
            raise ValueError(
                "noise_multiplier is in units of clip_norm, to which features are shortened: give "
                "class_means a clip_norm too, or leave out both"
            )

    @property
    def event(self) -> Event | None:
        if self.clip_norm is None:
            return None
        return Event("example", self.noise_multiplier)

    @property
    def reveals(self) -> frozenset[str]:
        """What is told without noise."""
        return frozenset({PHASE}) if self.clip_norm is None else frozenset()

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where training would tell without noise what noise hides here."""
        if self.clip_norm is not None and plan.rounds:
            raise PlanError(
                f"class_means.clip_norm hides examples in what is told before the first round, and "
                f"the {plan.rounds} rounds after it would train on them without noise: set "
                "rounds = 0, or leave out clip_norm"
            )

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, PHASE)

    def answers(self, params: Tensors) -> Mapping[str, Layout]:
        return {PHASE: sums_layout(params, self.head)}

    def before_rounds(self, state: State, round: Round) -> Flow:
        """All clients are asked, and the head is set."""
        ask = ask_for_sums(state, round, self.head)
        if self.clip_norm is not None:
            # noise makes the mean of a few examples long, so that lengths are looked at otherwise
            ask = replace(ask, check=self._check_noisy, length=None)
        answers = yield ask
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
        if self.clip_norm is None:
            return answer_with_sums(client, message, self.head)
        if self.noise_multiplier is None:  # nothing leaves without the noise that was agreed to
            raise PlanError(
                "the noise of class_means is not calibrated yet: use the plan of its site, "
                "open_site(plan).plan, or give it a noise_multiplier"
            )
        weight = linear_head(message.tensors["params"], self.head, PHASE)
        return Message(
            {PHASE: sum_with_noise(client, weight, self.clip_norm, self.noise_multiplier)}
        )

    def _check_noisy(self, client: ClientId, message: Message) -> None:
        """Raises ValueError for sums of no examples, or longer than shortened ones can be."""
        check_sums(PHASE)(client, message)
        sums, counts = (message.tensors[PHASE][name] for name in (SUMS, COUNTS))
        check_shortened(sums, counts, self.clip_norm or 0.0, self.noise_multiplier or 0.0)

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
