"""What a client sends are its weights, compressed, in place of their change (T-FedAvg; Xu et al.,
2020, arXiv:2003.03564)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.registry import part

OTHERS = {
    Fact.SENDS_LATER: "{other} {what}, which is a rest of changes, and weights sends weights: "
    "leave out one of them",
    Fact.CONTROL: "{other} {what}, and weights would round them as if they were weights: set "
    'local.correction to something else than "scaffold"',
}


@dataclass(frozen=True)
class Weights:
    """A change d from what the client received, θ, travels as C(θ + d) and decodes to
    C(θ + d) − θ. The server knows θ, since it sent it.

    So the mean of the changes leads to the mean of the clients' rounded weights, and what each C
    drops does not come later. A mean of three-valued weights has more values: `local = "fttq"` with
    `ends = "ternary"` trains clients to weights that C leaves as they are. Integers travel as their
    change.

    Where nothing was received (a forecast of bytes), what is sent is C of the tensors as they are.

    body = what the codec makes of the weights

    Attributes:
      codec: C.

    Raises:
      ValueError: the codec drops or mixes entries, which are no zeros in weights, or it reads what
        was sent, too.
    """

    codec: Codec = part("codec", "ternary")
    reads_sent: ClassVar[bool] = True
    forbids: ClassVar = OTHERS

    def __post_init__(self) -> None:
        if getattr(self.codec, "follows", False) or getattr(self.codec, "reads_sent", False):
            raise ValueError("weights wraps a codec that reads nothing else, such as ternary")
        if offered_by(self.codec) & {Fact.SPARSE, Fact.MIXES_ENTRIES}:
            raise ValueError(
                f"weights wraps a codec that keeps every entry, such as ternary: {self.codec} "
                "would make most weights zero"
            )

    @property
    def offers(self) -> frozenset[Fact]:
        """θ + d − θ is d up to rounding, so that no codec makes it exact."""
        return offered_by(self.codec) | {Fact.LOSSY}

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for weights that the codec cannot hold."""
        sent = how.held or {}
        return self.codec.encode(
            {name: _plus(x, sent.get(name)) for name, x in tensors.items()}, how
        )

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        sent = how.held or {}
        weights = self.codec.decode(blob, how)
        return {name: _less(name, x, sent.get(name)) for name, x in weights.items()}


def _plus(change: Tensor, sent: Tensor | None) -> Tensor:
    return change if sent is None or not change.is_floating_point() else sent + change


def _less(name: str, weights: Tensor, sent: Tensor | None) -> Tensor:
    if sent is None or not weights.is_floating_point():
        return weights
    if sent.shape != weights.shape:
        raise WireError(
            f"{name!r} came with the shape {tuple(weights.shape)}, and was sent with "
            f"{tuple(sent.shape)}"
        )
    return weights - sent
