"""BatchNorm in a model of which only a part is trained: its statistics change with each training
batch, whether or not they travel."""

from collections.abc import Collection
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpeft.compute.trainable import STATISTICS


def freeze_statistics(model: nn.Module, trained: Collection[str]) -> list[str]:
    """Keep each BatchNorm in evaluation mode whose statistics are not among what is trained; in
    place.

    It then computes with the statistics of its pre-training, on every client alike and for each
    example alone.

    Returns:
      The names of those whose statistics go on changing.
    """
    moving = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.running_mean is None or f"{name}.{STATISTICS[0]}" in trained:
            moving.append(name)
            continue
        keep_in_evaluation(module)
    return moving


def keep_in_evaluation(module: nn.Module) -> None:
    """Let a module and those in it be in evaluation mode from now on, whatever its model is in."""
    module.eval()
    module.__dict__["train"] = partial(_stay, module)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """A module's `train` that leaves it in evaluation mode."""
    return module
