"""Clips: files of which so many frames become one example. What is in a file is decoded when it is
asked for.

Animated pictures and folders of numbered pictures are read by Pillow; videos by `av`, which brings
its own FFmpeg.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fedpeft.core.moments import choose_frames
from fedpeft.data.folders import FileKind, is_of_the_system
from fedpeft.data.frame_folders import RepeatedNumbers, find_frames, read_pictures
from fedpeft.errors import DataError, PlanError, explain_install
from fedpeft.registry import import_target

ANIMATED = (".gif", ".webp", ".apng")
"""Pictures of several frames, by the ends of their names."""
FILMED = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"),
    ".3gp",
)
LIBRARY, READER = "av", "fedpeft.data.video_files:read_frames"
BROKEN = "videos that cannot be read"
EMPTY = "videos without a frame"
REPEATED = "folders of frames in which a number comes twice"


class UnreadableClip(Exception):
    """A file that is no video, or a broken one. Its words follow a number: they say which files it
    is one of."""


def is_clip(name: str) -> bool:
    """Whether a file is a video or an animated picture, by its name."""
    return not is_of_the_system(name) and Path(name).suffix.lower() in ANIMATED + FILMED


def frames_in(folder: Path) -> Sequence[Path]:
    """The files of a folder that are one clip's frames; none where the folder is no clip."""
    return find_frames(folder, ANIMATED + FILMED)


VIDEOS = FileKind("videos", is_clip, "fedpeft", ".mp4", frames_in)


@dataclass(frozen=True)
class VideoClip:
    """A file with frames, or a folder of them."""

    path: Path

    def frames(self, wanted: int) -> Sequence[Any]:
        """So many frames as PIL pictures, upright, in the order of time.

        Raises:
          DataError: the file cannot be read.
          PlanError: the library that reads it is not installed.
        """
        try:
            return read_clip(self.path, wanted)[0]
        except UnreadableClip as error:
            raise DataError(
                f"{self.path} cannot be read, as one of {error}: mend it, or take it away"
            ) from None

    def __str__(self) -> str:
        return str(self.path)


def read_clip(path: Path, wanted: int) -> tuple[Sequence[Any], int]:
    """So many frames of a clip as PIL pictures, and the number of its frames.

    Args:
      wanted: how many; 0 for the first alone, which tells whether the file can be read.

    Raises:
      UnreadableClip: why there are none.
      PlanError: the library that reads it is not installed.
    """
    if path.is_dir():
        return _read_folder(path, wanted)
    if path.suffix.lower() in ANIMATED:
        return _read_animated(path, wanted)
    try:
        import_module(LIBRARY)
    except ImportError:
        raise PlanError(
            f"the data have videos, which {LIBRARY} reads: {explain_install('video')}. Or make "
            "animated pictures of them (.gif, .webp)"
        ) from None
    found: tuple[Sequence[Any], int] = import_target(READER)(path, wanted)
    return found


def _read_folder(path: Path, wanted: int) -> tuple[Sequence[Any], int]:
    from PIL import Image

    files = frames_in(path)
    if not files:
        raise UnreadableClip(EMPTY)
    try:
        return read_pictures(files, wanted)
    except RepeatedNumbers:
        raise UnreadableClip(REPEATED) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UnreadableClip(BROKEN) from None


def _read_animated(path: Path, wanted: int) -> tuple[Sequence[Any], int]:
    from PIL import Image

    try:
        with Image.open(path) as file:
            total = getattr(file, "n_frames", 1)
            places = choose_frames(total, wanted) if wanted else [0]
            made = {}
            for place in sorted(set(places)):
                file.seek(place)
                made[place] = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise UnreadableClip(BROKEN) from None
    return [made[place] for place in places], total
