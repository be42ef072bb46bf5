"""Clients merged by Fisher information (Matena and Raffel, 2022, arXiv:2111.09832): where a client
is sure of an entry, it counts more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.algorithms.asked_again import merge_anew
from fedpeft.core.conversation import Flow, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout, layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = "fisher"


@dataclass(frozen=True)
class Fisher:
    """θ ← Σ p_k·F_k·θ_k / Σ p_k·F_k entry by entry, where F_k is the mean over the client's
    examples of the squared gradient of the loss at what it trained, plus `floor`.

    After the training each client is asked again, gets back what it trained, and sends F_k: twice
    the bytes up, and a pass with gradients by example. The inner algorithm then runs on remembered
    answers, all of which are the merged one. The gradients are those of the examples' own labels;
    the published code draws labels from the model.

    Attributes:
      floor: what is added to each F, so that entries of which nobody knows anything go to their
        mean.

    Raises:
      ValueError: `floor` is not positive and finite.
    """

    floor: float = 1e-6
    reveals: ClassVar[frozenset[str]] = frozenset(
        {"the mean over the examples of the squared gradient, for each number that is trained"}
    )
    forbids: ClassVar[Mapping[Fact, str]] = {
        **{
            fact: "a merge by Fisher information is of tensors that all clients have alike: leave "
            "out personal, ranks and SCAFFOLD"
            for fact in (Fact.PERSONAL, Fact.MIXED_RANKS, Fact.CONTROL)
        },
        Fact.MIXED_TENSORS: "{other} {what}, and a merge by Fisher information is of "
        "tensors that all clients train: leave out one of them",
        Fact.REMEMBERS_MEAN: "{other} {what}, and a merge by Fisher information weighs each number "
        "of a client by itself: leave out one of them",
        Fact.ASYNCHRONOUS: "a merge by Fisher information is of a round's clients, and "
        "asynchronous steps have no rounds: leave it out",
        Fact.SUM_ONLY: "a merge by Fisher information reads each client's update, which sums hide: "
        "leave it out",
        Fact.COMPARES: "a merge by Fisher information takes a mean, past what {other} keeps out: "
        'leave it out, or set aggregator = "mean"',
    }

    def __post_init__(self) -> None:
        if not 0 < self.floor < float("inf"):
            raise ValueError(f"floor must be positive and finite, got {self.floor}")

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a task whose examples have no gradients of their own."""
        if getattr(plan.task, "couples_examples", False):
            raise PlanError(
                f"a merge by Fisher information squares the gradient of each example, and "
                f"{type(plan.task).__name__} {Fact.COUPLES_EXAMPLES.value}: leave one of them out"
            )

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round, merged again with what its clients then tell."""

        def merge(
            changes: Sequence[Tensors], told: Sequence[Tensors], weights: Sequence[float]
        ) -> Tensors:
            return merge_by_information(changes, told, weights, self.floor)

        asked = inner, state, round
        return (
            yield from merge_anew(
                asked, PHASE, _as_float32, check_squares, merge, weight=squared_length
            )
        )

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: F without the floor, for what it trains."""
        return Message({PHASE: mean_squared_gradient(client)})


def mean_squared_gradient(client: Any) -> dict[str, Tensor]:
    """The mean over a client's examples of the squared gradient of the loss at what it received,
    for each number that it trains."""
    site, objective = client.site, client.found.objective
    on = {name: x.to(site.device) for name, x in client.received.items()}
    total = {name: torch.zeros_like(x, dtype=torch.float32) for name, x in on.items()}
    examples = 0.0
    with evaluation_mode(site.model):
        for batch in map(site.on_device, site.data.training(client.name)):
            for name, each in objective.gradients(on, batch).items():
                mask = batch["mask"].view(-1, *[1] * (each.ndim - 1))
                total[name] += (each.float().square() * mask).sum(0)
            examples += float(batch["mask"].sum())
    return {name: x.cpu() / max(examples, 1.0) for name, x in total.items()}


def merge_by_information(
    changes: Sequence[Tensors],
    information: Sequence[Tensors],
    weights: Sequence[float],
    floor: float,
) -> dict[str, Tensor]:
    """Σ p·(F + floor)·Δ / Σ p·(F + floor), entry by entry, in the changes' types."""
    merged = {}
    for name, like in changes[0].items():
        by = [w * (one[name].double() + floor) for w, one in zip(weights, information, strict=True)]
        pulls = [b * change[name].double() for b, change in zip(by, changes, strict=True)]
        merged[name] = (torch.stack(pulls).sum(0) / torch.stack(by).sum(0)).to(like.dtype)
    return merged


def _as_float32(delta: Tensors) -> Layout:
    return [(name, shape, "float32") for name, shape, _ in layout(delta)]


def check_squares(client: ClientId, message: Message) -> None:
    """Raises ValueError for a value that is no square."""
    if any((x < 0).any() for group in message.tensors.values() for x in group.values()):
        raise ValueError("its Fisher information is negative somewhere")


def squared_length(message: Message) -> float:
    """What a client's information claims to count: its sum, the mean squared length of the
    gradient."""
    squares = [x for group in message.tensors.values() for x in group.values()]
    return sum(float(x.double().sum()) for x in squares)
