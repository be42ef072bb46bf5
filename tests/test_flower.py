"""The engine of Flower with real processes: SuperLink, SuperNodes, workers, on this machine."""

import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from federations import NODES, SCAFFOLD, submit, three

from benchmarks.federation import CERTIFICATES, SCRIPTS, free_port, until
from benchmarks.survivors import simulated
from fedpeft.deploy.status import read_status
from fedpeft.plan.reading import read_plan
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.storage.client_memory import Folder

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")


def test_a_client_killed_in_training_costs_a_round_its_update_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Three nodes, SCAFFOLD with its memories; a worker is killed by kill -9 in the first round and
    comes back."""
    stage = f'{{name = "crashes:Killed", folder = "{tmp_path}", client = "c001", round = 0}}'
    killed = f"stages = [{stage}]\n"
    with three(tmp_path, killed + SCAFFOLD) as here:
        process = submit(here)
        until((tmp_path / "killed").exists, 200, lambda: here.log("run"))
        here.processes["worker1"].wait(5)
        here.worker(tmp_path / "plan.toml", 1)
        assert process.wait(400) == 0, here.log("run")
        folder, plan = RunFolder(tmp_path / "run"), read_plan(tmp_path / "plan.toml")
        first, *_, last = [line["clients"]["c001"] for line in read_rounds(folder)]
        assert first["failed"] == "its worker ended in the middle of the work" and "weight" in last
        assert simulated(plan, folder, Folder(tmp_path / "here"))
        assert "not counted: c001: its worker ended in the middle of the work" in here.log("run")
        assert here.log("run").count("answered") == 3
        # An owner sees what the server counted. The training that was killed counts too.
        for number, begun in ((1, {1}), (2, set())):
            lines = [line["clients"][f"c00{number}"] for line in read_rounds(folder)]
            counted = {at for at, line in enumerate(lines, 1) if "weight" in line}
            [status] = read_status(tmp_path / f"node{number}")
            [answers] = status.runs.values()
            assert answers.rounds["fit"] == counted | begun
            assert answers.sent == sum(line["up"] for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_server_and_then_the_superlink_killed_in_a_round_cost_nothing(tmp_path: Path) -> None:
    """kill -9 of the ServerApp, and of the SuperLink, which takes the server's part with it: the
    follower says so, the nodes come back by themselves, and what is resumed ends as if nothing had
    been."""
    with three(tmp_path, SCAFFOLD.replace("rounds = 3", "rounds = 5")) as here:
        folder, again = RunFolder(tmp_path / "run"), ("run", "--resume", tmp_path / "run")
        process = submit(here)
        until(lambda: len(read_rounds(folder)) >= 1, 200, lambda: here.log("run"), process)
        [server] = here.inside("superlink", "flwr-serverapp")
        os.kill(server, signal.SIGKILL)
        assert process.wait(30) == 2
        assert f"go on with `fedpeft run --resume {tmp_path}/run`" in here.log("run")
        process, done = here.fedpeft("again", *again), len(read_rounds(folder))
        until(lambda: len(read_rounds(folder)) > done, 200, lambda: here.log("again"), process)
        here.kill("superlink")
        assert process.wait(100) == 2, here.log("again")
        here.superlink()
        assert here.fedpeft("once more", *again).wait(400) == 0, here.log("once more")
        assert simulated(read_plan(tmp_path / "plan.toml"), folder, Folder(tmp_path / "here"))
        assert not any(
            "failed" in each for line in read_rounds(folder) for each in line["clients"].values()
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_supernode_killed_in_a_round_costs_that_round_and_may_come_back(tmp_path: Path) -> None:
    """kill -9 of a SuperNode while its worker waits; Flower notices after a minute, and another
    takes its place."""
    gate = f'stages = [{{name = "crashes:Gate", folder = "{tmp_path}"}}]\n'
    with three(tmp_path, gate + SCAFFOLD.replace("rounds = 3", "rounds = 5")) as here:
        (tmp_path / "closed").touch()
        process = submit(here)
        until((tmp_path / "reached").exists, 200, lambda: here.log("run"))
        until(lambda: len(here.couriers(2)) == 1, 100)
        for pid in here.inside("supernode2"):
            os.kill(pid, signal.SIGKILL)
        (tmp_path / "closed").unlink()
        until((tmp_path / "run" / "rounds.jsonl").exists, 200, lambda: here.log("run"))
        here.supernode(2, "comes back")
        assert process.wait(400) == 0, here.log("run")
        rounds = [line["clients"]["c002"] for line in read_rounds(RunFolder(tmp_path / "run"))]
        assert "failed" in rounds[0] and "weight" in rounds[-1], here.log("run")
        plan = read_plan(tmp_path / "plan.toml")
        assert simulated(plan, RunFolder(tmp_path / "run"), Folder(tmp_path / "here"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tls_and_keys_keep_strangers_out(tmp_path: Path) -> None:
    """As docs/deploy.md has it: who has no key that is registered, or trusts another root, is not a
    node."""
    with three(tmp_path, NODES, tls=True) as here:
        keys = tmp_path / "keys"
        assert submit(here).wait(400) == 0, here.log("run")
        plan = read_plan(tmp_path / "plan.toml")
        assert simulated(plan, RunFolder(tmp_path / "run"), Folder(tmp_path / "here"))
        address = f"127.0.0.1:{here.port}"
        flags = (
            "--superlink",
            address,
            "--root-certificates",
            keys / "ca.crt",
            "--key",
            keys / "node0",
        )
        assert (
            here.fedpeft("doctor", "doctor", *flags, "--node", tmp_path / "node0").wait(60) == 0
        ), here.log("doctor")
        subprocess.run([CERTIFICATES, tmp_path / "other", "IP:127.0.0.1"], check=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / "own"],
            check=True,
        )
        for name, root, key in (
            ("no key", keys, None),
            ("own key", keys, tmp_path / "own"),
            ("other root", tmp_path / "other", keys / "node0"),
        ):
            words: list[str | Path] = [
                SCRIPTS / "flower-supernode",
                "--superlink",
                address,
                "--port",
                str(free_port()),
            ]
            words += ["--max-retries", "1", "--root-certificates", root / "ca.crt"]
            stranger = here.begin(
                name, *words, *([f"--auth-supernode-private-key={key}"] if key else [])
            )
            assert stranger.wait(60) != 0, here.log(name)
