"""Clients merged layer by layer, so that the outputs of the merge are nearest to theirs (RegMean;
Jin et al., 2023, arXiv:2212.09849)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.algorithms.asked_again import merge_anew
from fedpeft.core.conversation import Flow, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = "gram_matrices"
WEIGHT = ".weight"
ROUNDING = 2e-7
"""How far below zero the least eigenvalue of a Gram matrix may be, in shares of its trace: what
float32 rounds off its entries moves none by more."""
FLOOR = 1e-6
"""What is added to a Gram matrix, in shares of its mean diagonal, so that directions in which no
client has inputs go to their mean."""


@dataclass(frozen=True)
class RegMean:
    """W ← (Σ p_k·W_k·G_k)·(Σ p_k·G_k)⁻¹ for each linear layer whose whole weight is trained, with
    G_k = XᵀX / rows of the inputs X of that layer in the client's own trained model; what else is
    trained goes to its mean.

    After the training each client is asked again, gets back what it trained, and sends G_k, in²
    numbers a layer. Factors of LoRA are no weights of layers, so that there is nothing to ask of
    them.

    Attributes:
      share: what the off-diagonal entries of G count; 1 is the regression itself, and the default
        of the authors' code. Below 1 a G of few inputs has an inverse that is far smaller.

    Raises:
      ValueError: `share` is not in [0, 1].
    """

    share: float = 0.9
    reveals: ClassVar[frozenset[str]] = frozenset(
        {
            "the products, two by two, of what comes into each trained layer, their mean over the "
            "examples"
        }
    )
    forbids: ClassVar[Mapping[Fact, str]] = {
        **{
            fact: "a merge by Gram matrices is of layers that all clients have alike: leave out "
            "personal, ranks and SCAFFOLD"
            for fact in (Fact.PERSONAL, Fact.MIXED_RANKS, Fact.CONTROL)
        },
        Fact.MIXED_TENSORS: "{other} {what}, and a merge by Gram matrices is of layers "
        "that all clients train: leave out one of them",
        Fact.REMEMBERS_MEAN: "{other} {what}, and a merge by Gram matrices is no mean of updates: "
        "leave out one of them",
        Fact.ASYNCHRONOUS: "a merge by Gram matrices is of a round's clients, and asynchronous "
        "steps have no rounds: leave it out",
        Fact.SUM_ONLY: "a merge by Gram matrices reads each client's update, which sums hide: "
        "leave it out",
        Fact.COMPARES: "a merge by Gram matrices takes a mean, past what {other} keeps out: leave "
        'it out, or set aggregator = "mean"',
    }

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where no weight of a layer is trained as a whole."""
        if not any(map(_is_weight, params, params.values())):
            raise PlanError(
                "reg_mean merges whole weights of linear layers, and the method trains none: set "
                'method = "head" or "full"'
            )

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round, merged again with the Gram matrices of its clients."""

        def merge(
            changes: Sequence[Tensors], told: Sequence[Tensors], weights: Sequence[float]
        ) -> Tensors:
            return merge_by_inputs(changes, told, weights, self.share)

        asked = inner, state, round
        return (yield from merge_anew(asked, PHASE, _squares, _check, merge, _usual_length))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: the Gram matrices of what comes into its layers; zero for a weight
        that is no linear layer's."""
        wanted = {name: shape[0] for name, shape, _ in _squares(client.received)}
        sums = {name: torch.zeros(side, side, dtype=torch.float64) for name, side in wanted.items()}
        rows = dict.fromkeys(wanted, 0.0)
        for name, inputs, mask in _inputs(client, wanted):
            kept = inputs[mask > 0] if len(mask) == len(inputs) else inputs
            flat = kept.reshape(-1, inputs.shape[-1]).double().cpu()
            sums[name] += flat.T @ flat
            rows[name] += len(flat)
        grams = {name: (x / max(rows[name], 1.0)).float() for name, x in sums.items()}
        return Message({PHASE: {name: (x + x.T) / 2 for name, x in grams.items()}})


def merge_by_inputs(
    changes: Sequence[Tensors], grams: Sequence[Tensors], weights: Sequence[float], share: float
) -> dict[str, Tensor]:
    """The merged change, in the changes' types. Of changes and of weights the rule gives the same,
    since all clients begin at one W."""
    total, merged = sum(weights), {}
    for name, like in changes[0].items():
        parts = [p / total for p in weights]
        mean = torch.stack([p * c[name].double() for p, c in zip(parts, changes, strict=True)]).sum(
            0
        )
        merged[name] = mean.to(like.dtype)
        if name not in grams[0]:
            continue
        shrunk = [p * _shrunk(g[name].double(), share) for p, g in zip(parts, grams, strict=True)]
        whole = torch.stack(shrunk).sum(0)
        if whole.any():
            pulls = [c[name].double() @ g for c, g in zip(changes, shrunk, strict=True)]
            # W·G = P is Gᵀ·Wᵀ = Pᵀ, and G is symmetric
            solved = torch.linalg.solve(whole, torch.stack(pulls).sum(0).T).T
            merged[name] = solved.to(like.dtype)
    return merged


def _shrunk(gram: Tensor, share: float) -> Tensor:
    """G with its off-diagonal entries smaller, and positive definite; zero stays zero."""
    diagonal = torch.diag(gram.diagonal())
    floor = FLOOR * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return share * gram + (1 - share) * diagonal + floor


def _is_weight(name: str, x: Tensor) -> bool:
    """Whether it may be the weight of a linear layer; factors of LoRA have names of their own."""
    return name.endswith(WEIGHT) and x.ndim == 2 and ".lora_" not in name


def _squares(tensors: Tensors) -> Layout:
    """The layout of the Gram matrices of these weights."""
    return [
        (name, [x.shape[1], x.shape[1]], "float32")
        for name, x in tensors.items()
        if _is_weight(name, x)
    ]


def _inputs(client: Any, wanted: Mapping[str, int]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What comes into each wanted layer, batch by batch, with the batch's mask."""
    heard: list[tuple[str, Tensor]] = []
    with _listening(client.site.model, wanted, heard):
        for batch, _ in client.outputs():
            for name, inputs in heard:
                yield name, inputs, batch["mask"].to(inputs.device)
            heard.clear()


@contextmanager
def _listening(
    model: nn.Module, wanted: Mapping[str, int], heard: list[tuple[str, Tensor]]
) -> Iterator[None]:
    layers = dict(model.named_modules())
    hooks = []
    for name, side in wanted.items():
        layer = layers.get(name.removesuffix(WEIGHT))
        if isinstance(layer, nn.Linear) and layer.in_features == side:

            def listen(_: nn.Module, inputs: Any, name: str = name) -> None:
                heard.append((name, inputs[0].detach()))

            hooks.append(layer.register_forward_pre_hook(listen))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(client: ClientId, message: Message) -> None:
    """Raises ValueError for what is no Gram matrix. With a negative eigenvalue in it the sum of all
    may be near a singular one, and the merge as long as a client wishes."""
    for name, x in message.tensors[PHASE].items():
        if not torch.equal(x, x.T) or (x.diagonal() < 0).any() or not _is_positive(x.double()):
            raise ValueError(f"its Gram matrix of {name!r} is no sum of x·xᵀ")


def _is_positive(gram: Tensor) -> bool:
    """Whether no eigenvalue is negative beyond what rounding may do."""
    # Below the least normal number of float32 rounding is no share of anything.
    room = ROUNDING * float(gram.trace()) + torch.finfo(torch.float32).tiny
    whole = gram + room * torch.eye(len(gram), dtype=gram.dtype)
    # cholesky_ex gives a number where cholesky raises.
    return int(torch.linalg.cholesky_ex(whole).info) == 0


def _usual_length(message: Message) -> float:
    """The root of the mean of ‖x‖² over all layers' inputs: a client whose inputs were far longer
    than all others' would alone say where the merge goes."""
    return sqrt(sum(float(x.double().trace()) for x in message.tensors[PHASE].values()))
