"""What a plan's noise has cost so far, and how much of it a plan needs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from fedpeft.core.accounting import calibrate, epsilon, finite_epsilon
from fedpeft.core.seeds import fold, generator
from fedpeft.core.types import ClientId, Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan

TOLERANCE = 1e-6  # relative, between computers


def round_seed(plan: Plan, round_: int) -> int:
    """The root of a round's public randomness."""
    return _round_seed(plan.seed, round_)


@lru_cache(maxsize=64)
def _round_seed(seed: int, round_: int) -> int:
    """It is asked for every message of a round."""
    return fold(seed, "round", round_)


def select_cohort(
    plan: Plan, clients: Sequence[ClientId], round_: int, memory: Tensors | None = None
) -> list[ClientId]:
    """A round's clients, by name. Anyone who has the plan can tell, so no amplification is ever
    claimed for it.

    Args:
      memory: what a sampler that learns has learnt so far.
    """
    # Nodes draw the same to see whether they are meant: nothing but the plan may enter here.
    draws = generator(round_seed(plan, round_), "choose")
    if learns(plan):
        learning: Any = plan.sampler
        return sorted(learning.choose(clients, plan.cohort, draws, round_, memory or {}))
    return sorted(plan.sampler.choose(clients, plan.cohort, draws, round_))


def learns(plan: Plan) -> bool:
    """Whether who is drawn depends on what came before, so that nobody can tell it beforehand."""
    return hasattr(plan.sampler, "learn")


def calibrate_noise(plan: Plan, clients: Sequence[ClientId]) -> Plan:
    """The plan with the noise that its `target_epsilon` asks for; as it is where the noise is
    given.

    Raises:
      PlanError: no noise is enough, or dp-accounting is missing.
    """
    part = plan.private_part
    if (
        part is None
        or plan.privacy.target_epsilon is None
        or part.event.noise_multiplier is not None
    ):
        return plan
    spending = Spending(plan, clients)
    spending.count_whole()
    noise = calibrate(
        lambda z: replace(part, noise_multiplier=z).event,
        spending.most,
        plan.privacy.target_epsilon,
        plan.privacy.delta or 0,
        plan.privacy.accountant,
    )
    return with_noise(plan, noise)


def without_noise(plan: Plan) -> Plan:
    """The plan that leaves its noise to its `target_epsilon`; as it is without a target."""
    return plan if plan.privacy.target_epsilon is None else with_noise(plan, None)


def with_noise(plan: Plan, noise: float | None) -> Plan:
    """The same with another noise multiplier in its private part."""
    part = plan.private_part
    noisy = replace(part, noise_multiplier=noise)
    local = noisy if plan.local is part else plan.local
    stages = tuple(noisy if stage is part else stage for stage in plan.stages)
    algorithms = tuple(noisy if one is part else one for one in plan.algorithms)
    return replace(plan, local=local, stages=stages, algorithms=algorithms)


@dataclass
class Spending:
    """How often each client has taken part, and what that comes to for the one who did most
    often."""

    plan: Plan
    clients: Sequence[ClientId]
    times: Counter[ClientId] = field(default_factory=Counter)

    rounds: int = 0

    @property
    def most(self) -> int:
        """How often the client took part that did most often; a bound where the sampler learns."""
        if learns(self.plan):
            sampler: Any = self.plan.sampler
            # Nobody knows beforehand whom it will draw, so that the account takes the bound.
            return int(sampler.most(self.rounds, self.plan.cohort, len(self.clients)))
        return max(self.times.values(), default=0)

    def count_whole(self) -> None:
        """Count those whom the whole plan draws; without rounds, all whom its noisy part asks
        once before them."""
        for round_ in range(self.plan.rounds):
            self.count_round(round_)
        if not self.plan.rounds and hasattr(self.plan.private_part, "before_rounds"):
            self.count(self.clients)

    def count_round(self, round_: int) -> None:
        """Count those whom the plan draws for a round."""
        known = () if learns(self.plan) else select_cohort(self.plan, self.clients, round_)
        self.count(known)

    def count(self, cohort: Sequence[ClientId]) -> None:
        self.times.update(cohort)
        self.rounds += 1

    def so_far(self) -> dict[str, Any] | None:
        """ε and δ as rounds.jsonl tells them; None for a plan without noise, ε None for noise
        without guarantee."""
        part = self.plan.private_part
        if part is None:
            return None
        event, accountant = part.event, self.plan.privacy.accountant
        if not event.accounted:
            return {"epsilon": None, "delta": None, "unit": event.unit, "accountant": None}
        spent = finite_epsilon(epsilon(event, self.most, self.plan.privacy.delta or 0, accountant))
        return {
            "epsilon": spent,
            "delta": self.plan.privacy.delta,
            "unit": event.unit,
            "accountant": accountant,
        }


def resume_accounting(plan: Plan, clients: Sequence[ClientId], round_: int) -> Spending:
    """The account of a run that has done so many rounds.

    Raises:
      PlanError: the noise is not known yet, or too little for the plan's own target.
    """
    part = plan.private_part
    whole, so_far = Spending(plan, clients), Spending(plan, clients)
    if part is None or not part.event.accounted:
        return so_far
    if part.event.noise_multiplier is None:
        raise PlanError(
            "this plan's noise is not calibrated yet: use the plan of its site, "
            "open_site(plan).plan"
        )
    # The account is drawn anew and not read from the checkpoint, so that a resume cannot lose
    # count.
    whole.count_whole()
    for k in range(round_):
        so_far.count_round(k)
        if k >= plan.rounds:
            whole.count_round(k)
    if plan.privacy.target_epsilon is not None:
        spent = epsilon(part.event, whole.most, plan.privacy.delta or 0, plan.privacy.accountant)
        if spent > plan.privacy.target_epsilon * (1 + TOLERANCE):
            raise PlanError(
                f"noise_multiplier = {part.noise_multiplier} comes to epsilon = {spent:.4g} after "
                f"all rounds, more than target_epsilon = {plan.privacy.target_epsilon}: "
                "leave noise_multiplier out, and it is calibrated"
            )
    return so_far


def without_target(plan: Plan) -> Plan:
    """The same plan without a bound on what its noise may cost in all."""
    return replace(plan, privacy=replace(plan.privacy, target_epsilon=None))
