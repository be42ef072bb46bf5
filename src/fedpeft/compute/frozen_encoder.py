"""A frozen encoder before the only layers that are trained."""

from collections.abc import Collection

from torch import nn

from fedpeft.compute.batch_statistics import keep_in_evaluation
from fedpeft.compute.trainable import head_of, new_layers, within
from fedpeft.errors import PlanError


def still_encoder(model: nn.Module, trained: Collection[str], head: str = "auto") -> bool:
    """Where nothing but the head and new layers beside it is trained, keep all that has no trained
    tensor in evaluation mode; in place.

    The encoder then draws no dropout, whatever its configuration says: each example has the same
    features in every step, so that they need to be computed once only. Dropout there would be noise
    in the features of a model that does not change. Layers with trained tensors are as they were.

    Returns:
      Whether it is so.
    """
    try:
        last = head_of(model, head)
    except PlanError:
        return False
    new = {*new_layers(model).beside}
    if not trained or not all(name in new or within(name, last) for name in trained):
        return False
    for name, module in model.named_modules():
        if not any(within(one, name) for one in trained) and name:
            keep_in_evaluation(module)
    return True
