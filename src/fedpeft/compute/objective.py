"""The loss as a function of the small tensors. The frozen base stays in the model, once, and is
never written to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.compute.further import losses_of
from fedpeft.compute.reference import with_base
from fedpeft.compute.trainable import head_of
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import OTHER, SHARE, Added, Task, Term
from fedpeft.core.outputs import CARRIED, LOSSES, Outputs, evaluation_mode
from fedpeft.core.tensors import add_prefix
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS_SCALE = 2.0**12
"""What a loss is multiplied by for the backward pass through float16, whose least number is 6e-8.
Smaller gradients would be lost (Micikevicius et al., 2018, arXiv:1710.03740, section 3.2). A power
of two costs no digits, and one that never changes leaves a job no trace of another; gradients of
activations beyond 65504 / 4096 = 16 overflow, which is seen."""


class ModelCall(nn.Module):
    """A function of a model and further arguments as a module's forward, which is what
    `functional_call` can call."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)


@dataclass(frozen=True)
class _Beside:
    """What a pass needs for the terms of the loss.

    Attributes:
      head: the module whose input they need.
      held: the outputs of the models that they compare with, as `<model>/<output>`, and what is
        shared with them.
    """

    head: str | None = None
    terms: Sequence[Term] = ()
    held: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """`LossFn` for one client after another: plain autograd, the small tensors swapped in for the
    call.

    Attributes:
      precision: of the pass; with bfloat16 and float16 the matrix products run in it, the small
        tensors and their gradients stay as they are.
      held: further tensors that are swapped in, and not trained.
      given: what the server shares with terms of the loss, as `<owner>/<name>`.
      micro_batch: examples whose gradient is taken at a time; 0 for all of a batch.
    """

    model: nn.Module
    task: Task
    precision: str = "float32"
    held: Tensors = field(default_factory=dict)
    micro_batch: int = 0
    given: Tensors = field(default_factory=dict)
    _outputs: ModelCall = field(init=False, repr=False, compare=False)
    _losses: ModelCall = field(init=False, repr=False, compare=False)
    _gradient: ModelCall = field(init=False, repr=False, compare=False)
    _buffers: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _aliases: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "_outputs", ModelCall(self.model, self.task.forward))
        set_(self, "_losses", ModelCall(self.model, self._given))
        set_(self, "_gradient", ModelCall(self.model, self._taken))
        set_(self, "_buffers", tuple(name for name, _ in self.model.named_buffers()))
        set_(self, "_aliases", _tied_names(self.model))

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        batch = self._with_base(batch)
        losses: Tensor = self._run(self._losses, params, batch, self._beside(params, batch, added))
        return losses

    def _with_base(self, batch: Batch) -> Batch:
        """The batch, with what the model that the run starts from makes of it, for tasks that
        compare with that."""
        with _autocast(self.precision, batch):
            return with_base(self.task, self.model, batch)

    def _beside(self, params: Tensors, batch: Batch, added: Added | None) -> _Beside:
        """What a pass needs for the terms of the loss."""
        if added is None:
            return _Beside()
        with _autocast(self.precision, batch):
            head = self._head(added)
            carried = {name: x for name, x in params.items() if _is_carried(name)}
            held = {**self.given, **carried, **self._compared(params, batch, added, head)}
            return _Beside(head, added.terms, held)

    def _given(self, model: nn.Module, batch: Batch, beside: _Beside) -> Tensor:
        """The losses of a call. A gradient of them may be taken after it, when the model has its
        own tensors again, so that nothing of them may be computed anew then."""
        with _autocast(self.precision, batch):
            return self._summed(model, batch, beside, whole=torch.is_grad_enabled()).float()

    def _taken(
        self, model: nn.Module, leaves: Tensors, batch: Batch, beside: _Beside, total: Tensor
    ) -> tuple[Sequence[Tensor | None], Tensor]:
        """The gradient of sum(mask * loss) / total, taken inside of the call, where what is
        computed anew on the backward pass finds the tensors that it was computed with."""
        with _autocast(self.precision, batch):
            losses = self._summed(model, batch, beside, whole=False).float()
        mean = (losses * batch["mask"]).sum() / total
        by = LOSS_SCALE if self.precision == "float16" else 1.0
        grads = torch.autograd.grad(mean * by, list(leaves.values()), allow_unused=True)
        return [g if g is None or by == 1 else g / by for g in grads], losses.detach()

    def _summed(self, model: nn.Module, batch: Batch, beside: _Beside, whole: bool) -> Tensor:
        """The task's losses and the terms, of one pass.

        Args:
          whole: whether all outputs are made, which a task may save where only losses are wanted.
        """
        head, terms, held = beside.head, beside.terms, beside.held
        if whole or terms:
            outputs = self.task.forward(model, batch, head)
        else:
            outputs = forward_losses(self.task)(model, batch)
        losses = losses_of(self.task, outputs, batch)
        if OTHER in batch:
            others = losses_of(self.task, outputs, {**batch, "label": batch[OTHER]})
            losses = torch.lerp(others, losses, batch[SHARE].to(losses))
        for term in terms:
            brought = getattr(term, "examples", None)
            if brought is None:
                losses = losses + term.weight * term.loss(outputs, batch, held)
            else:
                losses = losses + term.weight * self._brought(model, term, brought(held), held)
        return losses

    def _brought(self, model: nn.Module, term: Term, examples: Batch, held: Tensors) -> Tensor:
        """The value of a term on examples of its own, ()."""
        # dropout is drawn for the client's examples alone, so that others shift none of its draws
        with evaluation_mode(model):
            outputs = self.task.forward(model, examples, term.head)
        losses = losses_of(self.task, outputs, examples)
        return term.loss({**outputs, LOSSES: losses}, examples, held)

    def _head(self, added: Added) -> str | None:
        if added.head != "auto":
            return added.head
        head = head_of(self.model, key="the key `head` of the term in local.terms")
        if not head:
            raise PlanError(
                "the model has no head, and a term in local.terms needs what comes into one: leave "
                "the term out"
            )
        return head

    def _compared(self, params: Tensors, batch: Batch, added: Added, head: str | None) -> Tensors:
        """The outputs of the models that the terms compare with, as `<model>/<output>`."""
        # a model writes into the buffers that it is called with, and those of `params` are copies
        buffers = {name: params[name] for name in self._buffers if name in params}
        held: dict[str, Tensor] = {}
        with torch.no_grad(), evaluation_mode(self.model):
            for name, theirs in added.models.items():
                outputs = self._run(self._outputs, {**buffers, **theirs}, batch, head)
                held |= add_prefix(name, outputs)
        return held

    def _run(self, function: ModelCall, params: Tensors, *arguments: Any) -> Any:
        """Call a function of the model with the small tensors swapped in."""
        every = (*self.held.items(), *params.items())
        called = {f"model.{name}": x for name, x in every if not _is_carried(name)}
        for name, others in self._aliases.items():
            if name in params:
                called |= {f"model.{other}": params[name] for other in others}
        # what is tied is known; looking for it would walk through the whole model at each call
        return functional_call(function, called, arguments, tie_weights=False)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        """Gradient of sum(mask * loss) / sum(mask), the losses (batch,), and the buffers after the
        pass."""
        known = set(self._buffers)
        leaves = {n: x.detach().requires_grad_() for n, x in params.items() if n not in known}
        # BatchNorm writes into the buffers it is called with: into copies, so that a job leaves no
        # trace.
        every = {n: params[n] if n in params else self._buffer(n) for n in self._buffers}
        buffers = {n: x.detach().clone() for n, x in every.items()}
        called, total = {**leaves, **buffers}, batch["mask"].sum()
        found: list[Sequence[Tensor | None]] = []
        losses: list[Tensor] = []
        for part in map(self._with_base, self._parts(batch)):
            beside = self._beside(called, part, added)
            grads, each = self._run(self._gradient, called, leaves, part, beside, total)
            found.append(grads)
            losses.append(each)
        sums = [
            _sum_parts(x, one)
            for x, one in zip(leaves.values(), zip(*found, strict=True), strict=True)
        ]
        gradient = dict(zip(leaves, sums, strict=True))
        return gradient, torch.cat(losses), {n: x for n, x in buffers.items() if n in params}

    def _buffer(self, name: str) -> Tensor:
        """A buffer that is not trained: the client's, or else the model's."""
        return self.held[name] if name in self.held else self.model.get_buffer(name)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch as a whole, or so many examples of it at a time."""
        rows = len(batch["mask"])
        size = self.micro_batch or rows
        if rows <= size:
            yield batch
            return
        for at in range(0, rows, size):
            yield {name: x[at : at + size] for name, x in batch.items()}

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        """The gradient of each example's loss, (batch, *shape).

        One by one where the model decides by its input's values and so cannot be mapped over. Text
        models of `transformers` do: their mask code asks whether any token is padding, BERT's with
        eager attention too. That is
        tried at every call: a result does not depend on the calls before.
        """

        if getattr(self.task, "couples_examples", False):
            raise PlanError(
                f"{type(self.task).__name__} {Fact.COUPLES_EXAMPLES.value}, so that none has a "
                'gradient of its own: hide clients instead, with stages = ["client_dp"]'
            )

        def alone(params: Tensors, row: Batch) -> Tensor:
            return self(params, {name: x[None] for name, x in row.items()}, added).sum()

        try:
            # other kernels cannot be mapped; what stands still in this round may ask for a
            # gradient, and each step would hold on to the graph of the last
            with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                each: Tensors = vmap(grad(alone), in_dims=(None, 0), randomness="different")(
                    dict(params), dict(batch)
                )
        except RuntimeError:
            rows = (
                {name: x[k : k + 1] for name, x in batch.items()} for k in range(len(batch["mask"]))
            )
            found = [
                self.gradient(params, {**row, "mask": torch.ones_like(row["mask"])}, added)[0]
                for row in rows
            ]
            each = {name: torch.stack([gradient[name] for gradient in found]) for name in found[0]}
        return each


def _is_carried(name: str) -> bool:
    """Whether a tensor is a term's, which comes among the parameters for its gradient, and none of
    the model's."""
    return name.startswith(f"{CARRIED}/")


def _sum_parts(like: Tensor, parts: Sequence[Tensor | None]) -> Tensor:
    """The sum of a tensor's gradients; None is zero."""
    known = [part for part in parts if part is not None]
    if not known:
        return torch.zeros_like(like)
    total = known[0]
    for part in known[1:]:
        total = total + part
    return total


def forward_losses(task: Task) -> Callable[[nn.Module, Batch], Outputs]:
    """The task's pass where nothing but its losses and metrics is wanted."""
    own: Callable[[nn.Module, Batch], Outputs] | None = getattr(task, "forward_losses", None)
    return task.forward if own is None else own


def _tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The further names of each parameter that a model has under several, e.g. an embedding that is
    also the head."""
    first: dict[int, str] = {}
    others: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if name != known:
            others[known] = (*others.get(known, ()), name)
    return others


def _autocast(precision: str, batch: Batch) -> AbstractContextManager[object]:
    dtype = PRECISIONS[precision]
    if dtype is None:
        return nullcontext()
    return torch.autocast(batch["mask"].device.type, dtype)
