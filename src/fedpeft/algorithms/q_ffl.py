"""Fairness by loss: who does badly counts more (Li et al., 2020, arXiv:1905.10497, Algorithm 2).

Each client tells F, its loss at the model w that it received, on the examples that it trains on.
With L = 1 / `local.lr` and δ the change that a client sends, so that L·(w − w_k) = −L·δ, the paper
steps from w by Σ F^q·L·δ / Σ h for h = q·F^(q−1)·‖L·δ‖² + L·F^q. That is a weighted mean:

    r = q·L·‖δ‖² / F       of the changes δ / (1 + r)       with the weights h / L = F^q·(1 + r)

so that any kind of mean takes it, and q = 0 leaves all changes and weights as they are, to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedpeft.algorithms.received_loss import LOSS, loss_of, told_loss
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.conversation import DELTA, Answer, Flow, changed_answers
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import norm, scale
from fedpeft.core.types import State, Tensors, Update
from fedpeft.errors import PlanError

LEAST = 1e-10
"""A smaller loss counts as this one, as in the authors' code: below q = 1 a loss of 0 would count
without bound."""
MOST = 1e300
"""No client counts more, so that sums of them are finite."""
HIGHEST = 30.0
"""Above this q the least loss to its power is no number above 0."""


@dataclass(frozen=True)
class QFFL:
    """q-FedAvg: the larger q, the more the clients with the largest losses count.

    A client counts F^q times what it counts in the plan, so that weighting = "uniform" is the
    paper's mean over those who were drawn. Counts and BatchNorm's running statistics, which are
    measured and not learned, go to the mean with these weights and at full length.

    Attributes:
      q: 0 for the mean as it is.

    Raises:
      ValueError: q is negative, or above 30.
    """

    q: float = 1.0
    reveals: ClassVar[frozenset[str]] = frozenset(
        {"the loss of each model that is sent here, on the examples here"}
    )
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: 'q_ffl is a weighted mean: leave it out, or set aggregator = "mean"',
        Fact.PLAIN_STEPS: "q_ffl takes what a client sends for a sum of gradients times local.lr: "
        'leave it out, or set local.optimizer = "sgd"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.SUM_ONLY: "q_ffl weighs each update by its length and loss, which sums hide: leave it "
        'out, or set exchange = "plain"',
        Fact.ASYNCHRONOUS: "q_ffl compares losses of one model, and asynchronous steps have "
        "several: leave out one of them",
        Fact.REMEMBERS_MEAN: "{other} {what}, in which all count as the plan says, and q_ffl "
        "counts them otherwise: leave out one of them",
        Fact.CONTROL: "{other} {what}, whose mean counts all alike: leave it out, or q_ffl",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.q <= HIGHEST:
            raise ValueError(f"q must be between 0 and {HIGHEST:g}, got {self.q}")

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where local training has no learning rate to take L from."""
        if not hasattr(plan.local, "lr"):
            raise PlanError("q_ffl takes 1 / local.lr for L, and this local training has no lr")

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round, with each update as its client's loss has it count."""
        lr = round.plan.local.lr
        return changed_answers(inner(state, round), lambda answer: self._changed(answer, lr))

    def tell(self, client: Any) -> Mapping[str, Any]:
        """The mean loss of the model that a client received, over the examples that it trains on.

        Raises:
          ArithmeticError: it is not finite.
        """
        return {LOSS: loss_of(client.site.task, client.outputs())}

    def check_update(self, update: Update, state: State, plan: Any) -> None:
        """Raises ValueError for a value that is no loss, or one too large to count by."""
        loss = told_loss(update)
        counts, _ = self._share(loss, update.delta, plan.local.lr)
        if not update.weight * counts <= MOST:
            raise ValueError(f"its loss of {loss:g} is too large to count by at q = {self.q:g}")

    def _changed(self, answer: Answer, lr: float) -> Answer:
        message = answer.message
        delta, values = message.tensors[DELTA], message.values
        counts, by = self._share(values[LOSS], delta, lr)
        changed = {**delta, **scale(_select_learned(delta), by)}
        weighed = {**values, "weight": values["weight"] * counts}
        own = replace(message, tensors={**message.tensors, DELTA: changed}, values=weighed)
        return replace(answer, message=own)

    def _share(self, loss: float, delta: Tensors, lr: float) -> tuple[float, float]:
        """F^q·(1 + r) and 1 / (1 + r), see above; the first is infinite where no float holds it."""
        loss = max(loss, LEAST)
        longer = 1 + self.q * float(norm(_select_learned(delta))) ** 2 / (lr * loss)
        try:
            return loss**self.q * longer, 1 / longer
        except OverflowError:
            return float("inf"), 1 / longer


def _select_learned(delta: Tensors) -> dict[str, Any]:
    """What descent has changed: neither counts nor running statistics."""
    return {n: x for n, x in delta.items() if x.is_floating_point() and not is_statistic(n)}
