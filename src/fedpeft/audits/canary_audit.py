"""One run of a federation of canaries, and what it says of the plan's ε.

Along a canary's direction, and by the most that one unit changes, a round shows

    x = k + z·√n·N(0, 1),    k ~ Binomial(n, q) for a canary that is in, 0 for one that is out

with the n steps, the rate q and the noise multiplier z that the plan claims. The score of a canary
is the logarithm of the likelihood ratio of in and out, summed over the rounds, which no test of
these numbers beats (Neyman and Pearson, 1933). Where the noise is not what is claimed, the bound
stays one: it holds for any score.
"""

from collections.abc import Callable
from math import lgamma, sqrt
from typing import Any

import torch
from torch import Tensor

from fedpeft.audits.canaries import hatch
from fedpeft.audits.canary_rounds import observe_rounds
from fedpeft.audits.epsilon_bound import CONFIDENCE, Guesses, bound_epsilon, guess
from fedpeft.core.accounting import epsilon, finite_epsilon
from fedpeft.core.seeds import generator
from fedpeft.core.types import Event
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import Spending
from fedpeft.registry import describe
from fedpeft.rounds.site import Site, threads

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02)
"""Of the canaries, how many may be guessed."""
REHEARSALS = 8


def audit_canaries(
    site: Site,
    count: int,
    rounds: int = 0,
    seed: int = 0,
    tick: Callable[[int], None] = lambda total: None,
) -> dict[str, Any]:
    """A lower bound of ε beside the accountant's upper one, as plain values.

    No example of the site is read, and no secret of a run: coins and noise come from `seed`.

    Args:
      rounds: in which each canary takes part; 0 for as many as the client of the plan that takes
        part most often.
      tick: called at each of so many steps, with their number.

    Raises:
      PlanError: see `hatch`; or a number of rounds below 0.
      RunError: a canary fails.
    """
    if rounds < 0:
        raise PlanError(f"canaries cannot take part in {rounds} rounds: leave it out, or give 1")
    plan = site.plan
    rounds = rounds or count_participations(site)
    canaries = hatch(site, count, rounds, seed)
    event, delta = canaries.event, plan.privacy.delta or 0.0
    steps = rounds * len(canaries.site.data.clients)
    scores = torch.zeros(count, dtype=torch.float64)
    with threads(plan.compute.threads):
        number = choose_number(event, rounds, count, delta)
        for seen in observe_rounds(canaries, seed, lambda: tick(steps)):
            scores += likelihood_ratio(seen, event)
    guesses = guess(scores, canaries.included, number)
    lower = bound_epsilon(guesses, delta)
    upper = epsilon(event, rounds, delta, plan.privacy.accountant)
    kind = "local" if plan.private_part is plan.local else "stage"
    return {
        "plan": plan.name,
        "privacy": describe(kind, plan.private_part)["name"],
        "unit": event.unit,
        "noise_multiplier": plan.private_part.noise_multiplier,
        "clip_norm": finite_epsilon(plan.private_part.clip_norm),
        "canaries": count,
        "included": int(canaries.included.sum()),
        "rounds": rounds,
        "guesses": guesses.made,
        "right": guesses.right,
        "confidence": CONFIDENCE,
        "epsilon_lower": lower,
        "epsilon_upper": finite_epsilon(upper),
        "delta": delta,
        "accountant": plan.privacy.accountant,
        "holds": lower <= upper,
        "seed": seed,
    }


def count_participations(site: Site) -> int:
    """How often that client takes part which does most often."""
    spending = Spending(site.plan, site.data.clients)
    for round_ in range(site.plan.rounds):
        spending.count_round(round_)
    return spending.most


def likelihood_ratio(seen: Tensor, event: Event) -> Tensor:
    """log P[x | in] − log P[x | out] of each x that was seen in a round; x itself without noise."""
    noise = event.noise_multiplier
    if not noise:
        return seen
    drawn = torch.arange(event.times + 1, dtype=torch.float64)
    logs = torch.xlogy(drawn, event.rate) + torch.xlogy(event.times - drawn, 1 - event.rate)
    ways = torch.lgamma(drawn + 1) + torch.lgamma(event.times - drawn + 1)
    logs = logs + lgamma(event.times + 1) - ways
    gains = (2 * drawn[:, None] * seen - drawn[:, None] ** 2) / (2 * noise**2 * event.times)
    return torch.logsumexp(logs[:, None] + gains, 0)


def choose_number(event: Event, rounds: int, count: int, delta: float) -> int:
    """How many canaries are to be guessed, before anything of the audit is seen.

    It is the number that gives the highest bound in rehearsals: normal numbers in place of the
    mechanism, exactly as it is claimed. A number that is chosen so needs no correction for several
    tries.
    """
    draws = generator(0, "rehearsal")
    numbers = list(dict.fromkeys(2 * max(1, int(count * share / 2)) for share in SHARES))
    right = dict.fromkeys(numbers, 0)
    for _ in range(REHEARSALS):
        scores, included = _rehearse(event, rounds, count, draws)
        for number in numbers:
            right[number] += guess(scores, included, number).right

    def reached(number: int) -> float:
        mean = Guesses(count, number, right[number] // REHEARSALS)
        return bound_epsilon(mean, delta)

    return max(numbers, key=reached)


def _rehearse(
    event: Event, rounds: int, count: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores and coins of canaries under the mechanism as it is claimed."""
    included = torch.rand(count, generator=draws) < 0.5
    spread = (event.noise_multiplier or 0.0) * sqrt(event.times)
    scores = torch.zeros(count, dtype=torch.float64)
    rate = torch.full((count,), event.rate, dtype=torch.float64)
    for _ in range(rounds):
        drawn = torch.binomial(torch.full_like(rate, event.times), rate, generator=draws)
        noise = torch.randn(count, generator=draws, dtype=torch.float64)
        scores += likelihood_ratio(drawn * included + spread * noise, event)
    return scores, included
