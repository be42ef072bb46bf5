"""Clients that train while the last round's updates are on their way (Overlap-FedAvg; Zhou et al.,
2020, arXiv:2012.06706), read in the authors' code."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedpeft.algorithms.fedavg import merge
from fedpeft.core.conversation import Flow
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.types import State
from fedpeft.errors import PlanError

OWNER = "overlap"
"""The owner, in the server's memory, of the model that the last round began with."""


@dataclass(frozen=True)
class Overlap:
    """In round t clients train from θ_{t−1}, the model that the last round began with, and the
    server takes a step from θ_t along the mean of their changes. Rounds 0 and 1 begin with θ_0.

    So training and sending could take place at once, and a round take the longer of both, not their
    sum. What is here is what that does to learning. Nothing is sent sooner, and bytes are those of
    federated averaging. With aggregator = "compensated" it is Overlap-FedAvg. There clients train
    their first overlapped round on from their own weights; here they begin with θ_0 again.
    """

    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.CONTROL: "{other} {what} of the present model, and with overlap clients train from "
        "the last one: leave out one of them",
        Fact.FACTORS: "{other} {what} from the present ones, and with overlap clients begin with "
        'the last ones: set aggregator = "mean" or "compensated"',
        Fact.MERGES_BASE: "{other} {what}, which belong to the present model, and with overlap "
        "clients train from the last one: leave out one of them",
        Fact.SEVERAL_MODELS: "{other} {what}, and overlap keeps the last one of one: leave out one "
        "of them",
    }

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError beside another algorithm, or with a downlink that sends changes."""
        if plan.algorithms != (self,):
            raise PlanError(
                "overlap asks clients with the model of the last round, and other algorithms ask "
                f"with the present one: leave out the others of algorithms = {plan.algorithms}, or "
                "overlap"
            )
        if getattr(plan.downlink, "follows", False):
            raise PlanError(
                f"downlink = {plan.downlink} sends the change of what clients hold, which overlap "
                'lets them receive a round later: set downlink = "dense" or another codec'
            )

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """One step of the server; the inner algorithm, which is federated averaging, has no part in
        it."""
        before = state.memory.get(OWNER)
        last = state if before is None else replace(state, params=before)
        ask = round.ask_to_fit(round.cohort, dict.fromkeys(round.cohort, last))
        answers = yield from round.plan.exchange.collect(ask, round)
        after = merge(state, answers, round, planned=len(round.cohort))
        return replace(after, memory={**after.memory, OWNER: state.params})
