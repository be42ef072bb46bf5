"""What keeps a node or a server from taking part, found before a run is begun, and what to do about
it."""

import os
import socket
import ssl
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import FedpeftError, WireError, say_count
from fedpeft.registry import REGISTERED, Code
from fedpeft.storage.files import check_writable
from fedpeft.wire.sockets import SOCKET, Envelope, ask

if TYPE_CHECKING:
    from fedpeft.core.types import Examples
    from fedpeft.deploy.consent import Consent

FLOWER = "1.41.0"
"""The version that this was tried with; others changed their interfaces."""
LIBRARIES = ("torch", "transformers", "peft")
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": ("0", "Flower reports its use to its makers"),
    "FLWR_DISABLE_UPDATE_CHECK": ("1", "Flower asks its makers for updates"),
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": ("1", "Flower installs what an app asks for"),
}
"""By variable what it should be, and what is the case otherwise."""
SKEW = 4.0  # seconds between two clocks; Flower refuses what was signed 5 s in its future
SOON = 30  # days
PATIENCE = 10.0  # seconds for a connection
UNREADABLE = (
    "a run stops at pictures that cannot be read, and names them: mend them, take them away, or "
    "set data.skip_unreadable = true, which leaves them out and counts them"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was seen, and, where that is not good, what to do."""

    what: str
    seen: str
    remedy: str = ""

    @property
    def good(self) -> bool:
        return not self.remedy


def libraries(
    plan: Path | None,
    settings: list[str] | None,
    code: Code,
    connects: bool,
    data: str | None,
) -> Iterator[Finding]:
    """The libraries that every plan needs; and where this machine `connects` to others, the plan is
    for nodes, or there is no plan, Flower too. Data alone need none of them."""
    if data and plan is None and not connects:
        return
    yield versions()
    if connects or plan is None or uses_flower(plan, settings, code):
        yield from flower()


def versions() -> Finding:
    """The libraries that every plan needs."""
    seen = ", ".join(f"{name} {_version(name)}" for name in ("fedpeft", *LIBRARIES))
    missing = [name for name in LIBRARIES if _version(name) == "none"]
    python = f"python {sys.version_info[0]}.{sys.version_info[1]}"
    return Finding(
        "versions", f"{python}, {seen}", f"install {', '.join(missing)}" if missing else ""
    )


def flower() -> Iterator[Finding]:
    """Flower's version, and what it does beside its work."""
    seen = _version("flwr")
    yield Finding("flower", seen, "" if seen == FLOWER else f"pip install flwr=={FLOWER}")
    for name, (wanted, otherwise) in SWITCHES.items():
        seen = os.environ.get(name, "not set")
        yield Finding(
            name, seen, "" if seen == wanted else f"export {name}={wanted}; else {otherwise}"
        )


def uses_flower(plan: Path, settings: list[str] | None, code: Code = REGISTERED) -> bool:
    """Whether a plan is for nodes; of one that cannot be read another finding tells."""
    from fedpeft.plan.reading import read_plan

    try:
        read = read_plan(plan, settings or (), code)
    except FedpeftError:
        return False
    return read.engine == "flower" or read.nodes.names is not None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def certificate(path: Path) -> Iterator[Finding]:
    """A certificate's dates."""
    from cryptography import x509

    try:
        read = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        yield Finding(
            f"certificate {path}", str(error), "ask whoever runs the SuperLink for the file, in PEM"
        )
        return
    now, begins, ends = datetime.now(UTC), read.not_valid_before_utc, read.not_valid_after_utc
    remedy = f"make a new one: it ends within {SOON} days" if (ends - now).days < SOON else ""
    if now < begins:
        remedy = "it is not valid yet: set this machine's clock, or wait"
    yield Finding(f"certificate {path}", f"{begins:%Y-%m-%d} to {ends:%Y-%m-%d}", remedy)


def private_key(path: Path) -> Iterator[Finding]:
    """A node's key, which only its owner may read."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key, mode = load_ssh_private_key(path.read_bytes(), None), stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError, TypeError) as error:
        yield Finding(
            f"key {path}", str(error), f"make one: ssh-keygen -t ecdsa -b 384 -N '' -f {path}"
        )
        return
    if not isinstance(key, EllipticCurvePrivateKey):
        yield Finding(
            f"key {path}", "no elliptic curve key", f"ssh-keygen -t ecdsa -b 384 -N '' -f {path}"
        )
        return
    yield Finding(f"key {path}", f"mode {mode:o}", f"chmod 600 {path}" if mode & 0o077 else "")


def superlink(address: str, root: Path | None) -> Iterator[Finding]:
    """Whether a SuperLink answers, shows the right certificate, and has the same time."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        yield Finding("superlink", address, "write it as host:port")
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        yield Finding(
            "reachable",
            f"{address}: {error}",
            "start the SuperLink, or open the port in the firewall",
        )
        return
    yield Finding("reachable", address)
    try:
        if root is None:
            remedy = (
                "give --root-certificates, and run the SuperLink with TLS: "
                "anyone on the way can read and change"
            )
            yield Finding("tls", "not used", remedy)
            connection = HTTPConnection(host, int(port), timeout=PATIENCE)
        else:
            trusted = ssl.create_default_context(cafile=root)
            connection = HTTPSConnection(host, int(port), timeout=PATIENCE, context=trusted)
        connection.request("HEAD", "/")
        date = connection.getresponse().headers.get("Date")
        connection.close()
    except ssl.SSLError as error:
        yield Finding(
            "tls",
            str(error),
            "the SuperLink's certificate must be of this root, and name this host as SAN",
        )
        return
    except (OSError, HTTPException) as error:
        yield Finding(
            "tls",
            f"no answer: {error}",
            "a SuperLink with TLS wants --root-certificates, one without none",
        )
        return
    if root is not None:
        yield Finding("tls", f"{root} vouches for {host}")
    yield from _clock(date)


def _clock(date: str | None) -> Iterator[Finding]:
    if date is None:
        return
    off = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    remedy = "set the clocks (NTP): a node's signatures carry the time" if abs(off) > SKEW else ""
    yield Finding("clock", f"{off:+.0f} s against the SuperLink", remedy)


def worker(folder: Path) -> Iterator[Finding]:
    """Whether the worker of a node runs, and who may talk to it."""
    path = folder / SOCKET
    try:
        answer = ask(path, Envelope({"kind": "doctor"}), PATIENCE)
    # A TimeoutError is an OSError too, and it means another thing here.
    except TimeoutError:
        yield Finding("worker", f"{path} is busy", "it trains now; ask again later")
        return
    except (OSError, WireError) as error:
        yield Finding(
            "worker", f"{path}: {error}", "start `fedpeft node` there, with --out its folder"
        )
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    yield Finding(
        "worker",
        f"{answer.head.get('client')} at {path}",
        "" if mode == 0o600 else f"chmod 600 {path}",
    )


def nodes(
    plan: Path | None, settings: list[str] | None, federation: str, code: Code = REGISTERED
) -> Iterator[Finding]:
    """Whether the nodes of a plan are connected to the SuperLink; without a plan, how many are.

    Flower knows numbers of nodes and not what a plan calls them: who is missing, a run tells.
    """
    from fedpeft.deploy.submit import count_online
    from fedpeft.plan.reading import read_plan

    try:
        names = (read_plan(plan, settings or (), code).nodes.names or ()) if plan else ()
        online = count_online(federation)
    except FedpeftError as error:
        yield Finding("nodes", str(error), "see what it says")
        return
    if online >= len(names):
        yield Finding("nodes", f"{online} online")
        return
    missing = len(names) - online
    whom = names[0] if len(names) == 1 else f"{missing} of {', '.join(names)}"
    remedy = (
        "start `fedpeft node` and `fedpeft supernode` there; `fedpeft run` names who is missing"
    )
    yield Finding("nodes", f"{online} of {len(names)} online; waiting for {whom}", remedy)


def site(
    plan: Path | None,
    settings: list[str] | None,
    data: str | None,
    name: str | None,
    code: Code,
    seen: "list[Examples]",
) -> Iterator[Finding]:
    """Whether the plan, which may name the modules of `code`, the base model and the data can be
    used here.

    Args:
      seen: gets the node's examples, as the plan's task has them, if the node would begin.
    """
    from fedpeft.data.inspect import describe_full_texts
    from fedpeft.deploy.consent import consent_to
    from fedpeft.deploy.terms import node_site, server_site, terms_of
    from fedpeft.oneshot.own_data import OwnData, split_settings
    from fedpeft.plan.reading import read_plan

    own, others = split_settings(settings or ()) if data else ([], settings or ())
    try:
        read = read_plan(plan or "", others, code)
        yield Finding("plan", f"{read.name}, {say_count(read.rounds, 'rounds')}")
        if data is None or name is None:
            here = server_site(read)
        else:
            mine = OwnData(data, tuple(own))
            here = node_site(read, mine, name, look=lambda shown, _: seen.append(shown))
        yield Finding(
            "base model", f"fingerprint {terms_of(here)['base']}; it must be the same everywhere"
        )
        counted = sum(map(here.data.size, here.data.clients))
        of = say_count(len(here.data.clients), "clients")
        yield Finding("data", f"{say_count(counted, 'training examples')} of {of}")
        yield from _tokens(describe_full_texts(here.plan.task, here.data))
        if name is not None and data is not None:
            clients = here.plan.known_clients(here.data.clients)
            yield _terms("node", consent_to(here, name, clients))
    except FedpeftError as error:
        seen.clear()
        yield Finding(type(error).__name__, str(error), "see what it says")


def invitation(
    study: Path, settings: list[str] | None, data: str, name: str, code: Code = REGISTERED
) -> Iterator[Finding]:
    """Whether the owner `name` of these data can take part in the study of this folder."""
    from fedpeft.deploy.consent import consent_to
    from fedpeft.oneshot.contribute import from_own_data
    from fedpeft.oneshot.invitation import read_invitation
    from fedpeft.oneshot.own_data import own_data

    try:
        invited = read_invitation(study, code)
        yield Finding("invitation", f"study {invited.terms.study}, {invited.plan.name}")
        who = from_own_data(invited, own_data(data, settings or ()), name)
        yield Finding("base model, labels and transforms", "those of the study")
        yield _terms("contribute", consent_to(who.site, name, [name], by_file=True))
    except FedpeftError as error:
        yield Finding(type(error).__name__, str(error), "see what it says")


def _terms(command: str, consent: "Consent") -> Finding:
    asks = f"`fedpeft {command}` asks you to agree to:"
    return Finding("terms", "\n    ".join([asks, *consent.text()]))


def _tokens(words: str) -> Iterator[Finding]:
    """Nothing where there are no texts."""
    if words:
        yield Finding("tokens", words)


def data(
    plan: Path | None,
    settings: list[str] | None,
    path: str,
    out: Path,
    code: Code = REGISTERED,
    examples: "Examples | None" = None,
) -> Iterator[Finding]:
    """What is read of someone's data, which is written to a file too.

    Args:
      examples: what a plan's node has of them, where it is open; else all that can be read.
    """
    from fedpeft.data.inspect import inspect, second_text
    from fedpeft.oneshot.own_data import OwnData, split_settings
    from fedpeft.plan.reading import read_plan

    try:
        own, others = split_settings(settings or ())
        read = read_plan({"data": path} if plan is None else plan, others, code)
        source = OwnData(path, tuple(own)).source(read.data)
        check_writable(out)
        shown = source.load() if examples is None else examples
        report = inspect(shown, text_pair=second_text(read.task))
        lines = report.lines
        out.write_text("\n".join([f"fedpeft {_version('fedpeft')}", *lines, ""]), encoding="utf-8")
    except FedpeftError as error:
        yield Finding(f"data {path}", str(error), "mend it, and ask again")
        return
    except OSError as error:
        yield Finding(f"report {out}", str(error), "name another place with --out")
        return
    remedy = UNREADABLE if report.unreadable else ""
    yield Finding(f"data {path}", "\n      ".join([f"the report is in {out}", *lines]), remedy)
