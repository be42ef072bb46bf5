"""Pictures that are decoded when they are asked for, so that a set of large ones never lies in
memory decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError


@dataclass(frozen=True, eq=False)
class Pictures:
    """A sequence of PIL pictures, upright, over files or over a column of an Arrow table.

    Attributes:
      items: paths, or Arrow scalars: bytes, a path, or a struct of `bytes` and `path` as `datasets`
        keeps them.
      index: which of the items, in order.
      folder: what relative paths are relative to.
    """

    items: Any
    index: Sequence[int]
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: int) -> Any:
        place = self.index[at]
        item = self.items[place]
        return decoded(
            item.as_py() if hasattr(item, "as_py") else item, self.folder, f"number {place}"
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))


def decoded(item: Any, folder: Path, name: str) -> Any:
    """One picture, whole in memory and turned upright; 16-bit grey is brought to 8 bits.

    Raises:
      DataError: it cannot be read; `name`, or its file, is said.
    """
    from PIL import Image, ImageOps

    held = (
        item
        if isinstance(item, dict)
        else {"path" if isinstance(item, str | Path) else "bytes": item}
    )
    content, path = held.get("bytes"), held.get("path")
    where = str(folder / path) if path else f"picture {name}"
    if not content and not path:
        raise DataError(f"{where} is empty: leave it out, or put a picture there")
    try:
        with Image.open(BytesIO(content) if content else where) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
            return _eight_bits(picture) if picture.mode.startswith("I") else picture
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be read: {error}. Mend it or leave it out") from None


def _eight_bits(picture: Any) -> Any:
    """Grey of 16 bits; PIL's own conversion would cut off all above 255."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(
        (np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    )
