"""The loss of many clients at once: `torch.func.vmap` over their small tensors, one pass through
the frozen base.

A step under `vmap` asks for a gradient; the rule for that runs outside of it, on the stacks: a
mapped forward pass and one plain backward pass of the sum over clients, in which the gradients stay
apart. Two functions have rules of their own: attention, for which `vmap` would go through the
clients one by one, and dropout, whose randomness is each client's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vmap
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fedpeft.compute.objective import LOSS_SCALE, Objective
from fedpeft.core.interfaces import Added, Term
from fedpeft.core.types import Batch, Tensors

Client = TypeVar("Client")
PARAMS, BATCH = "params", "batch"


@dataclass(frozen=True)
class Draws:
    """What dropout is drawn from.

    Attributes:
      generators: one a client, on the device of its tensors.
      rows: examples of each client's batch; what follows them is padding, for which nothing is
        drawn.
      padded: rows of each batch with its padding.
    """

    generators: Sequence[torch.Generator]
    rows: Sequence[int]
    padded: int

    def kept(self, shape: torch.Size, like: Tensor, p: float) -> Tensor:
        """For tensors of shape (clients, rows, ...): 0 with probability p, else 1 / (1 - p).

        Raises:
          RuntimeError: rows are not the first dimension, so that padding cannot be told.
        """
        noise = torch.ones(shape, dtype=like.dtype, device=like.device)
        if min(self.rows) < self.padded and (len(shape) < 2 or shape[1] != self.padded):
            raise RuntimeError(
                f"dropout on a tensor of shape {tuple(shape[1:])}, whose rows are no examples"
            )
        for one, generator, rows in zip(noise, self.generators, self.rows, strict=True):
            (one[:rows] if rows < self.padded else one).bernoulli_(1 - p, generator=generator)
        return noise.div_(1 - p) if p < 1 else noise


@dataclass(frozen=True)
class StackedObjective:
    """`LossFn` inside a `vmap` over clients; the base is that of `one`."""

    one: Objective
    draws: Draws

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        with _PerClient(self.draws):
            return self.one(params, batch, added)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        """It gives what `Objective.gradient` gives; no buffers travel."""
        terms, models = ((), {}) if added is None else (added.terms, added.models)
        groups: Mapping[str, Tensors] = {PARAMS: params, BATCH: batch, **models}
        names = tuple((group, tuple(tensors)) for group, tensors in groups.items())
        tensors = [x for group in groups.values() for x in group.values()]
        *grads, losses = _Gradient.apply(self, terms, names, *tensors)  # type: ignore[no-untyped-call]
        return dict(zip(params, grads, strict=True)), losses, {}

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        """Raises RuntimeError: who takes gradients example by example trains alone."""
        raise RuntimeError("gradients example by example have no rule for stacks")

    def stacked(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Sequence[Tensor], Tensor]:
        """The gradients, in the order of `params`, and the losses (clients, rows), of stacks
        outside of a `vmap`."""

        def losses(mine: Tensors, rows: Batch, models: Mapping[str, Tensors]) -> Tensor:
            own = None if added is None else Added(added.terms, models)
            return self({**buffers, **mine}, rows, own)

        leaves = {name: x.detach().requires_grad_() for name, x in params.items()}
        # copies, as some models count in their buffers: the base is never written to
        held = self.one.held
        buffers = {n: held.get(n, x).clone() for n, x in self.one.model.named_buffers()}
        with torch.enable_grad():
            models = {} if added is None else added.models
            each = vmap(losses, randomness="error")(leaves, batch, models)
            means = (each * batch["mask"]).sum(1) / batch["mask"].sum(1)
            by = LOSS_SCALE if self.one.precision == "float16" else 1.0
            grads = torch.autograd.grad(means.sum() * by, list(leaves.values()), allow_unused=True)
        whole = [
            torch.zeros_like(x) if g is None else g
            for x, g in zip(leaves.values(), grads, strict=True)
        ]
        return [g / by for g in whole] if by != 1 else whole, each.detach()


def _stack(x: Tensor, dim: int | None, clients: int) -> Tensor:
    """What `vmap` holds, with the clients first."""
    return x.expand(clients, *x.shape) if dim is None else x.movedim(dim, 0)


def _common(*_: Any) -> Any:
    raise RuntimeError("something without a client's part in it needs a rule for stacks")


class _Gradient(Function):
    """The arguments are the objective, the terms of its loss, the names of all tensors by group,
    and the tensors in this order."""

    forward = staticmethod(_common)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        dims: Sequence[int | None],
        objective: StackedObjective,
        terms: tuple[Term, ...],
        names: Sequence[tuple[str, Sequence[str]]],
        *tensors: Tensor,
    ) -> tuple[Any, Any]:
        pairs = zip(tensors, dims[3:], strict=True)
        stacks = iter([_stack(x, dim, info.batch_size) for x, dim in pairs])
        groups = {group: {name: next(stacks) for name in inside} for group, inside in names}
        params, batch = groups.pop(PARAMS), groups.pop(BATCH)
        added = Added(terms, groups) if terms else None
        grads, losses = objective.stacked(params, batch, added)
        return (*grads, losses), (0,) * (len(params) + 1)


class Divided(Exception):
    """Python asks for a number that is not the same for all clients, so they cannot go on together.

    Attributes:
      answers: each client's, as text.
    """

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__("the clients of a stack go different ways")
        self.answers = list(map(str, answers))  # as text even what is no number equals itself

    def parts(self, clients: Sequence[Client]) -> list[list[Client]]:
        """The clients that go the same way."""
        pairs = list(zip(clients, self.answers, strict=True))
        return [
            [one for one, answer in pairs if answer == way] for way in sorted(set(self.answers))
        ]


ANSWERS: Mapping[Any, Callable[[Any], Any]] = {Tensor.__bool__: bool, Tensor.item: lambda x: x}
"""What Python asks of a tensor, e.g. whether a batch of texts needs an attention mask."""


def _answer(x: Tensor) -> Any:
    """The number that a tensor of one entry holds for every client.

    Raises:
      Divided: there is more than one.
    """
    said: list[Any] = []
    _Answer.apply(x, said.extend)  # type: ignore[no-untyped-call]
    if len(set(map(str, said))) > 1:
        raise Divided(said)
    return said[0]


class _Answer(Function):
    """Tells each client's number."""

    @staticmethod
    def forward(x: Tensor, tell: Callable[[list[Any]], None]) -> Tensor:
        tell([x.item()])
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, dims: Sequence[int | None], x: Tensor, tell: Callable[[list[Any]], None]
    ) -> tuple[Tensor, int | None]:
        tell(_stack(x, dims[0], info.batch_size).flatten().tolist())
        return x, dims[0]


class _PerClient(TorchFunctionMode):
    """Attention, dropout and questions by the rules here."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(
        self, function: Any, _: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is dropout:
            return self._dropout(*args, **kwargs)
        if function in ANSWERS:
            return ANSWERS[function](_answer(args[0]))
        return function(*args, **kwargs)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        kept: Tensor = _Dropout.apply(x, p, self.draws) if training and p else x  # type: ignore[no-untyped-call]
        return kept

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        **how: Any,
    ) -> Tensor:
        if not dropout_p:
            out: Tensor = _Attention.apply(q, k, v, attn_mask, tuple(how.items()))  # type: ignore[no-untyped-call]
            return out
        scale = how.pop("scale", None)
        if any(how.values()):
            raise RuntimeError(
                f"attention with dropout and {', '.join(how)} has no rule for stacks"
            )
        weight = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            weight = weight.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            weight = weight + attn_mask
        return self._dropout(weight.softmax(-1), dropout_p) @ v


class _Dropout(Function):
    """x times what `Draws` gives: the same as dropout in a client's own stream."""

    forward = staticmethod(_common)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, dims: Sequence[int | None], x: Tensor, p: float, draws: Draws
    ) -> tuple[Tensor, int]:
        x = _stack(x, dims[0], info.batch_size)
        return x * draws.kept(x.shape, x, p), 0


class _Attention(Function):
    """The clients' batches as one: (clients, batch, ...) becomes (clients · batch, ...)."""

    forward = staticmethod(_common)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        dims: Sequence[int | None],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        how: tuple[tuple[str, Any], ...],
    ) -> tuple[Tensor, int]:
        clients = info.batch_size
        q, k, v = (_stack(x, dim, clients) for x, dim in zip((q, k, v), dims, strict=False))
        if mask is not None:
            mask = _stack(mask, dims[3], clients)
            mask = mask[(slice(None), *[None] * (q.ndim - mask.ndim))]
            mask = mask.expand(clients, q.shape[1], *mask.shape[2:]).flatten(0, 1)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, **dict(how))
        return out.view(clients, -1, *out.shape[1:]), 0
