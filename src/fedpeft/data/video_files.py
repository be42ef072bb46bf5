"""Frames of video files by `av` (see `clips`, which imports this where such files are)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from fedpeft.core.moments import choose_frames
from fedpeft.data.clips import BROKEN, EMPTY, UnreadableClip


def read_frames(path: Path, wanted: int) -> tuple[Sequence[Any], int]:
    """See `clips.read_clip`.

    The frames are counted first, as a file need not tell how many it has. Then all up to the last
    that is wanted are decoded in their order: a jump into a file is exact in few formats.
    """
    total = _count(path)
    if not wanted:
        return list(_decoded(path, [0])[0].values()), total
    made, seen = _decoded(path, choose_frames(total, wanted))
    if seen < total and len(made) < len(set(choose_frames(total, wanted))):
        # a file that is cut off has fewer than it says
        total = seen
        made, _ = _decoded(path, choose_frames(total, wanted))
    return [made[place] for place in choose_frames(total, wanted)], total


def _count(path: Path) -> int:
    """The number of frames that a file has, before the place where it is cut off, if it is."""
    total = 0
    try:
        with av.open(str(path)) as file:
            if file.streams.video:
                for packet in file.demux(file.streams.video[0]):
                    total += packet.size > 0  # the last has nothing in it
    except (av.error.FFmpegError, OSError, ValueError):
        if not total:
            raise UnreadableClip(BROKEN) from None
    if not total:
        raise UnreadableClip(EMPTY)
    return total


def _decoded(path: Path, places: Sequence[int]) -> tuple[dict[int, Any], int]:
    """The frames at these places, as far as there are such, and how many were decoded.

    Raises:
      UnreadableClip: not even one can be.
    """
    made, seen, last = {}, 0, max(places)
    try:
        with av.open(str(path)) as file:
            for place, frame in enumerate(file.decode(file.streams.video[0])):
                seen = place + 1
                if place in places:
                    made[place] = _upright(frame)
                if place == last:
                    break
    except (av.error.FFmpegError, OSError, ValueError):  # what was decoded before is kept
        pass
    if not seen:
        raise UnreadableClip(BROKEN)
    return made, seen


def _upright(frame: Any) -> Any:
    """A frame as it is to be shown: phones record lying pictures, and say how to turn them."""
    turned = int(frame.rotation)
    picture = frame.to_image()
    return picture.rotate(turned, expand=True) if turned else picture
