"""A head that the server trains on features which it draws itself, before the first round (Luo et
al., 2021, CCVR, arXiv:2106.05001).

Clients tell sums of their features by class, and sums of their squares or products. From these the
server has, for n_c examples of class c in all,

    μ_c = Σ_c x / n_c      Σ_c = (Σ_c x·xᵀ − n_c·μ_cμ_cᵀ) / (n_c − 1)

as of all examples in one place, however they are divided. It draws features of each class from
N(μ_c, Σ_c) and trains the head on them. The paper does so after the last round; the features of a
frozen backbone are the same then. FedDM (Xiong et al., 2023, arXiv:2207.09653) sends pictures with
the clients' mean features instead; for one picture a class before a linear head that is Σ = 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedpeft.algorithms.feature_sums import (
    COUNTS,
    SUMS,
    check_sums,
    count_examples,
    labelled_features,
)
from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors

PHASE = "class_moments"
SECOND = "second"
OWNER = "virtual_features"
SLACK = 1e-3
"""By which share squares may fall short of what the sums imply: clients add up in float32."""


@dataclass(frozen=True)
class VirtualFeatures:
    """It asks all clients once for the moments of their features by class, before the first round.

    Each class that somebody holds has equally many drawn features, so that the head expects classes
    equally often.

    Attributes:
      covariance: "diagonal" for the sums of squares, as many numbers as the sums; "full" for those
        of x·xᵀ as in the paper, features times as many.
      draws: features of each class.
      decay: of the head's weight, λ in the loss + λ/2·‖W‖².
      steps: of L-BFGS at most, each on all drawn features; the paper takes SGD.
      head: the name of the head's module; "auto" finds the usual ones.

    Raises:
      ValueError: a value out of range.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    draws: int = 100
    decay: float = 1e-3
    steps: int = 100
    head: str = "auto"
    reveals: ClassVar[frozenset[str]] = frozenset(
        {
            "for each class the sum of its examples' features, that of their squares or products, "
            "and how many there are"
        }
    )
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    asks_in: ClassVar[Mapping[str, frozenset[int]]] = {PHASE: frozenset({0})}

    def __post_init__(self) -> None:
        if self.covariance not in ("diagonal", "full"):
            raise ValueError(f'covariance must be "diagonal" or "full", got {self.covariance!r}')
        if self.draws < 1 or self.steps < 1:
            raise ValueError(
                f"draws and steps must be at least 1, got {self.draws} and {self.steps}"
            )
        if not 0 < self.decay < float("inf"):
            raise ValueError(f"decay must be positive and finite, got {self.decay}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        linear_head(params, self.head, OWNER)

    def answers(self, params: Tensors) -> Mapping[str, Layout]:
        classes, features = params[linear_head(params, self.head, PHASE)].shape
        square = [features] if self.covariance == "full" else []
        layout: Layout = [
            (COUNTS, [classes], "float32"),
            (SECOND, [classes, features, *square], "float32"),
            (SUMS, [classes, features], "float32"),
        ]
        return {PHASE: layout}

    def before_rounds(self, state: State, round: Round) -> Flow:
        """All clients are asked, and the head is trained."""
        answers = yield self._ask(state, round)
        head = self._head_of(state.params, answers, round)
        return replace(state, params={**state.params, **head})

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The head is set in round 0; all other rounds are the inner algorithm's."""
        if state.round == 0:
            state = yield from self.before_rounds(state, round)
        return (yield from inner(state, round))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _ask(self, state: State, round: Round) -> Ask:
        layout = self.answers(state.params)
        return Ask(
            PHASE,
            round.messages(state, round.clients),
            lambda _: layout,
            _check,
            _usual_length,
            weight=count_examples(PHASE),
        )

    def _answer(self, client: Any, message: Message) -> Message:
        weight = linear_head(message.tensors["params"], self.head, PHASE)
        return Message({PHASE: sum_moments(client, weight, self.covariance == "full")})

    def _head_of(
        self, params: Tensors, answers: Iterator[Answer], round: Round
    ) -> dict[str, Tensor]:
        weight = linear_head(params, self.head, PHASE)
        told = add_moments(answer.message.tensors[PHASE] for answer in answers)
        held = told[COUNTS].nonzero().flatten() if told else torch.zeros(0, dtype=torch.int64)
        if len(held) < 2:
            round.report("note", "virtual_features needs two classes: the head stays as it was")
            return {}
        means, factors = estimate_normals({name: x[held] for name, x in told.items()})
        stream = generator(round.seed, OWNER)
        x = draw_features(means, factors, self.draws, stream)
        label = torch.arange(len(held)).repeat_interleave(self.draws)
        bias = f"{weight.removesuffix('.weight')}.bias"
        rows, offsets, loss = train_head(x, label, self.decay, self.steps, bias in params)
        round.report(
            OWNER, {"drawn": len(x), "loss": loss, "without": len(told[COUNTS]) - len(held)}
        )
        # The row of a class that nobody holds stays: no feature says anything about it.
        begun = {weight: params[weight].index_copy(0, held, rows.to(params[weight]))}
        if bias in params:
            begun[bias] = params[bias].index_copy(0, held, offsets.to(params[bias]))
        return begun


def sum_moments(client: Any, weight: str, full: bool) -> dict[str, Tensor]:
    """By class how many examples a client has, (classes,), the sum of their features, (classes,
    features), and that of squares, the same, or with `full` of x·xᵀ, (classes, features, features).

    Raises:
      PlanError: its examples have no labels.
    """
    classes, features = client.received[weight].shape
    square = [features] if full else []
    counts = torch.zeros(classes, dtype=torch.float64)
    sums = counts.new_zeros(classes, features)
    second = counts.new_zeros(classes, features, *square)
    for batch, label, mask in labelled_features(client, weight):
        x = batch.double()
        counts.index_add_(0, label, mask.double())
        sums.index_add_(0, label, x)
        if not full:
            second.index_add_(0, label, x.square())
            continue
        for c in sorted(set(label.tolist())):  # (batch, features, features) at once would be large
            of_class = x[label == c]
            second[c] += of_class.T @ of_class
    return {COUNTS: counts.float(), SECOND: second.float(), SUMS: sums.float()}


def add_moments(messages: Iterator[Tensors]) -> dict[str, Tensor]:
    """The sums over clients, in float64; empty for no message."""
    total: dict[str, Tensor] = {}
    for message in messages:
        total = {name: x.double() + total.get(name, 0.0) for name, x in message.items()}
    return total


def estimate_normals(told: Tensors) -> tuple[Tensor, Tensor]:
    """μ_c (classes, features) and what makes Σ_c: standard deviations (classes, features), or roots
    R with R·Rᵀ = Σ_c (classes, features, features), of classes with an example at least each.

    Variances that rounding makes negative count as 0, and so do those of a single example.
    """
    counts, sums, second = told[COUNTS], told[SUMS], told[SECOND]
    means = sums / counts[:, None]
    beyond = (counts - 1).clamp_min(1)
    if second.ndim == sums.ndim:
        variances = (second - counts[:, None] * means.square()) / beyond[:, None]
        return means, variances.clamp_min(0).sqrt()
    apart = second - counts[:, None, None] * means[:, :, None] * means[:, None, :]
    values, vectors = torch.linalg.eigh(apart / beyond[:, None, None])
    return means, vectors * values.clamp_min(0).sqrt()[:, None, :]


def draw_features(means: Tensor, factors: Tensor, draws: int, stream: torch.Generator) -> Tensor:
    """Features (classes·draws, features), class after class, of the results of
    `estimate_normals`."""
    shape = (len(means), draws, means.shape[1])
    noise = torch.randn(shape, generator=stream, dtype=means.dtype)
    if factors.ndim == means.ndim:
        return (means[:, None, :] + noise * factors[:, None, :]).flatten(0, 1)
    return (means[:, None, :] + noise @ factors.mT).flatten(0, 1)


def train_head(
    x: Tensor, label: Tensor, decay: float, steps: int, biased: bool
) -> tuple[Tensor, Tensor, float]:
    """The softmax regression of the labels (n,) on features (n, features): W (classes, features), b
    (classes,), zero without `biased`, and the cross-entropy that is left.

    The loss has one minimum, to which L-BFGS goes from zero without a rate to be chosen.
    """
    classes = int(label.max()) + 1
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=biased)
    learned = [weight, bias] if biased else [weight]
    optimizer = torch.optim.LBFGS(learned, max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return cross_entropy(x @ weight.T + bias, label)

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = loss() + decay / 2 * weight.square().sum()
        objective.backward()  # type: ignore[no-untyped-call]
        return objective

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach(), float(loss().detach())


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for moments that no examples have: (Σ x)² is at most n·Σ x²."""
    check_sums(PHASE)(client, message)
    told = message.tensors[PHASE]
    counts, sums, second = told[COUNTS].double(), told[SUMS].double(), told[SECOND].double()
    if second[counts == 0].any():
        raise ValueError("it tells squares of classes of which it has no example")
    full = second.ndim > sums.ndim
    if full and not torch.equal(second, second.mT):
        raise ValueError("its products are no sum of x·xᵀ")
    squares = second.diagonal(dim1=1, dim2=2) if full else second
    # A square below the least normal number of float32 is rounded by more than a share of it.
    most = counts[:, None] * (squares + torch.finfo(torch.float32).tiny)
    if (most < sums.square() * (1 - SLACK)).any() or (squares < 0).any():
        raise ValueError("its squares are less than its sums allow")


def _usual_length(message: Message) -> float:
    """The root of the mean of ‖x‖², which is no less than the length of any mean of all."""
    told = message.tensors[PHASE]
    second = told[SECOND].double()
    full = second.ndim > told[SUMS].ndim
    squares = second.diagonal(dim1=1, dim2=2) if full else second
    return float((squares.sum() / told[COUNTS].double().sum().clamp_min(1)).sqrt())
