"""Couriers that are forked from a process that has imported everything already, and a SuperNode
that breaks."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from fedpeft.deploy import flower_supernode, supernode
from fedpeft.deploy.flower_supernode import BROKEN
from fedpeft.deploy.supernode import again_while_broken, with_free_port

PARENT = """
import json, os, subprocess, sys
from pathlib import Path
from fedpeft.wire.sockets import listen
from fedpeft.deploy.supernode import ALIVE, _make_command, _until_ended

def work():
    if "--bad" in sys.argv:
        raise ArithmeticError("a courier that fails")
    seen = {"arguments": sys.argv, "mark": os.environ.get("MARK")}
    seen |= {"own": os.environ.get("OWN"), "parent": os.getppid()}
    Path("written").write_text(json.dumps(seen))
    os.rename("written", "done")
    sys.exit(3)

folder, path = Path(sys.argv[1]), Path(sys.argv[1]) / "couriers"
courier = _make_command(folder, path) / "flwr-clientapp"
flower = f"cd {folder}/elsewhere; {courier} --bad; MARK=here {courier} --token 'a b'; "
flower += "until test -e done; do sleep 0.02; done; exit 7"
os.environ["OWN"] = "not told"
with listen(path) as server:
    environment = {key: value for key, value in os.environ.items() if key != "OWN"}
    process = subprocess.Popen(flower, shell=True, env=environment)
    status = _until_ended(process, server, work, set(), folder / ALIVE)
print(json.dumps([os.getpid(), status]))
"""


def test_a_courier_has_the_arguments_and_the_surroundings_of_the_command_and_fails_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    parent, status = json.loads(ended.stdout)
    seen = json.loads((tmp_path / "elsewhere" / "done").read_text())
    assert seen == {
        "arguments": ["flwr-clientapp", "--token", "a b"],
        "mark": "here",
        "own": None,
        "parent": parent,
    }
    assert status == 7 and "ArithmeticError: a courier that fails" in ended.stderr
    assert (tmp_path / "couriers").stat().st_mode & 0o777 == 0o600


LOST = """
import os, signal, subprocess, sys, time
from pathlib import Path
from fedpeft.wire.sockets import listen
from fedpeft.deploy import supernode

def work():
    if "--term" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGTERM)
    if "--kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "--long" in sys.argv:
        time.sleep(3)
    sys.exit(0)

supernode.LOST, supernode.LOOK = 1.5, 0.1
folder = Path(sys.argv[1])
courier = supernode._make_command(folder, folder / "couriers") / "flwr-clientapp"
with listen(folder / "couriers") as server:
    command = f"{sys.argv[2].replace('courier', str(courier))}; exit 7"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    flower = subprocess.Popen(command, shell=True, **quiet)
    print(supernode._until_ended(flower, server, work, set(), folder / supernode.ALIVE), flush=True)
    flower.kill()
"""


@pytest.mark.parametrize(
    ("flower", "status"),
    [
        ("courier --kill; sleep 30", BROKEN),
        pytest.param("courier --term; sleep 30", BROKEN, marks=pytest.mark.slow),
        ("courier --kill; sleep 0.5; courier; sleep 2", 7),
        pytest.param("courier --long; courier --kill; sleep 2.5", 7, marks=pytest.mark.slow),
    ],
)
def test_a_courier_that_is_killed_breaks_a_supernode_that_sends_no_other(
    flower: str, status: int, tmp_path: Path
) -> None:
    """Flower may wait for its answer for ever; not while another is at work."""
    ended = subprocess.run(
        [sys.executable, "-c", LOST, tmp_path, flower],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(ended.stdout) == status


def test_what_ends_soon_at_first_is_told_and_what_broke_is_begun_again_ever_later() -> None:
    def lived(*codes: int, seconds: float = 1.0, before: bool = False) -> tuple[int, list[float]]:
        left, ticks, pauses, said = list(codes), count(0.0, seconds), list[float](), list[str]()

        def once() -> int:
            if not left:
                raise KeyboardInterrupt  # as Ctrl-C does, and SIGTERM in its way
            return left.pop(0)

        code = -1
        with suppress(KeyboardInterrupt):
            code = again_while_broken(once, said.append, before, lambda: next(ticks), pauses.append)
        told = [words for words in said if "may not know the key" in words]
        assert (
            not left
            and len(said) == len(pauses) + len(told)
            and len(told) == (1 in codes and seconds < 30)
        )
        return code, pauses

    assert lived(0) == (0, []) and lived(1) == (1, [])
    assert lived(1, 1, before=True) == (-1, [1, 2])
    assert lived(BROKEN, 1, 0, -9) == (-1, [1, 2, 4, 8])
    assert lived(-9, *[1] * 9)[1][-3:] == [30, 30, 30]
    assert lived(0, 1, 0, seconds=100) == (-1, [1, 1, 1])


@pytest.mark.parametrize(
    ("main", "status"),
    [
        ("threading.Thread(target=fail, daemon=True).start()\n    time.sleep(60)", BROKEN),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", BROKEN),
        (
            "below = subprocess.Popen(['sleep', '60'])\n    time.sleep(1.5)\n    below.kill()\n    "
            "time.sleep(60)",
            BROKEN,
        ),
        ("sys.exit(3)", 3),
    ],
)
def test_a_supernode_of_which_a_part_fails_ends_whole(
    main: str, status: int, tmp_path: Path
) -> None:
    """Flower's own goes on without it, and nobody hears of it any more."""
    ended = subprocess.run(fake(tmp_path, main), capture_output=True, text=True, timeout=30)
    assert ended.returncode == status and ("OSError: 500" in ended.stderr) == ("fail" in main)


def test_a_supernode_ends_with_who_looks_after_it(tmp_path: Path) -> None:
    command = " ".join(
        map(shlex.quote, fake(tmp_path, "print(os.getpid(), flush=True)\n    time.sleep(60)"))
    )
    above = subprocess.Popen(["sh", "-c", f"{command} & wait"], stdout=subprocess.PIPE, text=True)
    assert above.stdout is not None
    with above:
        below = int(above.stdout.readline())
        above.kill()
    ends = time.monotonic() + 20
    while lives(below) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not lives(below)


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def fake(folder: Path, main: str) -> list[str]:
    """The command of a SuperNode whose Flower does this."""
    told = folder / "broken-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (told / "entry_points.txt").write_text("[console_scripts]\nbroken-node = broken:main\n")
    (folder / "broken.py").write_text(
        "import os, subprocess, sys, threading, time\ndef fail():\n    raise OSError('500')\ndef "
        f"main():\n    {main}\n"
    )
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import runpy; "
    return [
        sys.executable,
        "-c",
        code + f"runpy.run_path({flower_supernode.__file__!r})['main']('broken-node')",
    ]


def test_a_second_supernode_of_a_machine_has_a_port_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = list[str]()
    with socket.create_server(("", 0)) as first:
        taken = first.getsockname()[1]
        monkeypatch.setattr(supernode, "PORT", taken)
        *rest, option, port = with_free_port(["--superlink", "x:1"], said.append)
        assert rest == ["--superlink", "x:1"] and option == "--port" and int(port) != taken
        assert said == [
            f"port {taken} is taken, by another SuperNode perhaps; this one has port {port}"
        ]
        for own in (["--port", "7"], ["--port=7"]):
            assert with_free_port(own, said.append) == own
    assert with_free_port(["--superlink", "x:1"], said.append) == ["--superlink", "x:1"]
    assert len(said) == 1


@pytest.mark.slow
def test_of_several_that_begin_at_once_each_comes_to_a_port(tmp_path: Path) -> None:
    """All find the usual port free, and one gets it: the others begin again with another."""
    began = []
    for name in ("a", "b", "c"):
        to = ["--node", str(tmp_path / name), "--", "--superlink", "127.0.0.1:1", "--insecure"]
        command = [sys.executable, "-m", "fedpeft", "supernode", *to]
        with (tmp_path / f"{name}.log").open("wb") as log:
            began.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    ends = time.monotonic() + 120

    def ports() -> set[str]:
        logs = [(tmp_path / f"{name}.log").read_text() for name in ("a", "b", "c")]
        return {port for log in logs for port in re.findall(r"running on \S+:(\d+)", log)}

    try:
        while len(ports()) < 3 and time.monotonic() < ends:
            time.sleep(0.5)
        assert len(ports()) == 3
    finally:
        for process in began:
            process.terminate()
        for process in began:
            process.wait(timeout=30)
