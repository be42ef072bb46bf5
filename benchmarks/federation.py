"""A federation of real processes on this machine: SuperLink, SuperNodes and their workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[1]
CERTIFICATES = ROOT / "examples" / "deploy" / "certificates.sh"
SCRIPTS = Path(sys.executable).parent


@dataclass
class Federation:
    """Processes by name. Each has a session of its own, which is ended whole.

    Attributes:
      quick: SuperNodes are those of `fedpeft supernode`, else Flower's own.
    """

    root: Path
    tls: bool = False
    quick: bool = True
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_port())

    def environment(self, home: str) -> dict[str, str]:
        """What Flower needs to keep to itself: no telemetry, no installing, a home of its own."""
        path = os.pathsep.join(
            [str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
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

    def superlink(self, database: bool = True) -> None:
        """With TLS and keys of nodes, or with neither; what it knows in a file, or in its memory
        alone."""
        (self.root / "user").mkdir(exist_ok=True)
        safety = f'root-certificates = "{self.root}/keys/ca.crt"' if self.tls else "insecure = true"
        (self.root / "user" / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\naddress = '
            f'"127.0.0.1:{self.port}"\n{safety}\n'
        )
        (self.root / "database").mkdir(exist_ok=True)
        kept = ["--database", str(self.root / "database" / "state.db")] if database else []
        self.begin(
            "superlink",
            SCRIPTS / "flower-superlink",
            "--port",
            str(self.port),
            *kept,
            *(self._certified() if self.tls else ["--insecure"]),
        )
        until(
            lambda: "startup complete" in self.log("superlink"), 60, lambda: self.log("superlink")
        )

    def _certified(self) -> list[str]:
        keys = self.root / "keys"
        if not keys.exists():
            subprocess.run([CERTIFICATES, keys, "IP:127.0.0.1"], check=True)
        files = [
            f"--ssl-ca-certfile={keys}/ca.crt",
            f"--ssl-certfile={keys}/server.crt",
            f"--ssl-keyfile={keys}/server.key",
        ]
        return [*files, "--enable-supernode-auth"]

    def flwr(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SCRIPTS / "flwr", *words],
            env=self.environment("user"),
            capture_output=True,
            text=True,
            check=False,
        )

    def nodes(
        self,
        plan: Path,
        count: int,
        seconds: float = 200,
        links: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Workers that are ready, and their SuperNodes, some behind links with these flags."""
        for number in range(count):
            self.worker(plan, number)
            self.supernode(number, link=links.get(number, ()))
        for number in range(count):
            name = f"worker{number}"
            until(
                (self.root / f"node{number}" / "socket").exists,
                seconds,
                partial(self.log, name),
                self.processes[name],
            )

    def worker(self, plan: Path, number: int) -> None:
        """Begun with the key of `fedpeft keygen` that lies in the root, if there is one."""
        own = self.root / f"c{number:03}.key"
        key = ("--key", own) if own.exists() else ()
        folder = self.root / f"node{number}"
        self.fedpeft(
            f"worker{number}",
            "node",
            plan,
            "--client",
            str(number),
            "--out",
            folder,
            "--yes",
            *key,
            *("--allow-code", "parts", "--allow-code", "crashes"),
        )

    def fedpeft(self, name: str, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        return self.begin(name, sys.executable, "-m", "fedpeft", *arguments, home="user")

    def supernode(self, number: int, name: str = "", link: Sequence[str] = ()) -> None:
        """Begun with the worker's folder and, with TLS, a key that is registered; or behind a link
        with these flags."""
        net, behind = "127.0.0", list[str]()
        if link:
            net = f"10.79.{number}"
            behind = [sys.executable, "-m", "benchmarks.link", "--net", net]
            behind += ["--port", str(self.port), *link, "--"]
        folder = self.root / f"node{number}"
        command: list[str | Path] = [SCRIPTS / "flower-supernode"]
        command += ["--node-config", f'node="{folder}"']
        if self.quick:
            command = [sys.executable, "-m", "fedpeft", "supernode", "--node", folder, "--"]
        command += self._trust(number) if self.tls else ["--insecure"]
        command += ["--superlink", f"{net}.1:{self.port}", "--port", str(free_port())]
        self.begin(name or f"supernode{number}", *behind, *command)

    def _trust(self, number: int) -> list[str | Path]:
        """The flags by which a SuperNode and the SuperLink know each other; its key is registered
        at its first beginning."""
        keys = self.root / "keys"
        key = keys / f"node{number}"
        if not key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", key], check=True
            )
            public, name = key.with_suffix(".pub"), f"site{number}"
            told = self.flwr("supernode", "register", public, "here", "--name", name)
            assert told.returncode == 0, told.stdout + told.stderr
        return ["--root-certificates", keys / "ca.crt", "--auth-supernode-private-key", key]

    def kill(self, name: str) -> None:
        """kill -9, of this process alone."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def inside(self, name: str, word: str = "") -> list[int]:
        """The numbers of the processes that `name` started and that have `word` in their
        command."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                home = f"FLWR_HOME={self.root / name}\0".encode()
                if (
                    home in (path / "environ").read_bytes()
                    and word in (path / "cmdline").read_text()
                ):
                    found.append(int(path.name))
        return found

    def couriers(self, number: int) -> list[int]:
        """The numbers of a node's processes that carry a message now."""
        name = f"supernode{number}"
        if not self.quick:
            return self.inside(name, "flwr-clientapp")
        return [pid for pid in self.inside(name, "\0fedpeft\0") if pid != self.processes[name].pid]

    def log(self, name: str) -> str:
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # Of sessions of their own.
        for pid in [pid for name in (*self.processes, "user") for pid in self.inside(name)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def federation(root: Path, tls: bool = False, quick: bool = True) -> Iterator[Federation]:
    root.mkdir(parents=True, exist_ok=True)
    made = Federation(root, tls, quick)
    try:
        yield made
    finally:
        made.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def until(
    true: Callable[[], bool],
    seconds: float = 60,
    what: Callable[[], str] = lambda: "",
    process: "subprocess.Popen[bytes] | None" = None,
) -> None:
    """Wait for what a process that has ended cannot bring about any more."""
    ends = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, f"it ended: {what()}"
        assert time.monotonic() < ends, f"not within {seconds} s: {what()}"
        time.sleep(0.05)
