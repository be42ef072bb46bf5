"""The nouns every other module speaks in. Nothing here does any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fedpeft.core.secrets import Secret

Tensors: TypeAlias = Mapping[str, Tensor]
"""Named tensors: a model's trainable part, a delta of it, an optimizer's memory. Never mutated in
place."""

Batch: TypeAlias = Mapping[str, Tensor]
"""Model inputs and `label`, plus `mask` of shape (batch,): 1.0 for an example that counts, 0.0 for
padding."""

Carry: TypeAlias = Mapping[str, Tensors]
"""What local training hands from step to step: groups of named tensors, e.g. `params`, `optimizer`,
`totals`."""

ClientId: TypeAlias = str


@dataclass(frozen=True)
class Weighted:
    """A mean that knows how much it stands for, so that means of means are right.

    Attributes:
      total: the sum over examples.
      weight: the number of examples summed, or of what they consist of, e.g. tokens.
      geometric: whether the totals are logarithms and the mean is a geometric one, as a perplexity
        is.
    """

    total: float
    weight: float
    geometric: bool = False

    @property
    def value(self) -> float:
        mean = self.total / self.weight if self.weight else float("nan")
        # `math.exp` raises an error where this gives infinity, as the perplexity of a diverged
        # model is.
        return float(torch.tensor(mean, dtype=torch.float64).exp()) if self.geometric else mean

    def __add__(self, other: "Weighted") -> "Weighted":
        if self.geometric != other.geometric:
            raise ValueError("a geometric mean and an arithmetic one have no mean")
        return Weighted(self.total + other.total, self.weight + other.weight, self.geometric)


@dataclass(frozen=True)
class Summed:
    """A metric of a batch in which examples count by what they consist of: a loss by the token,
    say.

    Attributes:
      totals: of each example the sum over its parts, (batch,).
      weights: the number of these parts, (batch,).
      geometric: see `Weighted`.
    """

    totals: Tensor
    weights: Tensor
    geometric: bool = False


@dataclass(frozen=True)
class Context:
    """Where and when a client trains.

    Attributes:
      size: the client's number of training examples.
      steps: optimizer steps in this round.
      seed: the root of this (round, client)'s random streams.
      secret: the same for noise and Poisson draws, in private plans; the server does not know it.
      budget: what share of its usual entries a sparse codec keeps; see `core.views.View`.
    """

    run: str
    round: int
    rounds: int
    client: ClientId
    size: int
    steps: int
    seed: int
    secret: "Secret | None" = None
    budget: float = 1.0


@dataclass(frozen=True)
class Update:
    """What one client, or the cohort once reduced, says to the server.

    Attributes:
      delta: trained minus received, under the received names.
      weight: how much it counts in a weighted mean; the cohort's sum once reduced.
      exact: of the cohort, by layer what frozen weights change by past the server optimizer, as
        `<layer>.left` and `<layer>.right`; see `core.low_rank`.
      error: of the cohort, how far its merged factors are from the mean of the clients' products.
      told: further plain values that ride on the update, by name, such as "class_counts".
    """

    client: ClientId
    delta: Tensors
    weight: float = 1.0
    metrics: Mapping[str, Weighted] = field(default_factory=dict)
    exact: Tensors = field(default_factory=dict)
    error: float | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """All of the server that survives a round. Saving it is a checkpoint; passing it back is a
    resume.

    Attributes:
      round: the number of rounds done.
      params: the method's tensors, which clients train.
      shared: by owner what clients receive beside them, e.g. "exact" or SCAFFOLD's "c".
      memory: by owner what the server keeps to itself, e.g. the moments of the "server" optimizer.
      accepted: for each client the last round whose reply was counted.
      norms: lengths of the last updates that were let in, by which others are judged.
      weights: what the last updates that were let in counted.
      refusals: how many updates of each client were refused, where any were.
    """

    round: int
    params: Tensors
    shared: Mapping[str, Tensors] = field(default_factory=dict)
    memory: Mapping[str, Tensors] = field(default_factory=dict)
    accepted: Mapping[ClientId, int] = field(default_factory=dict)
    norms: tuple[float, ...] = ()
    refusals: Mapping[ClientId, int] = field(default_factory=dict)
    weights: tuple[float, ...] = ()

    @property
    def flat(self) -> dict[str, Tensor]:
        """All that clients receive: shared tensors as `<owner>/<name>` beside the parameters."""
        shared = {f"{owner}/{n}": x for owner, some in self.shared.items() for n, x in some.items()}
        return {**self.params, **shared}


@dataclass(frozen=True)
class Cohort:
    """The clients that were asked and those that answered, for stages and server optimizers.

    Attributes:
      secret: what the server's noise is drawn from, in private plans.
    """

    round: int
    population: int
    planned: int
    weights: Mapping[ClientId, float]
    seed: int
    secret: "Secret | None" = None


@dataclass(frozen=True)
class Event:
    """What one participation of a client in a round gives away: `times` Gaussian mechanisms.

    Attributes:
      unit: whose presence is hidden: one "example", or one "client" with all it has.
      noise_multiplier: the noise's standard deviation by the most that one unit changes; None until
        it is calibrated.
      rate: the probability with which a unit is drawn each time, hidden and independently; 1 for
        always.
      central: whether the server adds the noise, to the mean of what came.
      accounted: False for noise that comes with no guarantee.
    """

    unit: str
    noise_multiplier: float | None
    rate: float = 1.0
    times: int = 1
    central: bool = False
    accounted: bool = True


@dataclass(frozen=True)
class Job:
    """One message to one client. Only bytes and plain values, so any engine can carry it.

    Attributes:
      accepted: the last round whose reply by this client was counted; memory newer than that is
        void.
      step: the number of the message in its round, from 0.
    """

    run: str
    round: int
    client: ClientId
    phase: str
    seed: int
    accepted: int | None
    payload: bytes
    step: int = 0


@dataclass(frozen=True)
class Reply:
    client: ClientId
    payload: bytes


@dataclass(frozen=True)
class Failure:
    """Why a message has no reply.

    Attributes:
      answered: whether the client itself says so. It is asked the round's other questions then; one
        from which nothing came is not, as each of them would wait for it.
    """

    client: ClientId
    reason: str
    answered: bool = False


@dataclass(frozen=True)
class Table:
    """Columns of equal length, as a source reads them: tensors, or sequences of text or
    pictures."""

    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def labels(self) -> Tensor | None:
        """The number of each example's class, int64 (n,); None where examples have no class, though
        a column may be called `label`."""
        found = self.columns.get("label")
        is_class = isinstance(found, Tensor) and not found.is_floating_point()
        return found if is_class else None

    @property
    def notes(self) -> dict[str, int]:
        """What columns that are decoded when they are asked for have met so far, counted."""
        columns = self.columns.values()
        return {what: n for x in columns for what, n in getattr(x, "notes", {}).items()}

    def take(self, rows: Tensor) -> "Table":
        """These rows (k,), as the source gave them."""
        numbers = rows.tolist()
        return Table(
            {
                name: x[rows] if isinstance(x, Tensor) else [x[k] for k in numbers]
                for name, x in self.columns.items()
            }
        )


@dataclass(frozen=True)
class Examples:
    """A dataset as a source gives it.

    Attributes:
      train, test: both with a `label` column, an int64 tensor (n,), or both without.
      classes: what the labels are called; empty where there are none.
      left_out: by reason, in words, how much of what lies there is left out.
    """

    train: Table
    test: Table
    classes: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Division:
    """Training examples cut into clients.

    Attributes:
      parts: by client the indices (k,) of its examples, ascending; no example is in two parts.
      notes: what the partition did beside cutting, counted, e.g. `moved` examples.
      apart: by client the indices of training examples that it holds out; they are in no part.
      tested: by client the indices of its own examples among the common held-out ones.
    """

    parts: Mapping[ClientId, Tensor]
    notes: Mapping[str, int] = field(default_factory=dict)
    apart: Mapping[ClientId, Tensor] = field(default_factory=dict)
    tested: Mapping[ClientId, Tensor] = field(default_factory=dict)
