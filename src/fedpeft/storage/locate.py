"""Where named data and models lie."""

import os
from importlib.resources import files
from pathlib import Path


def locate(name: str) -> Path | None:
    """The file or folder `name`: as a path, below $FEDPEFT_DATA, or among the package's own; else
    None."""
    data = os.environ.get("FEDPEFT_DATA")
    roots = [
        Path(),
        *([Path(data).expanduser()] if data else []),
        Path(str(files("fedpeft"))) / "assets",
    ]
    paths = ((root / Path(name).expanduser()).resolve() for root in roots if name)
    return next((path for path in paths if path.exists()), None)
