"""Couriers that are forked from a process that has imported everything already."""

import json
import subprocess
import sys
from pathlib import Path

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
