"""Couriers that are forked from a process that has imported everything already, and a SuperNode that breaks."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from fedpeft.deploy.supernode import BROKEN, ENDS_WHOLE, again_while_broken

PARENT = """
import json, os, subprocess, sys
from pathlib import Path
from fedpeft.core.letters import listening
from fedpeft.deploy.supernode import _named, _until_ended

def work():
    if "--bad" in sys.argv:
        raise ArithmeticError("a courier that fails")
    seen = {"arguments": sys.argv, "mark": os.environ.get("MARK"), "own": os.environ.get("OWN"), "parent": os.getppid()}
    Path("written").write_text(json.dumps(seen))
    os.rename("written", "done")
    sys.exit(3)

folder, path = Path(sys.argv[1]), Path(sys.argv[1]) / "couriers"
courier = _named(folder, path) / "flwr-clientapp"
flower = f"cd {folder}/elsewhere; {courier} --bad; MARK=here {courier} --token 'a b'; "
flower += "until test -e done; do sleep 0.02; done; exit 7"
os.environ["OWN"] = "not told"
with listening(path) as server:
    environment = {key: value for key, value in os.environ.items() if key != "OWN"}
    status = _until_ended(subprocess.Popen(flower, shell=True, env=environment), server, work)
print(json.dumps([os.getpid(), status]))
"""


def test_a_courier_has_the_arguments_and_the_surroundings_of_the_command_and_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", PARENT, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    parent, status = json.loads(ended.stdout)
    seen = json.loads((tmp_path / "elsewhere" / "done").read_text())
    assert seen == {"arguments": ["flwr-clientapp", "--token", "a b"], "mark": "here", "own": None, "parent": parent}
    assert status == 7 and "ArithmeticError: a courier that fails" in ended.stderr
    assert (tmp_path / "couriers").stat().st_mode & 0o777 == 0o600


LOST = """
import os, signal, subprocess, sys
from pathlib import Path
from fedpeft.core.letters import listening
from fedpeft.deploy import supernode

def work():
    if "--kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(0)

supernode.LOST, supernode.LOOK = 1.5, 0.1
folder = Path(sys.argv[1])
courier = supernode._named(folder, folder / "couriers") / "flwr-clientapp"
with listening(folder / "couriers") as server:
    command = f"{courier} --kill; {sys.argv[2].replace('courier', str(courier))}; exit 7"
    flower = subprocess.Popen(command, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(supernode._until_ended(flower, server, work), flush=True)
    flower.kill()
"""


@pytest.mark.parametrize(("then", "status"), [("sleep 30", BROKEN), ("sleep 0.5; courier; sleep 2", 7)])
def test_a_courier_that_is_killed_breaks_a_supernode_that_sends_no_other(
    then: str, status: int, tmp_path: Path
) -> None:
    """Flower may wait for its answer for ever."""
    ended = subprocess.run(
        [sys.executable, "-c", LOST, tmp_path, then], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(ended.stdout) == status


def test_what_fails_at_first_is_told_and_what_broke_is_begun_again_ever_later() -> None:
    def lived(*codes: int, seconds: float = 1.0) -> tuple[int, list[float]]:
        left, ticks, pauses = list(codes), count(0.0, seconds), list[float]()
        said = list[str]()
        code = again_while_broken(lambda: left.pop(0), said.append, lambda: next(ticks), pauses.append)
        assert not left and len(said) == len(pauses)
        return code, pauses

    assert lived(0) == (0, []) and lived(1) == (1, [])
    assert lived(BROKEN, 1, 1, -9, 0) == (0, [1, 2, 4, 8])
    assert lived(-9, *[1] * 9, 0)[1][-3:] == [30, 30, 30]
    assert lived(-9, -9, -9, 0, seconds=100) == (0, [1, 1, 1])


@pytest.mark.parametrize(
    ("main", "status"),
    [
        ("threading.Thread(target=fail, daemon=True).start()\n    time.sleep(60)", BROKEN),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", BROKEN),
        ("sys.exit(3)", 3),
    ],
)
def test_a_supernode_of_which_a_part_fails_ends_whole(main: str, status: int, tmp_path: Path) -> None:
    """Flower's own goes on without it, and nobody hears of it any more."""
    (tmp_path / "broken-1.dist-info").mkdir()
    (tmp_path / "broken-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (tmp_path / "broken-1.dist-info" / "entry_points.txt").write_text("[console_scripts]\nbroken-node = broken:main\n")
    (tmp_path / "broken.py").write_text(
        f"import sys, threading, time\ndef fail():\n    raise OSError('500')\ndef main():\n    {main}\n"
    )
    code = ENDS_WHOLE.format(broken=BROKEN, name="broken-node")
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, timeout=30)
    assert ended.returncode == status and ("OSError: 500" in ended.stderr) == ("fail" in main)
