"""A federation of real processes on this machine: SuperLink, SuperNodes and their workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent


@dataclass
class Federation:
    """Processes by name. Each has a session of its own, which is ended whole."""

    root: Path
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_port())

    def environment(self, home: str) -> dict[str, str]:
        """What Flower needs to keep to itself: no telemetry, no installing, a home of its own."""
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {
            "PYTHONPATH": path,
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.root / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }
        return {**os.environ, **own}

    def begin(self, name: str, *command: str | Path, home: str = "") -> "subprocess.Popen[bytes]":
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(word) for word in command],
                env=self.environment(home or name),
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.processes[name]

    def superlink(self) -> None:
        (self.root / "user").mkdir(exist_ok=True)
        (self.root / "user" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.begin("superlink", SCRIPTS / "flower-superlink", "--insecure", "--port", str(self.port))

    def node(self, plan: Path, number: int) -> None:
        """A worker and its SuperNode."""
        self.worker(plan, number)
        self.supernode(number)

    def worker(self, plan: Path, number: int) -> None:
        self.fedpeft(f"worker{number}", "node", plan, "--client", str(number), "--out", self.root / f"node{number}")

    def fedpeft(self, name: str, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        return self.begin(name, sys.executable, "-m", "fedpeft", *arguments, home="user")

    def supernode(self, number: int) -> None:
        folder = self.root / f"node{number}"
        self.begin(
            f"supernode{number}", SCRIPTS / "flower-supernode", "--insecure",
            "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()), "--node-config", f'node="{folder}"',
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """kill -9, of this process alone."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def inside(self, name: str, word: str = "") -> list[int]:
        """The numbers of the processes that `name` started and that have `word` in their command."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                home = f"FLWR_HOME={self.root / name}\0".encode()
                if home in (path / "environ").read_bytes() and word in (path / "cmdline").read_text():
                    found.append(int(path.name))
        return found

    def log(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in [pid for name in (*self.processes, "user") for pid in self.inside(name)]:  # of sessions of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def federation(root: Path) -> Iterator[Federation]:
    root.mkdir(parents=True, exist_ok=True)
    made = Federation(root)
    try:
        yield made
    finally:
        made.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def until(true: Callable[[], bool], seconds: float = 60, what: Callable[[], str] = lambda: "") -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, f"not within {seconds} s: {what()}"
        time.sleep(0.05)
