"""Masks, whose pixels number classes: how they are read, what they cost, and what is counted."""

from collections.abc import Mapping
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedpeft.core.types import Summed, Weighted
from fedpeft.errors import DataError
from fedpeft.tasks.scoring import SUM

UNCOUNTED = 255
"""The number of a pixel that does not count, as ADE20K, Cityscapes and Pascal VOC have it."""
IOU = f"{SUM}iou/"
NO_MASK = "masks that are missing or cannot be read"
NO_NUMBERS = "masks in colour, or of anything but whole numbers in one channel"
OTHER_SIZE = "masks of another size than their pictures"
OUT_OF_RANGE = "masks with numbers that no label has"
NOTHING = "masks of which no pixel counts"


def as_recorded(pictures: Any, row: int) -> Any:
    """One picture, or mask, of a column, before values of more than 8 bits are put into a window.

    Raises:
      DataError: it cannot be read.
    """
    return pictures.upright(row) if hasattr(pictures, "upright") else pictures[row]


def class_numbers(mask: Any) -> Any:
    """The numbers of one mask's classes, a NumPy array of whole numbers (height, width).

    A picture with a palette gives the numbers, and not the colours. One of black and white gives 0
    and 1.

    Args:
      mask: a picture as it is recorded, or a tensor (height, width).

    Raises:
      DataError: there is no mask, or it has several channels.
    """
    import numpy as np

    if mask is None:
        raise DataError("there is none")
    found = np.asarray(mask)
    if found.dtype == bool:
        found = found.astype(np.uint8)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"it is of the shape {found.shape} and holds {found.dtype}: save a PNG of one channel "
            "that holds the numbers of the labels"
        )
    return found


def picture_size(picture: Any) -> tuple[int, int]:
    """Height and width."""
    if isinstance(picture, Tensor):
        return int(picture.shape[-2]), int(picture.shape[-1])
    return picture.height, picture.width


def as_picture(picture: Any) -> Any:
    """A PIL picture; of a tensor uint8 (channels, height, width) one is made."""
    if not isinstance(picture, Tensor):
        return picture
    from PIL import Image

    grey = len(picture) == 1
    return Image.fromarray((picture[0] if grey else picture[:3].permute(1, 2, 0)).numpy())


def why_unfit(numbers: Any, size: tuple[int, int], classes: int) -> tuple[str, str]:
    """Why a mask cannot be learned from, and what was found; two empty texts if it can.

    Args:
      numbers: those of `class_numbers`.
      size: height and width of the picture.
    """
    if numbers.shape != size:
        (tall, wide), (high, broad) = numbers.shape, size
        return OTHER_SIZE, f"{wide} by {tall} pixels, and the picture has {broad} by {high}"
    counted = numbers[numbers != UNCOUNTED]
    if not counted.size:
        return NOTHING, f"all of its pixels are {UNCOUNTED}"
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        return OUT_OF_RANGE, (
            f"{wrong.size:,} pixels, such as {int(wrong[0])}; {classes} labels have the numbers 0 "
            f"to {classes - 1}, and {UNCOUNTED} does not count"
        )
    return "", ""


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of each picture's pixels, (batch,); 0 where none counts.

    Args:
      logits: (batch, pixels, classes).
      labels: (batch, pixels), negative where a pixel does not count.
    """
    each = cross_entropy(logits.float().mT, labels, reduction="none", ignore_index=-100)
    return each.sum(1) / (labels >= 0).sum(1).clamp_min(1)


def dice_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean over classes of (2 sum(p y) + 1) / (sum(p) + sum(y) + 1) for each picture, (batch,),
    of the probabilities p and the truth y, 0 or 1, of its counted pixels.

    The 1 keeps a class that is not there, and that nobody tells, at no loss. Arguments are those of
    `pixel_losses`.
    """
    counted = (labels >= 0)[..., None]
    told = logits.float().softmax(-1) * counted
    classes = torch.arange(logits.shape[-1], device=logits.device)
    true = (labels[..., None] == classes).to(told.dtype)
    both = (told * true).sum(1)
    return 1 - ((2 * both + 1) / (told.sum(1) + true.sum(1) + 1)).mean(1)


def count_overlaps(guess: Tensor, labels: Tensor, classes: int) -> dict[str, Summed]:
    """By class, of each picture the pixels that are told and true, and those that are either."""
    counted, found = labels >= 0, {}
    for k in range(classes):
        told, true = (guess == k) & counted, labels == k
        found[f"{IOU}{k}"] = Summed((told & true).sum(1), (told | true).sum(1))
    return found


def conclude_overlaps(sums: Mapping[str, Weighted]) -> dict[str, float]:
    """The metrics as numbers, with those that are made of the classes' sums.

    mean_iou  the mean of the classes' intersections over unions, without classes that no pixel has
              and that were never told
    dice      the mean of their 2|A and B| / (|A| + |B|), which is 2 IoU / (1 + IoU)
    """
    found = {name: one.value for name, one in sums.items() if not name.startswith(SUM)}
    seen = [one.value for name, one in sums.items() if name.startswith(IOU) and one.weight]
    each = {"mean_iou": seen, "dice": [2 * value / (1 + value) for value in seen]}
    means = {name: sum(of) / len(of) if of else nan for name, of in each.items()}
    return {**found, **means}
