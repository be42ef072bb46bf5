"""Which examples of a source are held out, and which are kept where only some are wanted."""

import re

import torch
from torch import Tensor

from fedpeft.core.seeds import generator
from fedpeft.errors import DataError

TRAIN = ("train", "training", "trainset")
TEST = ("test", "testing", "testset", "eval", "evaluation")
VALIDATION = ("validation", "valid", "val", "valset", "dev")
"""What people call the parts of a dataset."""
BESIDE = ("set", "data", "dataset", "split", "images", "imgs", "pictures", "seg", "")
"""Words that such a name may have beside."""


def split_named(name: str) -> str:
    """The split that a folder is called after, e.g. "train" for `Training` or `train_set`; "" if it
    is called otherwise."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word not in BESIDE]
    if len(words) != 1:
        return ""
    kinds = (("train", TRAIN), ("test", TEST), ("validation", VALIDATION))
    return next((split for split, known in kinds if words[0] in known), "")


def hold_out(label: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the examples to train on and of those held out, `fraction` of each class up to
    rounding; none is held out where it is 0.

    Raises:
      DataError: one of the two would be empty.
    """
    if not fraction:
        return torch.arange(len(label)), torch.arange(0)
    order = torch.randperm(len(label), generator=generator(seed, "held out"))
    order = order[label[order].sort(stable=True).indices]
    rank = torch.arange(len(label), dtype=torch.float64)
    out = ((rank + 1) * fraction).floor() > (rank * fraction).floor()
    if not out.any() or out.all():
        raise DataError(
            f"test_fraction = {fraction} of {len(label)} examples leaves nothing on one side: "
            "change it, or set it to 0 to hold out none"
        )
    return order[~out].sort().values, order[out].sort().values


def some(index: Tensor, at_most: int, seed: int) -> Tensor:
    """At most so many of the indices, drawn without replacement; all of them where `at_most` is
    0."""
    if not at_most or at_most >= len(index):
        return index
    chosen = torch.randperm(len(index), generator=generator(seed, "subset"))[:at_most]
    return index[chosen.sort().values]


def check_fraction(fraction: float) -> None:
    """Refuse a `test_fraction` that is no share, or holds out everything."""
    if not 0 <= fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {fraction}; 0 holds out none")


def check_subset(subset: int, what: str) -> None:
    """Refuse a `subset` below 0; `what` a source counts, in words."""
    if subset < 0:
        raise ValueError(f"subset is a number of {what}, 0 for all, got {subset}")
