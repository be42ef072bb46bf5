"""Transfer components: features in which sources and a target without labels look alike (FedRF-TCA,
arXiv:2311.04686).

Each client tells once Σ φ and Σ φφᵀ of its random features φ, as many numbers however many examples
it has. With v the difference of the means of sources and target, and C the scatter of all around
their mean, the projection W has the m first eigenvectors of

    (I + v·vᵀ/γ)⁻¹·C = (I − v·vᵀ / (γ + vᵀv))·C

as rows: directions in which much varies and the two means differ little. This is the closed form of
RF-TCA, the companion method; the code of the federated one learns W by gradients.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import eigh

from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.outputs import FEATURES
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.core.views import View
from fedpeft.errors import PlanError

PHASE = "random_moments"
COUNT, SUM, PRODUCTS = "count", "sum", "products"
PROJECTION = ".components.weight"
SLACK = 1e-3
"""By which share sums in float32 may miss what they are of features of length 1."""


@dataclass(frozen=True)
class TransferComponents:
    """It makes the projection of `method = "random_features"` before the first round, from moments
    of all clients; it is not trained afterwards. The targets never train, so that their labels, if
    they have any, are used nowhere.

    Attributes:
      targets: the clients without labels, by name.
      gamma: γ; the smaller it is, the more a difference of the means counts.

    Raises:
      ValueError: no target, or γ is not positive and finite.
    """

    targets: tuple[ClientId, ...]
    gamma: float = 10.0
    reveals: ClassVar[frozenset[str]] = frozenset(
        {"the sum of its examples' random features, that of their products, and how many there are"}
    )
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets must name the clients without labels")
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"gamma must be positive and finite, got {self.gamma}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there are no random features with a shared projection."""
        _projection(params)

    def view(self, client: ClientId, round: int, clients: Any) -> View:
        """The projection is received and not trained."""
        return View(trains=((f"!*{PROJECTION}",),))

    def answers(self, params: Tensors) -> Mapping[str, Layout]:
        width = params[_projection(params)].shape[1]
        layout: Layout = [
            (COUNT, [1], "float32"),
            (PRODUCTS, [width, width], "float32"),
            (SUM, [width], "float32"),
        ]
        return {PHASE: layout}

    def before_rounds(self, state: State, round: Round) -> Flow:
        """All clients are asked, and the projection is set.

        Raises:
          PlanError: a target is none of the clients, or every client is one.
        """
        if unknown := sorted(set(self.targets) - set(round.clients)):
            raise PlanError(
                f"the target {unknown[0]!r} is none of the clients {', '.join(round.clients[:9])}"
            )
        if set(self.targets) >= set(round.clients):
            raise PlanError("all clients are targets: name the one whose labels nobody uses")
        layout, name = self.answers(state.params), _projection(state.params)
        answers = yield Ask(
            PHASE,
            round.messages(state, round.clients),
            lambda _: layout,
            _check,
            lambda _: 1.0,  # features have length 1, and so has no mean of them more
            weight=lambda message: float(message.tensors[PHASE][COUNT]),
        )
        rows = self._rows(answers, state.params[name], round)
        return replace(state, params={**state.params, name: rows})

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The projection is set in round 0, and in all rounds the sources alone train."""
        if state.round == 0:
            state = yield from self.before_rounds(state, round)
        sources = [client for client in round.cohort if client not in self.targets]
        if not sources:
            round.report("note", "no source was drawn: nothing is trained")
            return replace(state, round=state.round + 1)
        return (yield from inner(state, replace(round, cohort=sources)))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _answer(self, client: Any, message: Message) -> Message:
        name = _projection(message.tensors["params"])
        width = message.tensors["params"][name].shape[1]
        total, products, count = torch.zeros(width), torch.zeros(width, width), 0.0
        # labels are not looked at: a target has none
        for batch, outputs in client.outputs(name.removesuffix(".weight")):
            mask = batch["mask"].cpu()
            x = outputs[FEATURES].float().cpu() * mask[:, None]
            total, products = total + x.sum(0), products + x.T @ x
            count += float(mask.sum())
        told = {COUNT: torch.tensor([count]), PRODUCTS: products, SUM: total}
        return Message({PHASE: told})

    def _rows(self, answers: Iterator[Answer], before: Tensor, round: Round) -> Tensor:
        """W as the answers tell it; as it was where no source answers."""
        sides = [Moments.none(before.shape[1]) for _ in range(2)]
        for answer in answers:
            side = int(answer.client in self.targets)
            sides[side] = sides[side].plus(answer.message.tensors[PHASE])
        sources, target = sides
        if not sources.count:
            round.report("note", "no source told its moments: the projection stays as it was")
            return before
        if not target.count:
            round.report("note", "no target told its moments: the projection aligns nothing")
        apart = sources.mean - target.mean if target.count else torch.zeros_like(sources.mean)
        round.report("transfer_components", {"distance": float(apart.norm())})
        return components(apart, sources.joined(target).scatter, len(before), self.gamma).to(before)


@dataclass(frozen=True)
class Moments:
    """The number of some features, their sum (width,) and that of their products (width, width)."""

    count: float
    total: Tensor
    products: Tensor

    @classmethod
    def none(cls, width: int) -> "Moments":
        zeros = torch.zeros(width, width, dtype=torch.float64)
        return cls(0.0, zeros[0], zeros)

    @property
    def mean(self) -> Tensor:
        return self.total / max(1.0, self.count)

    @property
    def scatter(self) -> Tensor:
        """Σ (φ − mean)(φ − mean)ᵀ."""
        return self.products - torch.outer(self.mean, self.total)

    def plus(self, told: Tensors) -> "Moments":
        """With a client's own."""
        own = Moments(float(told[COUNT]), told[SUM].double(), told[PRODUCTS].double())
        return self.joined(own)

    def joined(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )


def components(apart: Tensor, scatter: Tensor, number: int, gamma: float) -> Tensor:
    """The first eigenvectors of (I + v·vᵀ/γ)⁻¹·C as rows of length 1, (number, width).

    Args:
      apart: v, (width,).
      scatter: C, (width, width), symmetric.
    """
    square = float(apart @ apart)
    # B = (I + v·vᵀ/γ)^(−1/2) makes the problem symmetric: with u of B·C·B, W has B·u.
    half = torch.eye(len(apart), dtype=apart.dtype)
    if square:
        less = 1 - (1 + square / gamma) ** -0.5
        half = half - less * torch.outer(apart, apart) / square
    _, found = eigh(half @ scatter @ half)
    rows = (half @ found).T.flip(0)[:number]
    rows = rows / rows.norm(dim=1, keepdim=True)
    # An eigenvector may be turned round: its largest entry is to be positive.
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    turned: Tensor = rows * largest.sign()
    return turned


def _projection(params: Tensors) -> str:
    """The name of the projection among what travels.

    Raises:
      PlanError: there is none.
    """
    for name in params:
        if name.endswith(PROJECTION):
            return name
    raise PlanError(
        "transfer_components makes the projection of random features, which must travel, and there "
        'is none: set method = "random_features"'
    )


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for moments that no features of length 1 have."""
    told = message.tensors[PHASE]
    count, total, products = float(told[COUNT]), told[SUM].double(), told[PRODUCTS].double()
    if count < 0 or count != round(count):
        raise ValueError(f"it counts {count:g} examples")
    slack = SLACK * max(1.0, count)
    if abs(float(products.trace()) - count) > slack or float(total.norm()) > count + slack:
        raise ValueError("its random features do not have length 1")
    if not torch.allclose(products, products.T, atol=slack):
        raise ValueError("its products of random features are no sum of φφᵀ")
