"""A SuperNode whose couriers begin at once, and that begins again where it breaks.

Flower starts `flwr-clientapp` for each message, and that works two seconds until it has imported what it needs; on a
machine where they become thirty, Flower gives up. Here it is imported once. What Flower finds under that name hands its
arguments over to the process that has it, and ends; a fork of that process does the work.

Flower's SuperNode tells that it lives from one thread and asks for messages from another. Each ends for good when the
SuperLink once answers with an error, as it does while its disk is full: the process stays, and nobody hears of it any
more. For the answer of a courier that was killed before it had taken its message it waits for ever. In each of these
cases it is ended here, and begun again.
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
from math import inf
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NoReturn

from fedpeft.core.letters import listening, receive
from fedpeft.errors import RunError, WireError

COURIER, SUPERNODE = "flwr-clientapp", "flower-supernode"
BROKEN = 70  # the exit status of a SuperNode of which a part failed
PAUSE, LONGEST = 1.0, 30.0  # seconds until it is begun again, twice as long each time; that long lived, from the start
PATIENCE = 10.0  # seconds for the arguments to come
LOST = 90.0  # seconds after a courier failed in which another must come; Flower needs up to 60 to notice by itself
LOOK = 0.5  # seconds between two looks at who has ended
HAND_OVER = """\
import json, os, socket, struct, sys
told = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}).encode()
with socket.socket(socket.AF_UNIX) as there:
    there.connect({path!r})
    there.sendall(struct.pack(">IQ", len(told), 0) + told)
"""
"""Nothing of fedpeft is imported: it is to take no time."""
ENDS_WHOLE = """\
import os, sys, threading
from importlib.metadata import entry_points
def broken(what=None):
    if what:
        threading.__excepthook__(what)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit({broken})
threading.excepthook = broken
[command] = entry_points(group="console_scripts", name={name!r})
command.load()()
broken()
"""
"""Where Flower's command ends as it should, it exits; it returns where its loop failed, as other threads go on."""


def supernode(folder: Path, arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `flower-supernode` for the worker in `folder` until it ends as it should; its exit status.

    `say` is told when it begins again.

    Raises:
      RunError: Flower is not installed, or the socket cannot be made.
    """
    work = _courier()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "couriers"
    try:
        server = listening(path)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error}; a shorter --out may help") from None
    with server:
        commands = _named(folder, path)
        environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        command = [sys.executable, str(commands / SUPERNODE), *arguments, "--node-config", f'node="{folder}"']
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

        def once() -> int:
            process = subprocess.Popen(command, env=environment)
            try:
                return _until_ended(process, server, work)
            finally:
                process.terminate()
                process.wait()

        return again_while_broken(once, say)


def again_while_broken(
    once: Callable[[], int],
    say: Callable[[str], None],
    clock: Callable[[], float] = monotonic,
    wait: Callable[[float], object] = sleep,
) -> int:
    """Begin again what broke or was killed, and from then on what fails in any way; else its exit status.

    What fails at first is told to who began it: an address or a key may be wrong. Later ones wait for the SuperLink.
    """
    pause, broke = PAUSE, False
    while True:
        began = clock()
        code = once()
        broke = broke or code == BROKEN or code < 0
        if not (broke and code):
            return code
        pause = PAUSE if clock() - began > LONGEST else pause
        say(f"the SuperNode broke (status {code}); it begins again in {pause:g} s")
        wait(pause)
        pause = min(2 * pause, LONGEST)


def _courier() -> Callable[[], object]:
    """What Flower's command does, with all that it imports, and what it imports of us."""
    try:
        [found] = entry_points(group="console_scripts", name=COURIER)
        work: Callable[[], object] = found.load()
        import fedpeft.engines.courier  # noqa: F401
    except (ImportError, ValueError):
        raise RunError("a SuperNode needs Flower: pip install 'fedpeft[flower]'") from None
    return work


def _named(folder: Path, path: Path) -> Path:
    """A folder with what a SuperNode runs, and a command of the courier's name that hands over to the socket `path`."""
    commands = folder / "bin"
    commands.mkdir(mode=0o700, exist_ok=True)
    script = commands / "hand_over.py"
    script.write_text(HAND_OVER.format(path=str(path)), encoding="utf-8")
    command = commands / COURIER
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n', encoding="utf-8")
    command.chmod(0o700)
    (commands / SUPERNODE).write_text(ENDS_WHOLE.format(broken=BROKEN, name=SUPERNODE), encoding="utf-8")
    return commands


def _until_ended(process: "subprocess.Popen[bytes]", server: socket.socket, work: Callable[[], object]) -> int:
    couriers, lost = set[int](), inf
    while process.poll() is None:
        if select.select([server], [], [], LOOK)[0]:
            connection, _ = server.accept()
            with connection, suppress(OSError, WireError):  # who is gone gets no courier
                connection.settimeout(PATIENCE)
                told = receive(connection).head
                couriers.add(os.fork() or _run(told, server, work))
                lost = inf
        ended = dict(pid_and_status for pid in couriers if (pid_and_status := os.waitpid(pid, os.WNOHANG))[0])
        couriers -= ended.keys()
        lost = monotonic() if any(ended.values()) else lost
        if monotonic() - lost > LOST:
            return BROKEN
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
