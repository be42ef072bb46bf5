"""Frames of clips as a model sees them."""

from collections import Counter
from collections.abc import Iterable
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.moments import choose_frames
from fedpeft.errors import DataError
from fedpeft.tasks.pixels import ImageInput, with_channels

AT_A_TIME = 64
"""Clips that are brought to another size together."""


def clips_of(clips: Iterable[Any], wanted: int, see: ImageInput) -> Tensor:
    """So many frames of each clip, uint8 (n, frames, channels, height, width).

    Args:
      clips: see `data.clips.VideoClip`; lists of PIL pictures too.

    Raises:
      DataError: a clip cannot be read, or has no frame.
    """
    import numpy as np

    mode = "L" if see.channels == 1 else "RGB"
    made, short = [], Counter[bool]()
    for place, clip in enumerate(clips):
        frames = clip.frames(wanted) if hasattr(clip, "frames") else _chosen(clip, wanted, place)
        # a frame that is taken twice is the same object
        short[len({id(frame) for frame in frames}) < wanted] += 1
        pictures = [np.asarray(see.fit(frame.convert(mode))) for frame in frames]
        made.append(torch.from_numpy(np.stack(pictures)))
    _tell_short(short[True], sum(short.values()), wanted)
    stacked = torch.stack(made)
    return stacked[:, :, None] if mode == "L" else stacked.permute(0, 1, 4, 2, 3).contiguous()


def frames_fitted(video: Tensor, wanted: int, see: ImageInput) -> Tensor:
    """The same of clips that are one tensor already.

    Raises:
      DataError: it holds something else.
    """
    if video.dtype != torch.uint8 or video.ndim != 5 or not video.shape[1]:
        raise DataError(
            "videos are uint8 tensors of shape (n, frames, channels, height, width), not "
            f"{str(video.dtype).removeprefix('torch.')} of shape {tuple(video.shape)}"
        )
    total = video.shape[1]
    _tell_short(len(video) if total < wanted else 0, len(video), wanted)
    chosen = video[:, choose_frames(total, wanted)]
    fits = see.plain and chosen.shape[-2:] == (see.height, see.width)
    found = []
    for some in torch.split(chosen, AT_A_TIME):
        x = with_channels(some.flatten(0, 1), see.channels)
        if not fits:
            x = (see.fit_tensor(x.float() / 255) * 255).round().to(torch.uint8)
        found.append(x.reshape(*some.shape[:2], *x.shape[1:]))
    return torch.cat(found)


def _chosen(frames: Any, wanted: int, place: int) -> list[Any]:
    if not len(frames):
        raise DataError(f"clip {place} has no frame: leave it out")
    return [frames[k] for k in choose_frames(len(frames), wanted)]


def _tell_short(short: int, every: int, wanted: int) -> None:
    if short:
        getLogger("fedpeft").warning(
            "of %d clips, %d with fewer than %d frames: some of these are taken several times",
            every, short, wanted,
        )  # fmt: skip
