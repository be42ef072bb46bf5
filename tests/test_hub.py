"""Lookups on the hub where it cannot be reached."""

import socket
import subprocess
import sys
from time import monotonic

import pytest

from fedpeft.storage.hub import reaches

LOOKS = """
import os
from fedpeft.data.reading import CsvForm, read_splits
from fedpeft.errors import FedpeftError
from fedpeft.tasks.pretrained import config_of

for work in (
    lambda: config_of("no/model"),
    lambda: read_splits("no/data", "", CsvForm()),
):
    try:
        work()
    except FedpeftError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
print(os.environ["HF_HUB_OFFLINE"])
"""


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_asked_once() -> None:
    """Without it each file is tried for half a minute."""
    began = monotonic()
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}", "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", LOOKS],
        env={**environment, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    model, data, offline = ended.stdout.splitlines()
    assert model.startswith("PlanError model 'no/model' is neither a folder")
    assert "the hub cannot be reached" in model
    assert data.startswith("DataError 'no/data' is neither a file nor a folder")
    assert "Retry" not in ended.stderr and offline == "1"
    assert monotonic() - began < 60


def test_a_hub_that_answers_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert reaches({"HF_ENDPOINT": address})
    assert not reaches({"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"})


def test_through_a_proxy_nothing_is_tried() -> None:
    closed = f"http://127.0.0.1:{closed_port()}"
    assert reaches({"HF_ENDPOINT": closed, "https_proxy": "http://proxy:3128"})
