"""A wheel of fedpeft as it is installed, which no index has."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import Distribution
from pathlib import Path
from shutil import copyfile
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from fedpeft.errors import RunError

OF_THE_INSTALLER = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Files of a package's description that pip adds, and that no wheel has."""
FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The time of all files, so that equal packages make equal wheels."""


def write_wheel(package: Distribution, folder: Path, given: Path | None = None) -> Path:
    """Write an installed package of Python alone as a wheel into `folder`.

    Args:
      given: a folder where its wheel may lie already; then that one is copied.

    Raises:
      RunError: the package runs from a checkout, so that its files are not the installed ones.
    """
    name = f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl"
    if given is not None and (given / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        copyfile(given / name, folder / name)
        return folder / name
    modules = _modules(package)
    if not any(path.endswith("/__init__.py") for path in modules):
        raise RunError(
            f"{package.name} runs from a checkout here: build its wheel and those that it needs, "
            "at the versions here (`python -m pip freeze --exclude-editable > pins.txt`, then "
            "`python -m pip wheel -c pins.txt -w FOLDER 'CHECKOUT[oneshot]'`), and say "
            "--wheels FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = []
    with ZipFile(folder / name, "w") as file:
        for path, content in sorted(modules.items()):
            digest = urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(content)}\n")
            _add(file, path, content)
        path = f"{package.name.replace('-', '_')}-{package.version}.dist-info/RECORD"
        _add(file, path, "".join([*record, f"{path},,\n"]).encode())
    return folder / name


def _modules(package: Distribution) -> dict[str, bytes]:
    """The package's files by their paths; not its scripts, which an installer makes anew."""
    found = {}
    for path in package.files or []:
        own = path.parts[0] != ".." and "__pycache__" not in path.parts
        added = path.parent.name.endswith(".dist-info") and path.name in OF_THE_INSTALLER
        place = Path(str(path.locate()))
        if own and not added and place.is_file():
            found[path.as_posix()] = place.read_bytes()
    return found


def _add(file: ZipFile, path: str, content: bytes) -> None:
    info = ZipInfo(path, FIRST_DAY)
    info.external_attr = 0o644 << 16
    info.compress_type = ZIP_DEFLATED
    file.writestr(info, content)
