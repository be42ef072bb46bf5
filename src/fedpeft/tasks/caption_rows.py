"""Rows of pictures and captions, of which either may be missing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.errors import DataError
from fedpeft.tasks import scoring
from fedpeft.tasks.pixels import ImageInput


def sides_of(table: Table, caption: str, task: str) -> tuple[Tensor, Tensor]:
    """Which rows have a picture, and which a caption.

    Raises:
      DataError: one of the columns is not there.
    """
    scoring.column(table, "image", task)
    scoring.column(table, caption, task)
    return has_picture(table), has_caption(table, caption)


def has_picture(table: Table) -> Tensor:
    """Which rows have a picture; none where there is no such column."""
    pictures = table.columns.get("image")
    if pictures is None:
        return torch.zeros(len(table), dtype=torch.bool)
    empty: Callable[[int], bool] | None = getattr(pictures, "is_missing", None)
    return torch.tensor([empty is None or not empty(k) for k in range(len(pictures))])


def has_caption(table: Table, name: str) -> Tensor:
    """Which rows have a caption that says something; none where there is no such column.

    Raises:
      DataError: the column holds something else than texts.
    """
    words = table.columns.get(name)
    if words is None:
        return torch.zeros(len(table), dtype=torch.bool)
    if wrong := next((x for x in words if x is not None and not isinstance(x, str)), None):
        raise DataError(
            f"the column {name!r} holds {wrong!r}, which is no caption: set task.caption to the "
            "column of captions"
        )
    return torch.tensor([bool(x and x.strip()) for x in words])


def read_pixels(table: Table, seen: Tensor, see: ImageInput) -> Tensor:
    """Pictures as the model sees them, uint8 (n, channels, height, width); black where there is
    none.

    Raises:
      DataError: a picture cannot be read.
    """
    pictures: Any = table.columns.get("image")
    size = len(seen), see.channels, see.height, see.width
    if isinstance(pictures, Tensor):
        return _fitted(pictures, see)
    made = torch.zeros(size, dtype=torch.uint8)
    for row in seen.nonzero()[:, 0].tolist():
        made[row] = _pixels(pictures[row], see)
    return made


def _pixels(picture: Any, see: ImageInput) -> Tensor:
    import numpy as np

    plain = see.fit(picture.convert("L" if see.channels == 1 else "RGB"))
    x = torch.from_numpy(np.array(plain))
    return x[None] if see.channels == 1 else x.permute(2, 0, 1)


def _fitted(pictures: Tensor, see: ImageInput) -> Tensor:
    """Pictures that are tensors already, at the model's size."""
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != see.channels:
        raise DataError(
            f"pictures are uint8 tensors of shape (n, {see.channels}, height, width), not "
            f"{str(pictures.dtype).removeprefix('torch.')} of shape {tuple(pictures.shape)}"
        )
    if pictures.shape[-2:] == (see.height, see.width) and see.plain:
        return pictures
    return (see.fit_tensor(pictures.float() / 255) * 255).round().to(torch.uint8)
