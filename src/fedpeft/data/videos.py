"""Folders of videos, one folder a class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch

from fedpeft.core.types import Examples, Table
from fedpeft.data.class_folders import number_files, tell_folder
from fedpeft.data.clips import VIDEOS, UnreadableClip, VideoClip, read_clip
from fedpeft.data.folders import find_examples, find_sides
from fedpeft.data.metadata import find_metadata
from fedpeft.data.splits import check_fraction, check_subset, hold_out, some
from fedpeft.errors import DataError, say_count
from fedpeft.storage.locate import locate


@dataclass(frozen=True)
class Videos:
    """`path/train/<class>/...` and `path/test/<class>/...`, or `path/<class>/...` of which a part
    is held out, as of the source `images`.

    Gives `video`, `label`, and `file`, each video's path below `path`. Read are .mp4, .avi, .mkv,
    .webm, .mov and what else FFmpeg knows, animated pictures (.gif, .webp), and folders of two or
    more numbered pictures below a class, each of which is one clip. Other files, and those of which
    no frame can be decoded, are left out, and the log says how many of which kind.

    Attributes:
      path: the folder.
      test_fraction: how large that part is; 0 for none. Clips that were cut from one recording may
        then be on both sides: where there are such, make folders `train` and `test`.
      subset: at most so many training videos, drawn once, whatever the partition; 0 for all.
      seed: of the part that is held out and of the subset.

    Raises:
      ValueError: a value out of range.
      DataError: there is no such folder, it holds no videos in folders, a class has files but no
        videos, or a class is held out but not trained on.
    """

    path: str
    test_fraction: float = 0.2
    subset: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)
        check_subset(self.subset, "videos")

    def reads(self, place: Path) -> bool:
        """Whether a place is a folder of folders, and no table of videos."""
        return place.is_dir() and not find_metadata(place)

    def load(self) -> Examples:
        root = locate(self.path)
        if root is None or not root.is_dir():
            raise DataError(f"there is no folder {self.path!r} here or in $FEDPEFT_DATA")
        sides = find_sides(root, VIDEOS)
        found = find_examples(sides.train, VIDEOS)
        left_out = sides.left_out + found.left_out
        files = _readable(found.files, left_out)
        label = number_files(files, found.classes)
        if sides.test:
            apart = find_examples(sides.test, VIDEOS)
            left_out += apart.left_out
            held = _readable(apart.files, left_out)
        else:
            kept, out = hold_out(label, self.test_fraction, self.seed)
            held = [files[k] for k in out.tolist()]
            files = [files[k] for k in kept.tolist()]
        chosen = some(torch.arange(len(files)), self.subset, self.seed)
        files = [files[k] for k in chosen.tolist()]
        train, test = (_table(one, found.classes, root) for one in (files, held))
        tell_folder(
            found.classes, number_files(files, found.classes), left_out, root, VIDEOS.plural
        )
        return Examples(train, test, tuple(found.classes), dict(left_out))


def _readable(files: Sequence[tuple[str, Path]], left_out: Counter[str]) -> list[tuple[str, Path]]:
    """The videos of which a frame can be decoded; the others are counted, and the log names the
    first of each kind.

    Raises:
      DataError: none is left.
    """
    good, bad = [], dict[str, list[Path]]()
    for name, file in files:
        try:
            read_clip(file, 0)
            good.append((name, file))
        except UnreadableClip as error:
            bad.setdefault(str(error), []).append(file)
    for why, places in bad.items():
        left_out[why] += len(places)
        told = say_count(len(places), why)
        getLogger("fedpeft").warning("left out: %s, first %s", told, places[0])
    if files and not good:
        told = "; ".join(say_count(len(places), why) for why, places in bad.items())
        raise DataError(f"no video can be used: left out: {told}, first {files[0][1]}")
    return good


def _table(files: Sequence[tuple[str, Path]], classes: Sequence[str], root: Path) -> Table:
    names = [str(file.relative_to(root)) for _, file in files]
    clips = [VideoClip(file) for _, file in files]
    return Table({"label": number_files(files, classes), "video": clips, "file": names})
