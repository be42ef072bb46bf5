"""Pages for the browser of this machine: read only, and for nobody else unless the user says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import AF_INET6
from socketserver import TCPServer
from threading import Thread
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from fedpeft.errors import FedpeftError, RunError, reason_of
from fedpeft.watching.html import POLICY

LOOPBACK = "127.0.0.1"
PATIENCE = 10.0
"""Seconds in which a browser must have said what it wants."""
LOOK = 0.1
"""Seconds between two looks at whether the server is to end."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Render: TypeAlias = Callable[[str], str | None]
"""The page at a decoded path; None where there is none."""


@contextmanager
def serving(render: Render, port: int, address: str, beyond: bool = False) -> Iterator[str]:
    """Serve pages from a thread of their own; gives the address that a browser opens.

    Args:
      port: 0 for one that is free.
      address: an address of this machine, or "localhost".
      beyond: whether an address that other machines can reach may be taken.

    Raises:
      RunError: the address is not of this machine alone, or cannot be used.
    """
    if not beyond and not is_loopback(address):
        raise RunError(
            f"{address} can be reached from other machines, and the page has no password: take "
            f"{LOOPBACK}, or say --beyond-this-machine where a firewall or a proxy guards it"
        )
    try:
        server = _Server(address, port, render)
    except (OSError, OverflowError) as error:
        raise RunError(
            f"port {port} of {address} cannot be used: {reason_of(error)}; --serve 0 takes a free "
            "one"
        ) from None
    with server:
        thread = Thread(target=server.serve_forever, args=(LOOK,), daemon=True)
        thread.start()
        shown = f"[{address}]" if ":" in address else address
        try:
            yield f"http://{shown}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def is_loopback(address: str) -> bool:
    """Whether an address, or "localhost", is of this machine alone."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def is_known_host(host: str, address: str) -> bool:
    """Whether a browser that says it wants `host` can have meant the server at `address`.

    A page of somebody else's may have its own name lead to this machine (DNS rebinding). A browser
    then says that name. An address in numbers is no name, and cannot be led anywhere.
    """
    if "@" in host:
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", address.lower()):
        return True
    try:
        found = ip_address(name)
    except ValueError:
        return False
    return found.is_loopback or not is_loopback(address)


class _Pages(BaseHTTPRequestHandler):
    """What answers one browser: GET and HEAD of known paths, and nothing else."""

    server: "_Server"
    timeout = PATIENCE
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(*self._find())

    do_HEAD = do_GET

    def refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "This page can only be read.")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = refuse

    def _find(self) -> tuple[HTTPStatus, str]:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not is_known_host(hosts[0], self.server.address):
            return HTTPStatus.MISDIRECTED_REQUEST, "This page is for its own address alone."
        if not self.path.startswith("/"):
            return HTTPStatus.NOT_FOUND, "There is no such page."
        try:
            page = self.server.render(unquote(urlsplit(self.path).path))
        except (FedpeftError, OSError) as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, reason_of(error)
        if page is None:
            return HTTPStatus.NOT_FOUND, "There is no such page."
        return HTTPStatus.OK, page

    def _answer(self, status: HTTPStatus, text: str) -> None:
        kind = "html" if status == HTTPStatus.OK else "plain"
        content = text.encode()
        # A body that came along is not read, so that the connection cannot go on.
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "fedpeft"  # the versions of Python and of this are nobody's business

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows the run."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, render: Render) -> None:
        self.address, self.render = address, render
        if ":" in address:
            self.address_family = AF_INET6
        super().__init__((address, port), _Pages)

    def server_bind(self) -> None:
        # The library's own would look up the machine's name, which may take long and is not needed.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that is gone is no matter of the run's."""
