"""Slow nodes, bad links, full disks and other libraries: a federation of real processes goes on, or
says why not."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from federations import NODES, SCAFFOLD, submit, three

from benchmarks import link
from benchmarks.federation import Federation, until
from benchmarks.survivors import simulated
from fedpeft.core.tensors import equal
from fedpeft.engines.flower.engine import AGAIN
from fedpeft.engines.inprocess import InProcess
from fedpeft.oneshot.keys import make_signing_key
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.storage.client_memory import Folder

pytestmark = [
    pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]
GATE = 'stages = [{{name = "crashes:Gate", folder = "{}", client = "c002"}}]\n'
LARGE = (  # an update of 480 kB, the correction included
    SCAFFOLD.replace('"parts:Points"', '{name = "parts:Points", features = 20000}')
    .replace('"parts:Blobs"', '{name = "parts:Blobs", features = 20000}')
    .replace("lr = 0.1", "lr = 0.001")
)
links = pytest.mark.skipif(
    not link.possible(), reason="a network of its own needs Linux, root and /dev/net/tun"
)


def of(here: Federation, client: str) -> list[dict[str, object]]:
    """What the ledger tells of a client, by round."""
    return [line["clients"][client] for line in read_rounds(RunFolder(here.root / "run"))]


def as_simulated(here: Federation) -> bool:
    return simulated(
        read_plan(here.root / "plan.toml"), RunFolder(here.root / "run"), Folder(here.root / "here")
    )


def at_work(here: Federation, name: str) -> float:
    """Seconds of processor time that a process has had."""
    ticks = (
        Path(f"/proc/{here.processes[name].pid}/stat")
        .read_text()
        .rpartition(") ")[2]
        .split()[11:13]
    )
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def test_a_node_slower_than_the_deadline_costs_its_updates_and_catches_up(tmp_path: Path) -> None:
    """It trains until after the first deadline; its late answer is not counted, and it takes part
    again later."""
    (tmp_path / "closed").touch()
    plan = "deadline = 60\n" + GATE.format(tmp_path) + SCAFFOLD.replace("rounds = 3", "rounds = 4")
    with three(tmp_path, plan) as here:
        process = submit(here)
        until((tmp_path / "run" / "rounds.jsonl").exists, 400, lambda: here.log("run"), process)
        (tmp_path / "closed").unlink()
        assert process.wait(600) == 0, here.log("run")
        first, *_, last = of(here, "c002")
        assert first["failed"] == "no answer within 60 s" and "weight" in last
        assert "round 1/4" in here.log(
            "run"
        ) and "not counted: c002: no answer within 60 s" in here.log("run")
        assert as_simulated(here)


def test_a_worker_that_is_not_there_and_a_courier_that_is_killed_cost_a_round_their_updates(
    tmp_path: Path,
) -> None:
    """kill -9 of a worker before the round and of Flower's own process while another worker
    trains."""
    (tmp_path / "closed").touch()
    plan = "deadline = 100\n" + GATE.format(tmp_path) + SCAFFOLD.replace("rounds = 3", "rounds = 5")
    with three(tmp_path, plan) as here:
        here.kill("worker0")
        process = submit(here)
        until((tmp_path / "reached").exists, 400, lambda: here.log("run"), process)
        until(lambda: len(here.couriers(2)) == 1, 100)
        [courier] = here.couriers(2)
        os.kill(courier, signal.SIGKILL)
        until((tmp_path / "run" / "rounds.jsonl").exists, 400, lambda: here.log("run"), process)
        here.worker(tmp_path / "plan.toml", 0)
        # Before rounds are short.
        until(lambda: here.log("worker0").count("start the SuperNode beside it") == 2, 400)
        # Its node may have said in this round that it cannot serve, and is not asked again before.
        time.sleep(AGAIN)
        (tmp_path / "closed").unlink()
        assert process.wait(600) == 0, here.log("run")
        first, *_, last = of(here, "c000")
        assert first["failed"] == "its node is not connected" and "weight" in last
        first, *_, last = of(here, "c002")
        assert (
            str(first["failed"]).startswith("its node did not do the work: ") and "weight" in last
        )
        assert as_simulated(here)


def test_nodes_with_keys_that_are_killed_or_lose_a_part_come_back(tmp_path: Path) -> None:
    """kill -9 of the process of Flower's that begins couriers, of Flower's SuperNode, and of all at
    a node, which is
    begun again at once: the SuperLink refuses a key whose node it does not yet take for gone."""
    (tmp_path / "closed").touch()
    gate = GATE.format(tmp_path).replace("c002", "c000")
    plan = (
        "deadline = 300\n"
        + gate
        + SCAFFOLD.replace("clients = 3", "clients = 4").replace("cohort = 3", "cohort = 4")
    )
    with three(tmp_path, plan, tls=True, nodes=4) as here:
        process = submit(here)
        until((tmp_path / "reached").exists, 400, lambda: here.log("run"), process)
        until(lambda: not any(here.couriers(k) for k in (1, 2, 3)), 100)
        [couriers], [flower] = (
            here.inside("supernode1", "flower-superexec"),
            here.inside("supernode2", "flower_supernode"),
        )
        for pid in (couriers, flower, *here.inside("supernode3")):
            os.kill(pid, signal.SIGKILL)
        here.processes["supernode3"].wait()
        here.supernode(3)
        again = "SuperNode ID"
        until(lambda: all(here.log(f"supernode{k}").count(again) == 2 for k in (1, 2, 3)), 200)
        (tmp_path / "closed").unlink()
        assert process.wait(900) == 0, here.log("run")
        assert all("weight" in of(here, f"c00{k}")[-1] for k in range(4))
        assert as_simulated(here)


def test_a_node_with_another_version_of_a_library_is_named_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other" / "peft-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 99.0\n")
    with three(tmp_path, "deadline = 60\n" + SCAFFOLD) as here:
        here.kill("worker2")
        path = f"PYTHONPATH={other.parent}{os.pathsep}{here.environment('user')['PYTHONPATH']}"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "fedpeft",
            "node",
            tmp_path / "plan.toml",
            "--client",
            "2",
            "--yes",
            "--allow-code",
            "parts",
        ]
        here.begin("worker2", "env", path, *command, "--out", tmp_path / "node2", home="user")
        until(
            lambda: here.log("worker2").count("start the SuperNode") == 2,
            200,
            process=here.processes["worker2"],
        )
        assert submit(here).wait(600) == 0, here.log("run")
        why = "another version of peft here than at the server: install the same (99.0 here, "
        assert all(str(each["failed"]).startswith(why) for each in of(here, "c002"))
        assert f"not counted: c002: {why}" in here.log("run")
        assert as_simulated(here)


@links
def test_a_slow_and_lossy_link_costs_time_only(tmp_path: Path) -> None:
    """200 ms and 2 % of the packets each way, 1 Mbit/s."""
    slow = ("--delay", "0.2", "--loss", "0.02", "--rate", "125000")
    with three(tmp_path, LARGE, links={2: slow}) as here:
        assert submit(here).wait(900) == 0, here.log("run")
        assert as_simulated(here)
        assert all("weight" in each for each in of(here, "c002"))


def half_sent(here: Federation, own: Path, cut: Path) -> "subprocess.Popen[bytes]":
    """The run, when a part of the first update of a client has passed its link, which is then
    cut."""
    process = submit(here)
    until((own / "reached").exists, 400, lambda: here.log("run"), process)
    cut.with_suffix(".armed").touch()
    (own / "closed").unlink()
    until(cut.exists, 100, lambda: here.log("run"), process)
    return process


@links
def test_a_link_cut_in_the_middle_of_an_upload_costs_a_round_its_update(tmp_path: Path) -> None:
    """It is cut after 60 kB of 480, and mended when the round is over; then another client holds a
    round up, in which
    Flower sees that the node is back: rounds are of seconds, and its heartbeats are not."""
    cut, (other, own) = tmp_path / "cut", (tmp_path / client for client in ("c001", "c002"))
    for folder in (other, own):
        folder.mkdir()
    (own / "closed").touch()
    gates = [
        f'{{name = "crashes:Gate", folder = "{one}", client = "{one.name}"}}'
        for one in (other, own)
    ]
    plan = f"deadline = 300\nstages = [{', '.join(gates)}]\n" + LARGE.replace(
        "rounds = 3", "rounds = 5"
    )
    flags = ("--rate", "125000", "--cut", str(cut), "--cut-after", "60000")
    with three(tmp_path, plan, links={2: flags}) as here:
        process = half_sent(here, own, cut)
        until((tmp_path / "run" / "rounds.jsonl").exists, 400, lambda: here.log("run"), process)
        (other / "closed").touch()
        cut.unlink()
        time.sleep(60)
        (other / "closed").unlink()
        assert process.wait(900) == 0, here.log("run")
        first, *_, last = of(here, "c002")
        assert first["failed"] == "its node went in the middle of its answer" and "weight" in last
        assert read_rounds(RunFolder(tmp_path / "run"))[0]["seconds"] < 120
        assert as_simulated(here)


@links
def test_a_node_killed_in_the_middle_of_an_upload_costs_a_round_its_update(tmp_path: Path) -> None:
    """kill -9 of all at a node but its worker after 60 kB of 480, and begun again: it is another
    node to Flower."""
    cut, own = tmp_path / "cut", tmp_path / "c002"
    own.mkdir()
    (own / "closed").touch()
    plan = "deadline = 300\n" + GATE.format(own) + LARGE.replace("rounds = 3", "rounds = 4")
    flags = ("--rate", "125000", "--cut", str(cut), "--cut-after", "60000")
    with three(tmp_path, plan, links={2: flags}) as here:
        process = half_sent(here, own, cut)
        for pid in here.inside("supernode2"):
            os.kill(pid, signal.SIGKILL)
        here.supernode(2, "comes back")
        assert process.wait(900) == 0, here.log("run")
        first, *_, last = of(here, "c002")
        assert first["failed"] == "its node went in the middle of its answer" and "weight" in last
        assert as_simulated(here)


def test_a_worker_killed_while_it_trains_costs_a_round_its_update(tmp_path: Path) -> None:
    """kill -9 some steps into the first training of many; it is started again."""
    with three(tmp_path, SCAFFOLD.replace("lr = 0.1", "lr = 0.1, epochs = 3000")) as here:
        idle = at_work(here, "worker1")
        process = submit(here)
        until(lambda: at_work(here, "worker1") > idle + 1, 400, lambda: here.log("run"), process)
        here.kill("worker1")
        assert "bytes after" not in here.log("worker1")
        here.worker(tmp_path / "plan.toml", 1)
        assert process.wait(900) == 0, here.log("run")
        first, *_, last = of(here, "c001")
        assert first["failed"] == "its worker ended in the middle of the work" and "weight" in last
        assert as_simulated(here)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")
def test_a_full_disk_at_the_server_loses_nothing(tmp_path: Path) -> None:
    """Of the run's folder. With room again, the run goes on from its last round."""
    disk = tmp_path / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "small", disk], check=True)
    try:
        with three(tmp_path, LARGE) as here:
            process = submit(here)
            until((disk / "rounds.jsonl").exists, 400, lambda: here.log("run"), process)
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
            assert process.wait(400) == 2
            assert f"the disk of {disk} has no room left" in here.log("run"), here.log("run")
            filler.unlink()
            assert here.fedpeft("again", "run", "--resume", disk).wait(400) == 0, here.log("again")
            assert as_simulated(here)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own needs root")
def test_a_full_disk_under_the_superlinks_database_loses_nothing(tmp_path: Path) -> None:
    """The SuperLink answers with errors: Flower's nodes break and begin again; the run must be
    resumed as a rule."""
    disk = tmp_path / "database"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "small", disk], check=True)
    (tmp_path / "closed").touch()
    try:
        # One client's lone update is far from the others'.
        settings = "deadline = 60\nnorm_factor = 1e6\n"
        with three(tmp_path, settings + GATE.format(tmp_path) + LARGE) as here:
            process = submit(here)
            until((tmp_path / "reached").exists, 400, lambda: here.log("run"), process)
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
            (tmp_path / "closed").unlink()

            def broke() -> bool:
                return any("begins again" in here.log(f"supernode{k}") for k in range(3))

            until(lambda: broke() or process.poll() is not None, 200, lambda: here.log("run"))
            filler.unlink()
            code = process.wait(400)
            if code:  # the server's part could not say that it lives, or not send a job
                assert code == 2 and "go on with `fedpeft run --resume" in here.log("run"), (
                    here.log("run")
                )
                assert here.fedpeft("again", "run", "--resume", tmp_path / "run").wait(400) == 0, (
                    here.log("again")
                )
                assert all("weight" in of(here, f"c00{k}")[-1] for k in range(3))
            assert as_simulated(here)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_secure_sum_over_a_federation_has_the_bits_of_one_process(tmp_path: Path) -> None:
    """Five messages to each node in a round, with keys that the nodes sign; in the end the server
    has the sums, and the parameters of a simulation in which nobody signs."""
    lines = [make_signing_key(f"c{k:03}", tmp_path)[1].read_text().strip() for k in range(3)]
    exchange = f'{{name = "secure", threshold = 2, keys = {json.dumps(lines)}}}'
    secure = f'weighting = "uniform"\nexchange = {exchange}\n'
    with three(tmp_path, secure + NODES.replace("rounds = 3", "rounds = 2")) as here:
        assert submit(here).wait(900) == 0, here.log("run")
        plan = read_plan(tmp_path / "plan.toml", ["exchange.keys=[]"])
        site = open_site(plan)
        *_, (state, _) = federate(
            plan, InProcess(site, Folder(tmp_path / "here")), start(plan, site.params())
        )
        saved = load_checkpoint(
            RunFolder(tmp_path / "run").checkpoint, read_plan(tmp_path / "plan.toml")
        )
        assert saved is not None and equal(saved.state.flat, state.flat)
        assert all("weight" in each for each in of(here, "c001"))
