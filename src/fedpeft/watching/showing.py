"""What a server of pages shows: runs, or a node, as they are when a browser asks."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from fedpeft.deploy.status import read_status
from fedpeft.watching.node_page import show_node
from fedpeft.watching.run_page import show_runs
from fedpeft.watching.serving import Render
from fedpeft.watching.views import RunView, look


def pages_of_runs(folder: Path) -> Render:
    """The pages of the runs at or below `folder`; what has not changed is not read again."""
    lock = Lock()
    seen: Mapping[str, RunView] = {}

    def render(path: str) -> str | None:
        nonlocal seen
        with lock:  # several tabs may ask at once
            seen = now = look(folder, seen)
        return show_runs(now, path)

    return render


def pages_of_node(folder: Path) -> Render:
    """The page of the node in `folder`."""
    return lambda path: show_node(read_status(folder), path)
