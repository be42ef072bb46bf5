"""Flower's SuperNode as a process that ends whole, or not at all. A script, that imports nothing of
fedpeft.

Flower's SuperNode is several threads and a process of its own, which begins couriers. Each of them
may end for good while the others go on: the one that tells that it lives and the one that asks for
messages, where the SuperLink once answers with an error; the process, by a signal. Nobody hears of
such a node again, and no supervisor sees anything. Where Flower's command is meant to end, it
exits; where its loop failed, it returns.
"""

import os
import sys
import threading
import time
from importlib.metadata import entry_points

COMMAND = "flower-supernode"
BROKEN = 70  # the exit status where a part failed
LOOK = 1.0  # seconds between two looks at the processes above and below


def end_now(what: threading.ExceptHookArgs | None = None) -> None:
    """End at once, with all threads."""
    if what:
        threading.__excepthook__(what)
    sys.stdout.flush()
    sys.stderr.flush()
    # `sys.exit` would end the thread that calls it and nothing else.
    os._exit(BROKEN)


def watch(parent: int) -> None:
    """End with the process that began this one, and with the one that it began."""
    # Until Flower has begun its own process there is no child, and that is no failure.
    begun = False
    while os.getppid() == parent:
        try:
            # WNOWAIT leaves what has ended to Flower, which is to hear of it itself.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            if begun:
                break
        else:
            begun = True
            if ended:
                break
        time.sleep(LOOK)
    end_now()


def main(command: str) -> None:
    threading.excepthook = end_now
    if hasattr(os, "waitid"):
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
    sys.argv[0] = command
    [found] = entry_points(group="console_scripts", name=command)
    found.load()()
    end_now()


if __name__ == "__main__":
    main(COMMAND)
