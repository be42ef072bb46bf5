"""Pictures that are decoded when they are asked for, so that a set of large ones never lies in
memory decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from logging import getLogger
from pathlib import Path
from typing import Any, Optional

from fedpeft.core.types import Table
from fedpeft.data.depth import Span, Window, in_window, is_deep, name_window, usual_window
from fedpeft.data.volumes import (
    MIDDLE,
    Slice,
    UnreadableVolume,
    choose_slice,
    open_volume,
    volume_format,
)
from fedpeft.errors import DataError

NAMED = 10
"""So many of the pictures that cannot be read are named in an error."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """A sequence of PIL pictures, upright and of 8 bits, over files or over a column of an Arrow
    table.

    Attributes:
      items: paths, or Arrow scalars: bytes, a path, a struct of `bytes` and `path` as `datasets`
        keeps them, or a list of one of these.
      index: which of the items, in order.
      folder: what relative paths are relative to.
      window: which values of pictures with more than 8 bits become black and white.
      remedy: what an error says about pictures that cannot be read.
      trained: the pictures that are trained on, where these are not; their values decide what the
        usual window is.
      others: pictures that an error looks at too, so that it names all that cannot be read.
      slice: which slice of medical files, where an item does not say so by its own "slice".
    """

    items: Any
    index: Sequence[int]
    folder: Path = Path()
    window: Window = None
    remedy: str = "Mend it or leave it out"
    trained: Optional["Pictures"] = None
    others: tuple["Pictures", ...] = ()
    slice: Slice = MIDDLE

    @cached_property
    def notes(self) -> dict[str, int]:
        """The window that was found, and of how many pictures; nothing before it is needed."""
        return {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: int) -> Any:
        picture = self.upright(at)
        if not is_deep(picture):
            return picture
        return in_window(picture, self.window, (0.0, 1.0) if self.window else self._span())

    def __iter__(self) -> Iterator[Any]:
        for at in range(len(self)):
            try:
                picture = self[at]
            except DataError as error:
                raise self._all_bad(error) from None
            yield picture

    def upright(self, at: int) -> Any:
        """One picture as it is recorded.

        Raises:
          DataError: it cannot be read.
        """
        name = f"number {self.index[at]}"
        return decode_picture(self._held(at), self.folder, name, self.remedy, self.slice)

    def source_of(self, at: int) -> Path | bytes:
        """What a picture holds, or where it lies."""
        held = self._held(at)
        return held.get("bytes") or Path(_place(self.folder, held["path"]))

    def number_at(self, at: int) -> int:
        """How many pictures an item holds: 0 of an empty one, more where it is a list."""
        return len([one for one in self._listed(at) if one])

    def is_missing(self, at: int) -> bool:
        """Whether a row has neither a picture's bytes nor a path to one."""
        held = self._held(at)
        return not held.get("bytes") and not held.get("path")

    def _listed(self, at: int) -> list[Any]:
        item = self.items[self.index[at]]
        plain = item.as_py() if hasattr(item, "as_py") else item
        return plain if isinstance(plain, list) else [plain]

    def _held(self, at: int) -> dict[str, Any]:
        several = self._listed(at)
        if len(several) > 1:
            raise DataError(
                f"picture number {self.index[at]} is a list of {len(several)}, and an example has "
                f"one. {self.remedy}"
            )
        plain = next(iter(several), None)
        if isinstance(plain, dict):
            return plain
        return {"path" if isinstance(plain, str | Path) else "bytes": plain}

    def _span(self) -> Span:
        """The window of the pictures that are trained on; where none of these is deep, of these."""
        span = self.trained.usual if self.trained else self.usual
        span = span or self.usual
        if span is None:
            raise DataError("no picture has more than 8 bits")
        return span

    @cached_property
    def usual(self) -> Span | None:
        """The window of all these pictures, of which the log tells once; None if none is deep."""
        which = "held-out pictures" if self.trained else "pictures to train on"
        found = usual_window(self._deep(), which)
        if found is None:
            return None
        span, count, told = found
        getLogger("fedpeft").warning(told)
        self.notes[name_window(span)] = count
        return span

    def _deep(self) -> Iterator[Any]:
        for at in range(len(self)):
            try:
                picture = self.upright(at)
            except DataError:  # told where it is needed
                continue
            if is_deep(picture):
                yield picture

    def unreadable(self) -> dict[int, str]:
        """By place in `index` why a picture cannot be read."""
        found = {}
        for at in range(len(self)):
            try:
                self.upright(at)
            except DataError as error:
                found[at] = str(error)
        return found

    def _all_bad(self, first: DataError) -> DataError:
        """One error for all pictures that cannot be read, here and among `others`."""
        reasons = [why for side in (self, *self.others) for why in side.unreadable().values()]
        if len(reasons) < 2:
            return first
        every = sum(map(len, (self, *self.others)))
        shown = [reason.removesuffix(f". {self.remedy}") for reason in reasons[:NAMED]]
        more = [f"and {len(reasons) - NAMED} more"] if len(reasons) > NAMED else []
        lines = "\n  ".join([*shown, *more])
        remedy = self.remedy.replace("Mend it or leave it out", "Mend them or leave them out")
        return DataError(f"{len(reasons)} of {every} pictures cannot be read:\n  {lines}\n{remedy}")


def pair(train: Pictures, test: Pictures, window: Window) -> tuple[Pictures, Pictures]:
    """Both sides of a data set, which share a window, and are named together in an error."""
    train, test = (replace(side, window=window) for side in (train, test))
    train = replace(train, others=(test,))
    return train, replace(test, trained=train)


def pair_tables(train: Table, test: Table, window: Window) -> tuple[Table, Table]:
    """Both sides' tables, with their pictures, if there are some, as a pair."""
    if not isinstance(train.columns.get("image"), Pictures):
        return train, test
    first, second = pair(train.columns["image"], test.columns["image"], window)
    return Table({**train.columns, "image": first}), Table({**test.columns, "image": second})


def decode_picture(
    held: dict[str, Any], folder: Path, name: str, remedy: str, chosen: Slice = MIDDLE
) -> Any:
    """One picture, whole in memory and turned upright.

    Args:
      held: its `bytes`, its `path`, or both, and the `slice` of a medical file where it is one of
        several examples.

    Raises:
      DataError: it cannot be read; `name`, or its file, is said.
    """
    from PIL import Image, ImageOps

    content, path = held.get("bytes"), held.get("path")
    where = _place(folder, path) if path else f"picture {name}"
    if not content and not path:
        raise DataError(f"{where} is empty: leave it out, or put a picture there")
    if kind := volume_format(str(path or ""), content):
        try:
            volume = open_volume(kind, content or Path(where))
            return volume.picture(choose_slice(held.get("slice", chosen), volume.count))
        except UnreadableVolume as error:
            raise DataError(f"{where} cannot be read, as one of {error}. {remedy}") from None
    try:
        with Image.open(BytesIO(content) if content else where) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read: {error}. {remedy}") from None


def _place(folder: Path, path: str | Path) -> str:
    """Where a picture lies. Tables that were written on Windows have backslashes in their paths."""
    place = folder / path
    if "\\" in str(path) and not place.exists():
        place = folder / str(path).replace("\\", "/")
    return str(place)
