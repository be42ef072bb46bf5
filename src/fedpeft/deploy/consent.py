"""What an owner agrees to, in plain words on one screen, and the file that says that he did."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fedpeft.core.accounting import epsilon
from fedpeft.core.tensors import numbers_in
from fedpeft.core.types import ClientId, Tensors
from fedpeft.core.units import say_epsilon
from fedpeft.core.views import View
from fedpeft.plan.calibration import learns, select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import phase_plans, plan_at
from fedpeft.registry import describe
from fedpeft.rounds.site import Site
from fedpeft.storage.files import private_folder, write_atomically

FILE = "agreement.json"
TELLS = {
    "class_means": "for each class the sum of its examples' features, and how many there are",
    "class_counts": "how many examples of each class there are here",
    "feature_products": "the sum of the products of all its examples' features",
    "scores": "how well several models do on examples from here",
}
"""What parts of a plan tell the server beside updates."""


@dataclass(frozen=True)
class Consent:
    """The terms of one owner.

    Attributes:
      lines: what and how, in pairs of a word and a sentence.
    """

    lines: tuple[tuple[str, str], ...]

    def text(self) -> list[str]:
        """The screen."""
        width = max(len(word) for word, _ in self.lines)
        return [f"  {word.ljust(width)}  {sentence}" for word, sentence in self.lines]

    def given_at(self, folder: Path) -> bool:
        """Whether the owner agreed to just this before."""
        try:
            kept = json.loads((folder / FILE).read_text())
        except (OSError, ValueError):
            return False
        return isinstance(kept, dict) and kept.get("lines") == [list(line) for line in self.lines]

    def keep(self, folder: Path) -> None:
        """Write down that the owner agreed."""
        content = json.dumps({"lines": self.lines}, indent=2).encode()
        write_atomically(private_folder(folder) / FILE, content, private=True)


def consent_to(
    site: Site,
    client: ClientId,
    clients: Sequence[ClientId],
    earlier: int = 0,
    by_file: bool = False,
    declined: Collection[str] = (),
) -> Consent:
    """What a client agrees to when it takes part in a plan.

    Args:
      clients: all clients of the federation.
      earlier: how many runs of this plan it has answered before, or how many files it has made.
      by_file: whether it writes one file instead of answering a server.
      declined: messages of the plan that the owner does not answer.
    """
    plan = site.plan
    # What any phase lets the server see is agreed to as well.
    plans = phase_plans(plan)
    times = _times(plan, client, clients)
    asked = _messages(plans.values(), declined)
    if by_file:
        asked = "none: no server asks anything; the file is sealed for the server alone"
    return Consent(
        (
            ("model", _model(site)),
            ("leaves here", _leaves(site, plans, client, clients)),
            ("rounds", _rounds(plan, times, by_file)),
            ("messages", asked),
            ("noise", _noise(plans, times, earlier, "files" if by_file else "runs")),
            ("not hidden", "; ".join(_visible(plans.values(), declined))),
        )
    )


def _times(plan: Plan, client: ClientId, clients: Sequence[ClientId]) -> int:
    """In how many rounds the client takes part; at most, where the sampler learns."""
    if not plan.rounds:  # a part that adds noise to what it asks before them does so once
        return int(hasattr(plan.private_part, "before_rounds"))
    if learns(plan):
        sampler: Any = plan.sampler
        return int(sampler.most(plan.rounds, plan.cohort, len(clients)))
    drawn = (select_cohort(plan_at(plan, k), clients, k) for k in range(plan.rounds))
    return sum(client in cohort for cohort in drawn)


def _rounds(plan: Plan, times: int, by_file: bool) -> str:
    if plan.rounds and by_file:
        return "one: you train once, and send the file yourself"
    if plan.rounds:
        if learns(plan):
            most = f"at most {times} of {plan.rounds}"
            return f"{most}, as the server learns whom to draw; each answered once"
        return f"{times} of {plan.rounds}, as the plan draws them; each answered once"
    if by_file:
        return "none: nobody trains; you count once, and send the file yourself"
    if plan.hooks("before_rounds"):
        return "none: nobody trains; each message below is answered once"
    return "none: nobody trains, and a model that the server sends is measured once"


def _model(site: Site) -> str:
    task: Any = site.plan.task
    base = getattr(task, "model", "") or type(task).__name__
    method = describe("method", site.plan.method)["name"]
    return f"{base}, tuned with {method!r}; its other weights and your examples stay here"


def _leaves(
    site: Site, plans: Mapping[int, Plan], client: ClientId, clients: Sequence[ClientId]
) -> str:
    params = site.params()
    if not site.plan.rounds:
        return _leaves_without_rounds(site.plan, params)
    each = {_numbers(plan, params, plan.view(client, k, clients)) for k, plan in plans.items()}
    # what is trained may be more than weights: running statistics are
    every = {**dict(site.model.named_parameters()), **params}
    whole = sum(x.numel() for x in every.values())
    fewer = any(plan.hooks("leave_out") for plan in plans.values())
    most = "at most " if len(each) > 1 or fewer else ""
    before = _numbers_before(plans[0], params)
    more = f", {before:,} more before the first" if before else ""
    return f"{most}{max(each):,} numbers a round (of {whole:,} in the model){more}, and no example"


def _leaves_without_rounds(plan: Plan, params: Tensors) -> str:
    """The sums of which a head is made; counts of an evaluation stand with what is not hidden."""
    numbers = _numbers_before(plan, params)
    return f"{numbers:,} numbers once, and no example" if numbers else "no change of the model"


def _numbers_before(plan: Plan, params: Tensors) -> int:
    """How many numbers a client sends before it trains."""
    return sum(numbers_in(answers(params)) for answers in plan.hooks("answers"))


def _numbers(plan: Plan, params: Tensors, view: View) -> int:
    """How many numbers a client of a view sends in a round."""
    received = view.select(params)
    shared = plan.shares(received)
    numbers = sum(x.numel() for x in view.trained(received).values())
    for owner in plan.local_shares:
        numbers += sum(prod(shape) for _, shape, _ in shared.get(owner, []))
    return numbers


def _messages(plans: Collection[Plan], declined: Collection[str]) -> str:
    every = {phase for plan in plans for phase in plan.handlers()}
    others = sorted(every - set(declined))
    if not any(plan.rounds for plan in plans):
        return f"{', '.join(others) or 'none'}; no other is answered"
    if not others:
        return "a model to train, and its change back; every other message is refused"
    return f"a model to train, and its change back; {', '.join(others)}; no other is answered"


def _noise(plans: Mapping[int, Plan], times: int, earlier: int, unit: str) -> str:
    plan = plans[0]
    part = plan.private_part  # the same in all phases, or none is private
    if part is None or not part.event.accounted:
        return _seen_as_it_is(plans.values())
    event, delta = part.event, plan.privacy.delta or 0.0
    spent = epsilon(event, times * (earlier + 1), delta, plan.privacy.accountant)
    where = "the server adds it after it has seen the change" if event.central else "added here"
    runs = f" after {earlier + 1} {unit}" if earlier else ""
    if plan.rounds:
        runs += " over all rounds"
    bound = f"epsilon = {say_epsilon(spent)} at delta = {delta:g}"
    return f"hides each {event.unit}: {bound}{runs}; {where}"


def _seen_as_it_is(plans: Collection[Plan]) -> str:
    summed = [plan.exchange.sums for plan in plans]
    some = "" if all(summed) else " in some rounds"
    seen = "the change" if any(plan.rounds for plan in plans) else "what is sent"
    return f"none: the server sees {seen} as it is" + (
        f", but only added to those of others{some}" if any(summed) else ""
    )


def _visible(plans: Iterable[Plan], declined: Collection[str]) -> list[str]:
    """What the server learns whatever is hidden, in any phase."""
    return list(dict.fromkeys(words for plan in plans for words in _visible_in(plan, declined)))


def _visible_in(plan: Plan, declined: Collection[str]) -> Iterator[str]:
    """What the server learns whatever is hidden."""
    yield "that this site takes part, and when"
    if plan.weighting != "uniform" and not plan.exchange.sums:
        yield "how many examples there are here"
    if plan.rounds and plan.private_part is None and not plan.exchange.sums:
        yield "the mean loss in training"
    yield from _told_beside(plan, declined)


def _told_beside(plan: Plan, declined: Collection[str]) -> Iterator[str]:
    """What parts tell the server, where the owner does not decline their messages."""
    for part in plan.parts:
        asked = set(part.handlers()) if hasattr(part, "handlers") else set()
        if not asked or not asked <= set(declined):
            facts = getattr(part, "reveals", ())
            yield from (TELLS.get(fact, fact) for fact in sorted(facts))
