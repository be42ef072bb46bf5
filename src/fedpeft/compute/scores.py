"""What a model's outputs on held-out batches come to: metrics, and the outputs themselves."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpeft.compute.further import by_place, metrics_of
from fedpeft.compute.objective import ModelCall, forward_losses
from fedpeft.compute.reference import with_base
from fedpeft.core.interfaces import Task
from fedpeft.core.low_rank import EXACT, merge_exact
from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.tensors import take_prefix
from fedpeft.core.types import Batch, Summed, Tensors, Weighted


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
    """The metrics as numbers; some tasks make several sums into one (their method `conclude`).
    Those of further logits are called "accuracy at block 3"."""
    own: Callable[[Mapping[str, Weighted]], dict[str, float]] | None
    own = getattr(task, "conclude", None)
    found: dict[str, float] = {}
    for place, some in by_place(sums).items():
        values = {name: one.value for name, one in some.items()} if own is None else own(some)
        found |= {f"{name} at {place}" if place else name: x for name, x in values.items()}
    return found


def score_batches(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Mapping[str, Tensor | Summed]]]:
    """Each batch with the task's metrics of each example; the model is not changed.

    Of a task whose metrics compare examples it is one batch of them all.

    Raises:
      ValueError: see `_each`.
    """
    if getattr(task, "compares_examples", False):
        yield from _score_together(task, model, params, batches)
        return
    yield from _each(task, model, params, batches, partial(_metrics, task))


def _score_together(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Mapping[str, Tensor | Summed]]]:
    """All batches as one, whose outputs are made batch by batch; nothing of none."""
    pairs = list(_each(task, model, params, batches, forward_measured(task)))
    if not pairs:
        return
    batch = _join_columns([one for one, _ in pairs])
    outputs = _join_columns([made for _, made in pairs])
    with torch.inference_mode():
        values = metrics_of(task, outputs, batch)
    yield batch, values


def _join_columns(parts: Sequence[Tensors]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def scores_and_logits(
    task: Task, model: nn.Module, params: Tensors, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, tuple[Mapping[str, Tensor | Summed], Tensor]]]:
    """The same with the logits, of a task that has some, of one pass.

    Raises:
      ValueError: see `_each`.
    """

    def both(model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor | Summed], Tensor]:
        outputs = task.forward(model, batch)
        return metrics_of(task, outputs, batch), outputs[LOGITS]

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
    chunks, forward = getattr(task, "chunks", None), forward_measured(task)
    if chunks is None:
        return metrics_of(task, forward(model, batch), batch)
    found = [metrics_of(task, forward(model, part), part) for part in chunks(batch)]
    return {name: _join_parts([one[name] for one in found]) for name in found[0]}


def forward_measured(task: Task) -> Callable[[nn.Module, Batch], Outputs]:
    """The task's pass over held-out examples."""
    own: Callable[[nn.Module, Batch], Outputs] | None = getattr(task, "forward_measured", None)
    return forward_losses(task) if own is None else own


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
    measure = ModelCall(model, function)
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
