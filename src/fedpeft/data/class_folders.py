"""Files in folders called like their classes: their labels, and what the log says of them."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.errors import DataError, say_count, unknown


def number_files(files: Sequence[tuple[str, Path]], classes: Sequence[str]) -> Tensor:
    """The number of each file's class.

    Args:
      files: class and file.

    Raises:
      DataError: a class has files here, and none to train on.
    """
    number = {name: k for k, name in enumerate(classes)}
    for name, file in files:
        if name not in number:
            raise DataError(
                f"{file} is held out, and nothing is trained on: " + unknown("class", name, classes)
            )
    return torch.tensor([number[name] for name, _ in files], dtype=torch.int64)


def tell_folder(
    classes: Sequence[str], label: Tensor, left_out: Mapping[str, int], root: Path, plural: str
) -> None:
    """Say what is left out, and what looks wrong.

    Args:
      plural: what the examples are called.
    """
    log = getLogger("fedpeft").warning
    if left_out:
        log("%s: left out: %s", root, "; ".join(say_count(n, what) for what, n in left_out.items()))
    counts = torch.bincount(label, minlength=len(classes)).tolist()
    none = [name for name, count in zip(classes, counts, strict=True) if not count]
    if none:
        log("%s: there are no %s to train on of the class %s", root, plural, ", ".join(none))
    if len(classes) - len(none) == 1:
        log("%s: all %s are of one class, so that there is nothing to tell apart", root, plural)
