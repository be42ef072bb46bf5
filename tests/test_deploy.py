"""What is asked before a federation is begun: apps, doctors, and plain words where something is
missing."""

import os
import ssl
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from threading import Thread

import pytest
from running import PLAN, fedpeft

from benchmarks.federation import CERTIFICATES
from fedpeft.deploy.doctor import Finding, certificate, private_key, superlink, worker
from fedpeft.plan.reading import read_plan

pytest.importorskip("cryptography")
pytestmark = pytest.mark.skipif(
    not (which("openssl") and which("ssh-keygen")), reason="no openssl or ssh-keygen"
)


def test_an_app_holds_the_plan_and_names_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    assert (
        fedpeft("app", tmp_path / "plan.toml", "-o", tmp_path / "app", "--set", "seed=5").exit_code
        == 0
    )
    read = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    assert read_plan(read["tool"]["flwr"]["app"]["config"]["plan"]) == read_plan(PLAN, ["seed=5"])
    assert read["project"]["dependencies"] == []
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == [
        "client_app.py",
        "pyproject.toml",
        "server_app.py",
    ]
    again = fedpeft("app", tmp_path / "plan.toml", "-o", tmp_path / "app")
    assert again.exit_code == 2 and "is there already" in again.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--engine", "flower"], "say which SuperLink: --federation NAME"),
        (
            ["run", "--engine", "flower", "--federation", "here", "--set", 'personal=["*"]'],
            "personal tensors stay",
        ),
        (["app", "-o", "x", "--set", 'personal=["*"]'], "personal tensors stay"),
        (["node", "--client", "99"], "--client 99: the plan's partition has 4 clients"),
        (["node", "--client", "0", "--set", 'nodes=["a"]'], "give --data and --name"),
        (["node"], "give --data and --name, or --client"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    command, *rest = words
    done = fedpeft(command, tmp_path / "plan.toml", *rest)
    if find_spec("flwr") is None and command == "run":
        said = "pip install 'fedpeft[flower]'"
    assert done.exit_code == 2 and said in " ".join(done.output.split())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys") / "keys"
    subprocess.run([CERTIFICATES, made, "IP:127.0.0.1"], check=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", made / "node"], check=True
    )
    return made


def serving(keys: Path, off: timedelta) -> Iterator[str]:
    """A server with that certificate, whose clock is off."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", format_datetime(datetime.now(UTC) + off, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "server.crt", keys / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {one.what: one for one in findings}


def test_the_doctor_finds_a_good_superlink_good(keys: Path) -> None:
    for address in serving(keys, timedelta()):
        seen = by_name(superlink(address, keys / "ca.crt"))
        assert list(seen) == ["reachable", "tls", "clock"] and all(
            one.good for one in seen.values()
        )
    assert all(one.good for one in (*certificate(keys / "ca.crt"), *private_key(keys / "node")))


def test_the_doctor_says_what_to_do(keys: Path, tmp_path: Path) -> None:
    subprocess.run([CERTIFICATES, tmp_path / "other", "DNS:elsewhere.example"], check=True)
    for address in serving(keys, timedelta(minutes=2)):
        assert "NTP" in by_name(superlink(address, keys / "ca.crt"))["clock"].remedy
        assert (
            "must be of this root"
            in by_name(superlink(address, tmp_path / "other" / "ca.crt"))["tls"].remedy
        )
        assert not by_name(superlink(address, None))["tls"].good
    assert "start the SuperLink" in by_name(superlink(address, None))["reachable"].remedy
    [wrong] = superlink("nonsense", None)
    assert wrong.remedy == "write it as host:port"
    [gone], [none] = certificate(tmp_path / "no.crt"), worker(tmp_path)
    assert not gone.good and "start `fedpeft node`" in none.remedy
    os.chmod(keys / "node", 0o644)
    [open_to_all] = private_key(keys / "node")
    assert open_to_all.remedy == f"chmod 600 {keys / 'node'}"
