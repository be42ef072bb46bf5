"""Which files a base model is made of, by SHA-256, and of which revision of the hub they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from fedpeft.storage.locate import locate

CONFIGS = ("config.json", "model_index.json", "unet/config.json")
"""The files by which a model is found in the hub's cache: of `transformers`, and of `diffusers`."""
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Kinds of weights, the first that is there being the one that is loaded."""


@dataclass(frozen=True)
class ListedFile:
    """A file by its content.

    Attributes:
      path: from the folder on, with "/".
      size: in bytes.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base model as they lie here.

    Attributes:
      revision: the hub's name of the version; "" where the files are in no hub's cache.
      from_hub: whether the model's name is one of the hub's, and no folder here.
      files: configuration and weights; none where they cannot be found.
    """

    revision: str
    from_hub: bool
    files: Sequence[ListedFile]


def list_base_files(name: str, weights: bool = True) -> BaseFiles:
    """The files of the model `name`: a path, one of the package's own, or a name of the hub's.

    Args:
      weights: whether the weights were used, and not the configuration alone.
    """
    place = find_base(name)
    if place is None:
        return BaseFiles("", "/" in name, ())
    if locate(name) is not None:
        return BaseFiles("", False, _listed(place, weights))
    return BaseFiles(place.name, True, _listed(place, weights))


def find_base(name: str) -> Path | None:
    """Where the model `name` lies on this machine: a folder, a file, or a version in the hub's
    cache; None where it does not."""
    return locate(name) or (_in_cache(name) if name else None)


def list_file(path: Path, folder: Path) -> ListedFile:
    """A file of a folder; the hub's cache calls large ones by their SHA-256, so that gigabytes need
    not be read."""
    target = path.resolve()
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", target.name):
        digest = target.name
    else:
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    return ListedFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _listed(place: Path, weights: bool) -> list[ListedFile]:
    if place.is_file():
        return [list_file(place, place.parent)]
    every = sorted(path for path in place.rglob("*") if path.is_file())
    chosen = [path for path in every if path.name in ("config.json", "model_index.json")]
    kinds = [kind for kind in WEIGHTS if any(path.suffix == kind for path in every)]
    if weights and kinds:
        chosen += [path for path in every if path.suffix == kinds[0]]
    return [list_file(path, place) for path in sorted(chosen)]


def _in_cache(name: str) -> Path | None:
    """The folder of the version that the hub's cache has; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for config in CONFIGS:
        try:
            found = try_to_load_from_cache(name, config)
        except HFValidationError:  # no name of the hub's
            return None
        if isinstance(found, str):
            return Path(found).parents[config.count("/")]
    return None
