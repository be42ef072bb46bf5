"""The loss as a function of the small tensors. The frozen base stays in the model, once, and is
never written to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.compute.reference import with_base
from fedpeft.compute.trainable import head_of
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import OTHER, SHARE, Added, Task, Term
from fedpeft.core.low_rank import EXACT, merge_exact
from fedpeft.core.outputs import LOGITS, Outputs, evaluation_mode
from fedpeft.core.tensors import add_prefix, take_prefix
from fedpeft.core.types import Batch, Summed, Tensors, Weighted
from fedpeft.errors import PlanError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS_SCALE = 2.0**12
"""What a loss is multiplied by on the way back through float16, whose least number is 6e-8: smaller
gradients would be lost (Micikevicius et al., 2018, arXiv:1710.03740, section 3.2). A power of two
costs no digits, and one that never changes leaves a job no trace of another; gradients of
activations beyond 65504 / 4096 = 16 overflow, which is seen."""


class _Pass(nn.Module):
    """A function of a model and further arguments as a module's forward, which is what
    `functional_call` can call."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)


@dataclass(frozen=True)
class Objective:
    """`LossFn` for one client after another: plain autograd, the small tensors swapped in for the
    call.

    Attributes:
      precision: of the pass; with bfloat16 and float16 the matrix products run in it, the small
        tensors and their gradients stay as they are.
      held: further tensors that are swapped in, and not trained.
    """

    model: nn.Module
    task: Task
    precision: str = "float32"
    held: Tensors = field(default_factory=dict)
    _outputs: _Pass = field(init=False, repr=False, compare=False)
    _losses: _Pass = field(init=False, repr=False, compare=False)
    _buffers: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _aliases: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "_outputs", _Pass(self.model, self.task.forward))
        set_(self, "_losses", _Pass(self.model, self._summed))
        set_(self, "_buffers", tuple(name for name, _ in self.model.named_buffers()))
        set_(self, "_aliases", _tied_names(self.model))

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        with _autocast(self.precision, batch):
            batch = with_base(self.task, self.model, batch)
            head = None if added is None else self._head(added)
            held = {} if added is None else self._compared(params, batch, added, head)
            terms = () if added is None else added.terms
            losses: Tensor = self._run(self._losses, params, batch, head, terms, held)
        return losses.float()

    def _summed(
        self, model: nn.Module, batch: Batch, head: str | None, terms: Sequence[Term], held: Tensors
    ) -> Tensor:
        """The task's losses and the terms, of one pass."""
        outputs = self.task.forward(model, batch, head)
        losses = self.task.losses(outputs, batch)
        if OTHER in batch:
            others = self.task.losses(outputs, {**batch, "label": batch[OTHER]})
            losses = torch.lerp(others, losses, batch[SHARE].to(losses))
        for term in terms:
            losses = losses + term.weight * term.loss(outputs, batch, held)
        return losses

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

    def _run(self, function: _Pass, params: Tensors, *arguments: Any) -> Any:
        """Call a function of the model with the small tensors swapped in."""
        called = {f"model.{name}": x for name, x in (*self.held.items(), *params.items())}
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
        every = {n: params[n] if n in params else self.model.get_buffer(n) for n in self._buffers}
        buffers = {n: x.detach().clone() for n, x in every.items()}
        losses = self({**leaves, **buffers}, batch, added)
        mean = (losses * batch["mask"]).sum() / batch["mask"].sum()
        by = LOSS_SCALE if self.precision == "float16" else 1.0
        grads = torch.autograd.grad(mean * by, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), grads, strict=True)
        gradient = {n: torch.zeros_like(x) if g is None else g for (n, x), g in pairs}
        if by != 1:
            gradient = {n: g / by for n, g in gradient.items()}
        return gradient, losses.detach(), {n: x for n, x in buffers.items() if n in params}

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


def evaluate(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> dict[str, Weighted]:
    """The task's metrics over the batches, as sums with weights; the model is not changed.

    Raises:
      ValueError: see `score_batches`.
    """
    sums: dict[str, Weighted] = {}
    for batch, values in score_batches(task, model, params, batches):
        sums = add_scores(sums, values, batch["mask"])
    return sums


def add_scores(
    sums: Mapping[str, Weighted], values: Mapping[str, Tensor | Summed], mask: Tensor
) -> dict[str, Weighted]:
    """Sums of metrics, with those of one more batch."""
    found = dict(sums)
    for name, value in values.items():
        each = value if isinstance(value, Summed) else Summed(value, torch.ones_like(mask))
        total, weight = (float((_wide(x) * mask).sum()) for x in (each.totals, each.weights))
        got = Weighted(total, weight, each.geometric)
        found[name] = found[name] + got if name in found else got
    return found


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def conclude(task: Task, sums: Mapping[str, Weighted]) -> dict[str, float]:
    """The metrics as numbers; some tasks make several sums into one (their method `conclude`)."""
    own: Callable[[Mapping[str, Weighted]], dict[str, float]] | None
    own = getattr(task, "conclude", None)
    return {name: one.value for name, one in sums.items()} if own is None else own(sums)


def score_batches(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Mapping[str, Tensor | Summed]]]:
    """Each batch with the task's metrics of each example; the model is not changed.

    Raises:
      ValueError: see `_each`.
    """
    yield from _each(task, model, params, batches, partial(_metrics, task))


def scores_and_logits(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, tuple[Mapping[str, Tensor | Summed], Tensor]]]:
    """The same with the logits, of a task that has some, of one pass.

    Raises:
      ValueError: see `_each`.
    """

    def both(model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor | Summed], Tensor]:
        outputs = task.forward(model, batch)
        return task.metrics(outputs, batch), outputs[LOGITS]

    yield from _each(task, model, params, batches, both)


def outputs_of(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch], head: str | None = None
) -> Iterator[tuple[Batch, Outputs]]:
    """Each batch with what the task's forward pass gives of it; the model is not changed.

    Where the task's outputs are large, a batch comes in parts.

    Raises:
      ValueError: see `_each`.
    """

    def forward(model: nn.Module, batch: Batch) -> Outputs:
        return task.forward(model, batch, head)

    chunks = getattr(task, "chunks", None)
    parts = batches if chunks is None else chain.from_iterable(map(chunks, batches))
    yield from _each(task, model, params, parts, forward)


def _metrics(task: Task, model: nn.Module, batch: Batch) -> Mapping[str, Tensor | Summed]:
    """The metrics of a batch, in parts where the task's outputs are large."""
    chunks = getattr(task, "chunks", None)
    if chunks is None:
        return task.metrics(task.forward(model, batch), batch)
    found = [task.metrics(task.forward(model, part), part) for part in chunks(batch)]
    return {name: _join_parts([one[name] for one in found]) for name in found[0]}


def _join_parts(values: Sequence[Tensor | Summed]) -> Tensor | Summed:
    """A metric of the parts of a batch, as one of the whole."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([x for x in values if isinstance(x, Tensor)])
    summed = [x for x in values if isinstance(x, Summed)]
    totals = torch.cat([one.totals for one in summed])
    return Summed(totals, torch.cat([one.weights for one in summed]), first.geometric)


def _each(
    task: Task,
    model: nn.Module,
    params: Tensors,
    batches: Iterable[Batch],
    function: Callable[[nn.Module, Batch], Any],
) -> Iterator[tuple[Batch, Any]]:
    """Each batch with what a function makes of it and of the model with the parameters swapped in.

    Of `params`, what the model does not have is passed over, so that a state's tensors will do as
    they are: SCAFFOLD's `c/<name>` are among them. What is to be added to frozen weights is.

    Raises:
      ValueError: the model has none of them.
    """
    measure = _Pass(model, function)
    own = {
        name
        for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    swapped = {**params, **merge_exact(model, take_prefix(EXACT, params))}
    called = {f"model.{name}": x for name, x in swapped.items() if name in own}
    if params and not called:
        raise ValueError(
            f"the model has none of the {len(params)} tensors, first {next(iter(params))!r}"
        )
    model.eval()
    for batch in batches:
        with torch.inference_mode():
            batch = with_base(task, model, batch, in_parts=True)
            values = functional_call(measure, called, (batch,))
        yield batch, values
