"""A slow and lossy link in user space: a command in a network of its own, whose packets wait, queue
and get lost.

    python -m benchmarks.link --net 10.79.1 --port 9092 --delay 0.2 --loss 0.02 --rate 125000 \\
        -- COMMAND ...

COMMAND is at NET.2 and reaches, of this machine's loopback, PORT alone, as NET.1:PORT. Each way has
the delay in seconds, the loss as a share of the packets (seeded), and the rate in bytes a second.
While the file --cut is there nothing passes; with --cut-after BYTES it is made once the command has
sent so many since there is a file NAME.armed beside it. Linux, root and /dev/net/tun; no netem.
"""

import argparse
import ctypes
import fcntl
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TUNSETIFF, TUN, NO_HEADER = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
LARGEST = 1 << 16
QUEUE = 2.0  # seconds of packets that wait for their turn; what comes then is lost, as in a router


def possible() -> bool:
    """Whether this machine lets us."""
    return sys.platform == "linux" and os.geteuid() == 0 and Path("/dev/net/tun").exists()


@dataclass
class Way:
    """One direction: packets read from `source` are written to `sink` when they are due."""

    source: int
    sink: int
    delay: float
    loss: float
    rate: float
    draws: random.Random
    free: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, cut: bool) -> int:
        """Read a packet; how many bytes it has."""
        packet, now = os.read(self.source, LARGEST), time.monotonic()
        turn = max(now, self.free)
        if cut or self.draws.random() < self.loss or turn - now > QUEUE:
            return len(packet)
        self.free = turn + len(packet) / self.rate
        self.waiting.append((self.free + self.delay, packet))
        return len(packet)

    def give(self, cut: bool) -> None:
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, packet = self.waiting.popleft()
            if not cut:
                os.write(self.sink, packet)


def tunnel(name: str, own: str, other: str) -> int:
    """A point-to-point device of the network that this thread is in; it is gone when it is
    closed."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), TUN | NO_HEADER))
    for words in (f"address add {own} peer {other} dev {name}", f"link set {name} up"):
        subprocess.run(["ip", *words.split()], check=True)
    return device


def forward(listening: socket.socket, port: int) -> None:
    """Hand connections on to a port of the loopback. Threads stay in the network in which they are
    begun."""
    while True:
        outer, _ = listening.accept()
        try:
            inner = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outer.close()
            continue
        for source, sink in ((outer, inner), (inner, outer)):
            threading.Thread(target=copy, args=(source, sink), daemon=True).start()


def copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        shutil.copyfileobj(source.makefile("rb", 0), sink.makefile("wb", 0))
        sink.shutdown(socket.SHUT_WR)


def relay(command: "subprocess.Popen[bytes]", ways: list[Way], cut: Path | None, after: int) -> int:
    """Pass packets on until the command ends; its exit status. The first of the ways is the
    command's own."""
    sent = 0
    while command.poll() is None:
        taken = pass_on(ways, closed=exists(cut))
        if cut is not None and exists(cut.with_suffix(".armed")):
            sent += taken
        if cut is not None and after and sent > after:
            cut.touch()
            after = 0
    return command.returncode


def exists(file: Path | None) -> bool:
    return file is not None and file.exists()


def pass_on(ways: list[Way], closed: bool) -> int:
    """Take what has come, give what is due; how many bytes came on the first of the ways."""
    ready, _, _ = select.select([way.source for way in ways], [], [], 0.005)
    taken = []
    for way in ways:
        taken.append(way.take(closed) if way.source in ready else 0)
        way.give(closed)
    return taken[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", required=True, help="the first three numbers of both addresses")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1e9)
    parser.add_argument("--cut", type=Path)
    parser.add_argument("--cut-after", type=int, default=0)
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    here, there = f"{chosen.net}.1", f"{chosen.net}.2"
    outside = tunnel(f"link{chosen.net.rpartition('.')[2]}", here, there)
    listening = socket.create_server((here, chosen.port))
    threading.Thread(target=forward, args=(listening, chosen.port), daemon=True).start()
    # This thread alone, and what it begins from now on.
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network of its own")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    inside = tunnel("eth0", there, here)
    shape = (chosen.delay, chosen.loss, chosen.rate)
    ways = [
        Way(inside, outside, *shape, random.Random(1)),
        Way(outside, inside, *shape, random.Random(2)),
    ]
    sys.exit(relay(subprocess.Popen(chosen.command), ways, chosen.cut, chosen.cut_after))


if __name__ == "__main__":
    main()
