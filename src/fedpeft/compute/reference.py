"""What the model that a run starts from makes of a batch, for tasks whose loss compares with it.

Nobody writes to a site's model: the small tensors are swapped in for each call. Called as it
stands, it is the model that the run starts from, in every round and on every machine: the base,
since what a method adds computes nothing at first. So a reference model costs a pass, and no
memory.
"""

from typing import Any

import torch
from torch import nn

from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.types import Batch

BASE = "base"


def with_base(task: Any, model: nn.Module, batch: Batch, in_parts: bool = False) -> Batch:
    """The batch, with the outputs of the model as it stands that the task names in
    `compares_with_base`, as `base/<output>`; where it names none, the batch as it is.

    They come without gradients, and without dropout.

    Args:
      in_parts: whether the batch goes through the model in the task's `chunks`.
    """
    names = getattr(task, "compares_with_base", ())
    if not names:
        return batch
    chunks = getattr(task, "chunks", None) if in_parts else None
    parts = [batch] if chunks is None else chunks(batch)
    with torch.no_grad(), evaluation_mode(model):
        found = [task.forward(model, part) for part in parts]
    whole = {f"{BASE}/{name}": torch.cat([one[name] for one in found]) for name in names}
    return {**batch, **whole}
