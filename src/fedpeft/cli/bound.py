"""`python -m fedpeft.cli.bound ...` is `fedpeft ...`, ended when standard input closes: when who
started it is gone."""

import os
import sys
from threading import Thread


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_end_with_input, daemon=True).start()
    from fedpeft.cli.app import app

    sys.argv[0] = "fedpeft"
    app()
