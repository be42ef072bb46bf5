"""One pass over held-out examples: the task's metrics as sums, and classes as counts."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fedpeft.compute.scores import add_scores, score_batches, scores_and_logits
from fedpeft.compute.tally import EXAMPLES, empty_tally, log_odds, tally_batch
from fedpeft.core.interfaces import Task
from fedpeft.core.tensors import add
from fedpeft.core.types import Batch, Tensors, Weighted
from fedpeft.errors import PlanError


@dataclass
class HeldOut:
    """What was measured.

    Attributes:
      totals: the task's metrics.
      tally: see `compute.tally`.
      scores: log-odds (n, classes) and labels (n,), batch by batch, where they are kept.
    """

    tally: Tensors
    totals: dict[str, Weighted] = field(default_factory=dict)
    scores: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def tells_classes(task: Any) -> bool:
    """Whether a task's outputs are logits (n, classes), and its batches have labels.

    A task says so by `tells_classes`; by `measures` it may name its metrics, and a server then
    expects just these of owners that measure.
    """
    return bool(getattr(task, "tells_classes", False))


def score_held_out(
    task: Task,
    model: nn.Module,
    params: Tensors,
    batches: Iterable[Batch],
    classes: int,
    reads: Collection[str] = (),
    keep_scores: bool = False,
) -> HeldOut:
    """Measure a model on batches of examples; it is not changed.

    Args:
      classes: how many there are; 0 for a task without, whose examples are counted alone.
      reads: what metrics read beside the confusion matrix; see `tally_layout`.
      keep_scores: whether each example's scores are kept, for exact metrics.

    Raises:
      PlanError: the model tells other classes.
      ArithmeticError: it gives scores that are no numbers.
    """
    found = HeldOut(empty_tally(classes, reads))
    if not classes:
        for batch, values in score_batches(task, model, params, batches):
            found.totals = add_scores(found.totals, values, batch["mask"])
            found.tally = {EXAMPLES: found.tally[EXAMPLES] + int((batch["mask"] > 0).sum())}
        return found
    for batch, (values, logits) in scores_and_logits(task, model, params, batches):
        _check_logits(logits, classes)
        mask = batch["mask"]
        found.totals = add_scores(found.totals, values, mask)
        found.tally = add(found.tally, tally_batch(logits, batch["label"], mask, reads))
        if keep_scores:
            counts = mask.cpu() > 0
            kept = log_odds(logits.cpu()[counts]), batch["label"].cpu()[counts]
            found.scores.append(kept)
    return found


def _check_logits(logits: Tensor, classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise PlanError(
            f"the model gives logits of shape {tuple(logits.shape)}, and there are {classes} "
            "classes: held-out examples cannot be counted by class"
        )
