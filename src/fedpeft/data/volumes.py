"""Pictures of medical formats, DICOM and NIfTI, which may have several slices or frames.

Of a file's header nothing is kept but what its pixels need. It holds names, numbers and dates of
people, and the libraries quote it in their warnings and errors: these are neither shown nor passed
on. Files are left out for the reasons named here, which say nothing of what a header holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from warnings import catch_warnings, simplefilter

from fedpeft.errors import PlanError, explain_install
from fedpeft.registry import import_target

Slice: TypeAlias = str | int
MIDDLE, EVERY = "middle", "all"
FORMATS: Mapping[str, str] = {".dcm": "dicom", ".dicom": "dicom", ".nii": "nifti"}
"""By the end of a file's name, in small letters and without `.gz`."""
LIBRARIES: Mapping[str, str] = {"dicom": "pydicom", "nifti": "nibabel"}
READERS: Mapping[str, str] = {
    "dicom": "fedpeft.data.dicom:open_dicom",
    "nifti": "fedpeft.data.nifti:open_nifti",
}
MAGIC_AT, MAGIC = 128, b"DICM"
"""Where a DICOM file says what it is."""


class Volume(Protocol):
    """A file with `count` slices, each of which is a PIL picture."""

    @property
    def count(self) -> int: ...
    def picture(self, at: int) -> Any: ...


class UnreadableVolume(Exception):
    """A file of a medical format that is no picture, or a broken one. Its words follow a number:
    they say which files it is one of."""


def check_slice(chosen: Slice) -> None:
    """Raises ValueError for a value that chooses no slice."""
    if isinstance(chosen, str) and chosen not in (MIDDLE, EVERY):
        raise ValueError(
            f'slice is "{MIDDLE}", "{EVERY}" or the number of a slice from 0, got {chosen!r}'
        )
    if isinstance(chosen, int) and chosen < 0:
        raise ValueError(f"slice is counted from 0, got {chosen}")


def volume_format(name: str, content: bytes | None = None) -> str:
    """The key of `LIBRARIES` for a file, by its name or how it begins; "" for other pictures."""
    small = name.lower()
    if small.endswith(".gz"):
        return FORMATS.get(Path(small[:-3]).suffix, "") if ".nii" in small else ""
    found = FORMATS.get(Path(small).suffix, "")
    if not found and content and content[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC:
        return "dicom"
    return found


def open_volume(kind: str, source: Path | bytes) -> Volume:
    """A file's slices; what is decoded is decoded when a slice is asked for.

    Args:
      kind: a key of `LIBRARIES`.
      source: where the file lies, or what it holds.

    Raises:
      UnreadableVolume: why no picture can be made of it.
      PlanError: the library that reads it is not installed.
    """
    try:
        import_module(LIBRARIES[kind])
    except ImportError:
        raise PlanError(
            f"the data have files of the format {kind}, which {LIBRARIES[kind]} reads: "
            f"{explain_install('medical')}. Or take these files away"
        ) from None
    volume: Volume = import_target(READERS[kind])(source)
    return volume


def choose_slice(chosen: Slice, count: int) -> int:
    """The place of a slice among so many: of an even number the middle one is the later.

    Raises:
      UnreadableVolume: there is no such slice.
    """
    if isinstance(chosen, str):
        return count // 2
    if chosen >= count:
        raise UnreadableVolume(f"files with no slice {chosen} (data.slice)")
    return chosen


@contextmanager
def header_unquoted() -> Iterator[None]:
    """Inside, the libraries neither warn nor log: they would quote what a header holds."""
    loggers = [getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global")]
    before = [one.disabled for one in loggers]
    try:
        for one in loggers:
            one.disabled = True
        with catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        for one, was in zip(loggers, before, strict=True):
            one.disabled = was
