"""Whether the hub can be reached. Its libraries try each file for half a minute where it cannot."""

import os
import socket
import sys
from collections.abc import Mapping
from functools import cache
from urllib.parse import urlsplit

USUAL = "https://huggingface.co"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
OFFLINE = "HF_HUB_OFFLINE"
UNREACHED = "the hub cannot be reached, and it is not in the hub's cache on this machine"
PATIENCE = 3.0  # seconds for a connection


def spare_lookups() -> bool:
    """Before something is looked for on the hub: where it cannot be reached, let its libraries look
    into their cache alone for the rest of this process.

    Through a proxy nothing is tried.

    Returns:
      Whether they look there alone, for whatever reason.
    """
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        return True
    if reaches(os.environ):
        return False
    os.environ[OFFLINE] = "1"
    for library in ("huggingface_hub.constants", "datasets.config"):
        if module := sys.modules.get(library):  # it has read the variable already
            setattr(module, OFFLINE, True)
    return True


def reaches(environment: Mapping[str, str]) -> bool:
    """Whether the hub that the variables name answers, or a proxy stands before it."""
    if any(environment.get(name) for name in PROXIES):
        return True
    url = urlsplit(environment.get("HF_ENDPOINT") or USUAL)
    return _answers(url.hostname or "", url.port or (80 if url.scheme == "http" else 443))


@cache
def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError:
        return False
    return True
