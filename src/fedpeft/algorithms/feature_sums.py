"""Sums of features by class, which make a head without training: what the algorithms that begin
with such a head have in common."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft.compute.trainable import linear_head
from fedpeft.core.conversation import Ask, Check, Message
from fedpeft.core.outputs import FEATURES
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = "class_means"
SURE = 0.8
"""Of the largest probability that a class's own mean can have, what a new head gives it."""
SUMS, COUNTS = "sums", "counts"
MOST = 2**24
"""Examples of one class that a client can count: float32 holds no number above it and one more."""


def sums_layout(params: Tensors, head: str) -> Layout:
    """The layout of an answer: by class the sums, (classes, features), and the counts,
    (classes,)."""
    shape = list(params[linear_head(params, head, PHASE)].shape)
    return [(SUMS, shape, "float32"), (COUNTS, shape[:1], "float32")]


def ask_for_sums(state: State, round: Round, head: str) -> Ask:
    """The question to all clients for their sums and counts by class."""
    layout = sums_layout(state.params, head)
    return Ask(
        PHASE,
        round.messages(state, round.clients),
        lambda _: {PHASE: layout},
        check_sums(PHASE),
        _longest_mean,
        weight=count_examples(PHASE),
    )


def answer_with_sums(client: Any, message: Message, head: str) -> Message:
    """A client's message: by class the sum of its features and how many there are."""
    weight = linear_head(message.tensors["params"], head, PHASE)
    return Message({PHASE: sum_features(client, weight)})


def sum_features(client: Any, weight: str, products: str = "") -> dict[str, Tensor]:
    """By class the sums of the features of a client's examples, and their numbers.

    Args:
      weight: the name of the head's weight.
      products: under which name the sum of x·xᵀ, (features, features), comes too; empty for not.

    Raises:
      PlanError: its examples have no labels.
    """
    classes, features = client.received[weight].shape
    sums, counts = torch.zeros(classes, features), torch.zeros(classes)
    gram = torch.zeros(features, features, dtype=torch.float64)
    for x, label, mask in labelled_features(client, weight):
        sums.index_add_(0, label, x)
        counts.index_add_(0, label, mask)
        if products:
            gram += x.double().T @ x.double()
    both = {SUMS: sums, COUNTS: counts}
    return {**both, products: gram.float()} if products else both


def labelled_features(client: Any, weight: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batch by batch what comes into the head, (batch, features), with its labels and its mask,
    both (batch,); features that only fill up a batch are zero.

    Raises:
      PlanError: the examples have no labels.
    """
    for batch, outputs in client.outputs(weight.removesuffix(".weight")):
        if "label" not in batch:
            raise PlanError("class means are for examples with labels: leave them out")
        mask = batch["mask"].cpu()
        yield outputs[FEATURES].float().cpu() * mask[:, None], batch["label"].cpu(), mask


def check_sums(phase: str) -> Check:
    """The check that raises ValueError for sums of no examples that anyone could have."""

    def check(client: ClientId, message: Message) -> None:
        sums, counts = (message.tensors[phase][name] for name in (SUMS, COUNTS))
        if (counts < 0).any() or (counts != counts.round()).any():
            raise ValueError("its class counts are no numbers of examples")
        if (counts > MOST).any():
            raise ValueError(
                f"it counts {float(counts.max()):.4g} examples of a class, and a sum in float32 "
                f"counts {MOST:,} at most"
            )
        if sums[counts == 0].any():
            raise ValueError("it tells sums of classes of which it has no example")

    return check


def count_examples(phase: str) -> Callable[[Message], float]:
    """What a client's sums claim to count: how many examples they are of."""
    return lambda message: float(message.tensors[phase][COUNTS].double().sum())


def begin_head(
    params: Tensors,
    weight: str,
    rows: Tensor,
    means: Tensor,
    held: Tensor,
    length: float | None,
) -> dict[str, Tensor]:
    """The head's weight with rows in the directions of `rows`, (classes, features), and no bias;
    classes that nobody holds, not in `held` (classes,), keep theirs.

    Args:
      means: the classes' mean features, (classes, features).
      length: of each row; None for `fitting_length`.
    """
    rows = normalize(rows)
    rows = rows * (fitting_length(rows[held], means[held]) if length is None else length)
    bias = f"{weight.removesuffix('.weight')}.bias"
    begun = {weight: torch.where(held[:, None], rows.to(params[weight]), params[weight])}
    if bias in params:
        begun[bias] = torch.where(held, 0.0, params[bias])
    return begun


def fitting_length(rows: Tensor, means: Tensor) -> float:
    """How long a head's rows must be for its probabilities to mean something; `rows` are of length
    1.

    Rows of length 1 give nearly the same logits for all of many classes. Training then changes the
    features most where the head is already right, and loses what it began with. The length is the
    least of 2^(k/4) at which the head gives a class's own mean 0.8 of the largest probability, on
    average over the classes, that any length gives it. On 150 intents that is where the loss on
    held-out examples is least.
    """
    logits = means.double() @ rows.double().T
    if len(logits) < 2:
        return 1.0
    lengths: list[float] = [2.0 ** (k / 4) for k in range(-40, 81)]
    own = [float((length * logits).softmax(1).diagonal().mean()) for length in lengths]
    return next(length for length, p in zip(lengths, own, strict=True) if p >= SURE * max(own))


def check_row_length(length: float | None) -> None:
    """Raises ValueError for a value that is no length of a head's rows."""
    if length is not None and not 0 < length < float("inf"):
        raise ValueError(f"length must be positive and finite, got {length}")


def _longest_mean(message: Message) -> float:
    told: Mapping[str, Tensor] = message.tensors[PHASE]
    sums, counts = told[SUMS].double(), told[COUNTS].double()
    return float((sums / counts.clamp_min(1)[:, None]).norm(dim=1).max())
