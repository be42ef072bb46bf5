"""Arrays by name in one file, .npz or HDF5."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedpeft.errors import DataError, explain_install

HDF5 = (".h5", ".hdf5")
ENDINGS = (".npz", *HDF5)
"""What the names of such files end in."""


@dataclass(frozen=True)
class HdfArrays(Mapping[str, Any]):
    """The arrays of an HDF5 file, of which one is read when it is asked for: files of features hold
    further ones, such as coordinates. Those in groups are called `group/name`."""

    path: Path
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        import h5py

        try:
            with h5py.File(self.path) as file:
                found = file[name]
                if h5py.check_string_dtype(found.dtype) is not None:
                    return np.asarray(found.asstr()[...], dtype=str)
                return found[...]
        except (OSError, RuntimeError) as error:  # a filter that is not installed, a torn file
            raise DataError(f"{self.path}: array {name!r} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read_arrays(path: Path) -> Mapping[str, Any]:
    """The arrays of a file by name. Nothing is unpickled.

    Raises:
      DataError: the file cannot be read, or what reads it is not installed.
    """
    return _read_hdf(path) if path.suffix.lower() in HDF5 else _read_npz(path)


def _read_hdf(path: Path) -> HdfArrays:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path} is HDF5, which h5py reads: {explain_install('hdf5')}") from None
    names: list[str] = []

    def note(name: str, held: Any) -> None:
        if isinstance(held, h5py.Dataset):
            names.append(name)

    try:
        with h5py.File(path) as file:
            file.visititems(note)
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5: {error}") from None
    return HdfArrays(path, tuple(names))


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise DataError(
                    f"{path} holds a single array; save inputs and labels together with numpy.savez"
                )
            return {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz without unpickling: {error}") from None
