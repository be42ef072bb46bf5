"""A SuperNode whose couriers begin at once, and that begins again where it breaks.

Flower starts `flwr-clientapp` for each message, and that works two seconds until it has imported
what it needs; on a machine where they become thirty, Flower gives up. Here it is imported once.
What Flower finds under that name hands its arguments over to the process that has it, and ends; a
fork of that process does the work.

What breaks in Flower's SuperNode ends it whole (`flower_supernode.py`). For the answer of a courier
that was killed before it had taken its message it waits for ever, which is seen here. In each of
these cases it is begun again.
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
from time import monotonic, sleep, time
from typing import Any, NoReturn

from fedpeft.deploy import flower_supernode
from fedpeft.errors import RunError, WireError, explain_install
from fedpeft.wire.sockets import listen, receive

COURIER = "flwr-clientapp"
# Seconds until it is begun again, twice as long each time; from the start, once it lived that long.
PAUSE, LONGEST = 1.0, 30.0
ALIVE = "alive"
"""In the worker's folder, a file that is touched as long as the SuperNode is looked after."""
FORGET = 75.0  # seconds after which the SuperLink takes a node for gone that has not said so
PATIENCE = 10.0  # seconds for the arguments to come
# Seconds after a courier failed in which another must come; Flower needs up to 60 to notice itself.
LOST = 90.0
PORT = 9094
"""Where a SuperNode listens for its own processes, if nothing is said."""
NOT_LET_IN = (  # status 1 is Flower's for whatever went wrong
    "the SuperNode ended at its start; its own message stands above. Where it says "
    "that no connection came about, the SuperLink may not know the key: "
    "`flwr supernode register KEY.pub FEDERATION` on the server's machine registers it. "
    "`fedpeft doctor` tries the address and the certificate"
)
ENDS = (signal.SIGTERM, signal.SIGINT)
LOOK = 0.5  # seconds between two looks at who has ended
HAND_OVER = """\
import json, os, socket, struct, sys
told = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}}
told = json.dumps(told).encode()
with socket.socket(socket.AF_UNIX) as there:
    there.connect({path!r})
    there.sendall(struct.pack(">IQ", len(told), 0) + told)
"""
"""Nothing of fedpeft is imported: it is to take no time."""


def supernode(folder: Path, arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `flower-supernode` for the worker in `folder` until it ends as it should; its exit
    status.

    `say` is told when it begins again.

    Raises:
      RunError: Flower is not installed, or the socket cannot be made.
    """
    work = _courier()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "couriers"
    try:
        server = listen(path)
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error}; a shorter --out may help") from None
    alive, couriers = folder / ALIVE, set[int]()
    before = alive.exists() and time() - alive.stat().st_mtime < FORGET
    with server:
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(_make_command(folder, path)), os.environ.get("PATH", os.defpath)]
            ),
        }
        # Without -P the script's own folder would come first among those that modules are imported
        # from.
        command = [sys.executable, "-P", flower_supernode.__file__]
        config = ["--node-config", f'node="{folder}"']
        # An exit and no sudden end, so that what stands under `finally` is done.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

        def once() -> int:
            # Anew each time: of several that begin at once all find the port free, and one gets it.
            words = [*command, *with_free_port(arguments, say), *config]
            process = subprocess.Popen(words, env=environment)
            try:
                return _until_ended(process, server, work, couriers, alive)
            finally:
                process.terminate()
                process.wait()

        try:
            return again_while_broken(once, say, before)
        finally:
            alive.unlink(missing_ok=True)  # Flower has told the SuperLink that it goes


def with_free_port(arguments: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The arguments, with a free port where they name none and the usual one is taken, as it is by
    another SuperNode of this machine."""
    if any(word == "--port" or word.startswith("--port=") for word in arguments):
        return list(arguments)
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", PORT))
            return list(arguments)
        except OSError:
            pass
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    say(f"port {PORT} is taken, by another SuperNode perhaps; this one has port {port}")
    return [*arguments, "--port", str(port)]


def again_while_broken(
    once: Callable[[], int],
    say: Callable[[str], None],
    before: bool = False,
    clock: Callable[[], float] = monotonic,
    wait: Callable[[float], object] = sleep,
) -> int:
    """Begin again what broke, was killed or ended after it had lived, and from then on whatever
    ends.

    What ends soon at first is told to who began it: an address or a key may be wrong. Not where
    another life ended just `before`, which the SuperLink may not know yet. Who wants it to end ends
    this process.

    Returns:
      The exit status of what ended soon.
    """
    pause, broke, told = PAUSE, before, False
    while True:
        began = clock()
        code = once()
        lived = clock() - began > LONGEST
        broke = broke or lived or code == flower_supernode.BROKEN or code < 0
        if code == 1 and not lived and not told:
            say(NOT_LET_IN)
            told = True
        if not broke:
            return code
        pause = PAUSE if lived else pause
        say(f"the SuperNode broke (status {code}); it begins again in {pause:g} s")
        wait(pause)
        pause = min(2 * pause, LONGEST)


def _courier() -> Callable[[], object]:
    """What Flower's command does, with all that it imports, and what it imports of us."""
    try:
        [found] = entry_points(group="console_scripts", name=COURIER)
        work: Callable[[], object] = found.load()
        import fedpeft.engines.flower.courier  # noqa: F401
    except (ImportError, ValueError):
        raise RunError(f"a SuperNode needs Flower: {explain_install('flower')}") from None
    return work


def _make_command(folder: Path, path: Path) -> Path:
    """A folder with a command of the courier's name, which hands over to the socket at `path`."""
    commands = folder / "bin"
    commands.mkdir(mode=0o700, exist_ok=True)
    script = commands / "hand_over.py"
    script.write_text(HAND_OVER.format(path=str(path)), encoding="utf-8")
    command = commands / COURIER
    command.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n', encoding="utf-8"
    )
    command.chmod(0o700)
    return commands


def _until_ended(
    process: "subprocess.Popen[bytes]",
    server: socket.socket,
    work: Callable[[], object],
    couriers: set[int],
    alive: Path,
) -> int:
    """Fork couriers until the SuperNode ends, or waits for ever for one that failed; its exit
    status.

    `couriers` are those that run; some may outlive a SuperNode.
    """
    lost = inf
    while process.poll() is None:
        alive.touch()
        if select.select([server], [], [], LOOK)[0]:
            connection, _ = server.accept()
            with connection, suppress(OSError, WireError):  # who is gone gets no courier
                connection.settimeout(PATIENCE)
                couriers.add(_fork(receive(connection).head, server, work))
                lost = inf
        ended: dict[int, int] = {}
        for courier in couriers:
            pid, status = os.waitpid(courier, os.WNOHANG)
            if pid:  # 0 while it runs
                ended[pid] = status
        couriers.difference_update(ended)
        lost = monotonic() if any(ended.values()) else lost
        if not couriers and monotonic() - lost > LOST:
            return flower_supernode.BROKEN
    return process.returncode


def _fork(told: Mapping[str, Any], server: socket.socket, work: Callable[[], object]) -> int:
    """The process that is now a courier."""
    # What this process does when it is to end is nothing for its fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        # 0 in the child, which `_run` never comes back from.
        return os.fork() or _run(told, server, work)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)


def _run(told: Mapping[str, Any], server: socket.socket, work: Callable[[], object]) -> NoReturn:
    """Be the courier, in a process of its own, and end with it; with 1 where a signal ended it: it
    has not answered."""
    code = 1
    hear, tell = os.pipe()
    try:
        server.close()
        os.set_blocking(hear, False)
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)  # Flower has handlers of its own, and ends with 0 then
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
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
        with suppress(BlockingIOError):
            code = code or len(os.read(hear, 1))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
