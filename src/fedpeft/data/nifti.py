"""NIfTI volumes as pictures. Only what pixels need is read of the header (see `volumes`, which
imports this where such files are)."""

from collections.abc import Sequence
from dataclasses import dataclass
from gzip import decompress
from math import isfinite, prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from fedpeft.data.depth import WINDOW, as_deep
from fedpeft.data.volumes import UnreadableVolume, header_unquoted

BROKEN = "broken NIfTI files"
DEEPER = "NIfTI files of four dimensions or more"
OTHER = "NIfTI files of colours or complex numbers"
SECOND = 540
"""The length of a header of NIfTI-2, with which it begins."""


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """The slices of a volume, from below to above: axial ones, by the orientation that the file
    tells. A volume of one slice is that slice, whatever its direction.

    Pictures are as radiologists see them: the front, or the head, is at the top, and the right of
    the patient, or the front, at the left.

    Attributes:
      data: nibabel's array, of which slices are read by themselves.
      axes: of each axis of the data its direction (0 to the right, 1 to the front, 2 to the head),
        and 1 where it goes there, −1 where it goes the other way; nibabel's `io_orientation`.
      across: the axis that slices are taken across.
      window: what the file names for display, if anything.
    """

    data: Any
    axes: Sequence[tuple[int, int]]
    across: int
    window: tuple[float, float] | None

    @property
    def count(self) -> int:
        """The number of slices."""
        return int(self.data.shape[self.across])

    def picture(self, at: int) -> Any:
        """One slice: of unscaled bytes as they are, else integers or floats, which may not be
        finite.

        Raises:
          UnreadableVolume: it cannot be read.
        """
        place = at if self.axes[self.across][1] > 0 else self.count - 1 - at
        index: list[Any] = [slice(None)] * 3
        index[self.across] = place
        # of further axes there is one place alone
        index += [0] * (self.data.ndim - 3)
        with header_unquoted():
            try:
                values = np.asarray(self.data[tuple(index)])
            except Exception:  # a file that is cut off, however it is compressed
                raise UnreadableVolume(BROKEN) from None
        plain = self._upright(values)
        if plain.dtype == np.uint8:
            return Image.fromarray(np.ascontiguousarray(plain))
        picture = Image.fromarray(as_deep(plain))
        picture.info[WINDOW] = self.window
        return picture

    def _upright(self, values: Any) -> Any:
        """The two axes of a slice as rows and columns."""
        left = [axis for axis in range(3) if axis != self.across]
        for place, axis in enumerate(left):
            if self.axes[axis][1] < 0:
                values = np.flip(values, place)
        # the axis that goes to the head, or else to the front, is that of the rows
        if self.axes[left[0]][0] < self.axes[left[1]][0]:
            values = values.T
        return values[::-1, ::-1]


def open_nifti(source: Path | bytes) -> NiftiFile:
    """Read a header; values are read later.

    Raises:
      UnreadableVolume: why no picture can be made of it.
    """
    with header_unquoted():
        try:
            return _open(source)
        except UnreadableVolume:
            raise
        except Exception:  # whatever a broken header makes nibabel raise
            raise UnreadableVolume(BROKEN) from None


def _open(source: Path | bytes) -> NiftiFile:
    image: Any = _of_bytes(source) if isinstance(source, bytes) else nibabel.load(source)
    data, header = image.dataobj, image.header
    shape, kind = tuple(data.shape), header.get_data_dtype()
    if prod(shape[3:]) != 1:
        raise UnreadableVolume(DEEPER)
    if kind.kind not in "iuf":
        raise UnreadableVolume(OTHER)
    if isinstance(source, Path):
        _check_length(source, int(data.offset) + prod(shape) * kind.itemsize)
    if len(shape) < 3:
        data = np.asarray(data).reshape((*shape, 1, 1)[:3])
    axes = _directions(image.affine)
    low, high = float(header["cal_min"]), float(header["cal_max"])
    window = (low, high) if low < high else None
    return NiftiFile(data, axes, _axis_across(data.shape, axes), window)


def _check_length(file: Path, stored: int) -> None:
    """Raises UnreadableVolume for a file that is cut off. What is compressed tells of its end when
    it is read."""
    if file.suffix.lower() == ".nii" and file.stat().st_size < stored:
        raise UnreadableVolume(BROKEN)


def _directions(affine: Any) -> list[tuple[int, int]]:
    """Of each axis its direction and its sense; an axis without a length in space, as a single
    slice may have, has the direction that is left."""
    told = nibabel.io_orientation(affine).tolist()
    free = sorted({0, 1, 2} - {axis[0] for axis in told})
    known = [axis if isfinite(axis[0]) else (free.pop(), 1) for axis in told]
    return [(int(direction), int(sense)) for direction, sense in known]


def _axis_across(shape: Sequence[int], axes: Sequence[tuple[int, int]]) -> int:
    """The axis that slices are taken across: one of a single place, or that to the head."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    head = next(axis for axis in range(3) if axes[axis][0] == 2)
    return single[-1] if single else head


def _of_bytes(content: bytes) -> Any:
    """The image that a table holds as bytes."""
    plain = decompress(content) if content[:2] == b"\x1f\x8b" else content
    lengths = {int.from_bytes(plain[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti2Image if SECOND in lengths else nibabel.Nifti1Image
    return kind.from_bytes(plain)
