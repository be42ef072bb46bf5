"""A SuperNode whose couriers begin at once.

Flower starts `flwr-clientapp` for each message, and that works two seconds until it has imported what it needs; on a
machine where they become thirty, Flower gives up. Here it is imported once. What Flower finds under that name hands its
arguments over to the process that has it, and ends; a fork of that process does the work.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from shutil import which
from typing import Any, NoReturn

from fedpeft.core.letters import listening, receive
from fedpeft.errors import RunError, WireError

COURIER = "flwr-clientapp"
PATIENCE = 10.0  # seconds for the arguments to come
LOOK = 0.5  # seconds between two looks at who has ended
HAND_OVER = """\
import json, os, socket, struct, sys
told = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}).encode()
with socket.socket(socket.AF_UNIX) as there:
    there.connect({path!r})
    there.sendall(struct.pack(">IQ", len(told), 0) + told)
"""
"""Nothing of fedpeft is imported: it is to take no time."""


def supernode(folder: Path, arguments: Sequence[str]) -> int:
    """Run `flower-supernode` for the worker in `folder` until it ends; its exit status.

    Raises:
      RunError: Flower is not installed, or the socket cannot be made.
    """
    work, command = _courier(), _beside("flower-supernode")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "couriers"
    try:
        server = listening(path)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error}; a shorter --out may help") from None
    with server:
        found = f"{_named(folder, path)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        process = subprocess.Popen(
            [command, *arguments, "--node-config", f'node="{folder}"'], env={**os.environ, "PATH": found}
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return _until_ended(process, server, work)
        finally:
            process.terminate()
            process.wait()


def _courier() -> Callable[[], object]:
    """What Flower's command does, with all that it imports, and what it imports of us."""
    try:
        [found] = entry_points(group="console_scripts", name=COURIER)
        work: Callable[[], object] = found.load()
        import fedpeft.engines.courier  # noqa: F401
    except (ImportError, ValueError):
        raise RunError("a SuperNode needs Flower: pip install 'fedpeft[flower]'") from None
    return work


def _beside(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else which(name)
    if found is None:
        raise RunError(f"Flower's command `{name}` is not there: pip install 'fedpeft[flower]'")
    return found


def _named(folder: Path, path: Path) -> Path:
    """A folder with a command of the courier's name, which hands over to the socket at `path`."""
    commands = folder / "bin"
    commands.mkdir(mode=0o700, exist_ok=True)
    script = commands / "hand_over.py"
    script.write_text(HAND_OVER.format(path=str(path)), encoding="utf-8")
    command = commands / COURIER
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n', encoding="utf-8")
    command.chmod(0o700)
    return commands


def _until_ended(process: "subprocess.Popen[bytes]", server: socket.socket, work: Callable[[], object]) -> int:
    couriers: set[int] = set()
    while process.poll() is None:
        if select.select([server], [], [], LOOK)[0]:
            connection, _ = server.accept()
            with connection, suppress(OSError, WireError):  # who is gone gets no courier
                connection.settimeout(PATIENCE)
                told = receive(connection).head
                couriers.add(os.fork() or _run(told, server, work))
        couriers = {pid for pid in couriers if os.waitpid(pid, os.WNOHANG)[0] == 0}
    return process.returncode


def _run(told: Mapping[str, Any], server: socket.socket, work: Callable[[], object]) -> NoReturn:
    """Be the courier, in a process of its own, and end with it."""
    code = 1
    try:
        server.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(told["environment"])
        os.chdir(told["folder"])
        sys.argv = [COURIER, *told["arguments"]]
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
