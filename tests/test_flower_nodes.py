"""What a node's worker does and does not do for a run, in this process."""

import json
import re
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from contributions import own_data
from rounds import points_plan
from running import fedpeft
from town import PLAN, TOKEN, Town, engine, node, run, town

from fedpeft.deploy.node import Node
from fedpeft.deploy.refusals import REFUSALS
from fedpeft.deploy.terms import node_site, server_site
from fedpeft.errors import PlanError
from fedpeft.oneshot.own_data import OwnData
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.plan.tables import Nodes
from fedpeft.rounds.loop import start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.routing.personal import Personal
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import create
from fedpeft.runs.summary import summarize
from fedpeft.storage.files import load_tensors
from fedpeft.wire.sockets import Envelope, send

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")

TORCH = torch.__version__.partition("+")[0]
HEAD = {
    "kind": "job",
    "run": "",
    "round": 0,
    "client": "c000",
    "phase": "fit",
    "seed": 1,
    "accepted": None,
    "step": 0,
}


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(PLAN)


def test_a_node_with_another_plan_does_not_serve(site: Site, tmp_path: Path) -> None:
    why, other = "the plan here is not the run's", replace(site, plan=replace(site.plan, seed=9))
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    heard = list[str]()
    refused = Node(other, "c001", tmp_path / "other", heard.append)
    grid.nodes[8] = lambda envelope: [refused.answer(envelope)]
    made = engine(site, grid, said)
    made.gather()
    # Its own owner is told too, once, though it is asked again and again.
    refused.answer(Envelope({**made.terms, "kind": "hello"}))
    assert [words.startswith(f"this node cannot serve the run that asks: {why}") for words in heard
            ] == [True]  # fmt: skip
    assert any(words.startswith(f"c001 cannot serve: {why}") for words in said)
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed["c001"].startswith(why)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "shell"}, "an envelope of the kind 'shell' has no sense here"),
        ({"round": "0"}, "a job without a proper 'round': '0'"),
        ({"seed": None}, "a job without a proper 'seed': None"),
        ({"step": None}, "a job without a proper 'step': None"),
        ({"client": "c001"}, "for 'c001': this is 'c000'"),
        ({"run": "other-1"}, "a job of 'other-1'"),
        ({"token": "../../etc"}, "a job without a run's token"),
        (
            {"torch": "1.0.0"},
            f"another version of torch here than at the server: install the same ({TORCH} here, "
            "1.0.0",
        ),
        ({"base": "0"}, "the base model here is not the run's"),
        ({"labels": None}, "the labels here are not the run's"),
    ],
)
def test_a_worker_does_only_its_own_plan(
    site: Site, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    worker = Node(site, "c000", tmp_path / "node", lambda words: None)
    own = {
        **HEAD,
        "run": f"{site.plan.name}-{site.plan.fingerprint}",
        "token": TOKEN,
        **worker.terms,
    }
    assert worker.answer(Envelope({**own, **changes})).head["kind"] == "failed"
    assert why in worker.answer(Envelope({**own, **changes})).head["reason"]
    # Its owner may read of it, and nothing was answered.
    kept = [file.name for file in (tmp_path / "node").rglob("*") if file.is_file()]
    assert kept == [REFUSALS]


OWN = """
name = "own"
data = {name = "arrays", path = "server.npz"}
task.name = "module"
task.module = "torch.nn:Linear"
task.arguments = {in_features = 2, out_features = 3}
method = "full"
rounds = 1
cohort = 3
nodes = ["north", "south", "west"]
classes = ["c", "b", "a"]
local = {epochs = 10, lr = 0.1, batch_size = 8}
"""


def test_nodes_with_data_of_their_own_and_none_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, said = read_plan(OWN), []  # type: ignore[var-annotated]
    server = server_site(plan, said.append)
    assert said and said[0].startswith(
        "the server has no held-out examples, so nothing is measured: there is no file"
    )
    grid = Town({})
    for number, (name, labels) in enumerate((("north", "ab"), ("south", "cb"), ("west", "ca"))):
        mine = node_site(plan, OwnData(str(own_data(tmp_path / f"{name}.npz", labels))), name)
        grid.nodes[number] = node(mine, name, tmp_path / name)
    made = engine(server, grid, said, 30)
    made.gather()
    folder = create(server.plan, tmp_path / "run")
    [record] = execute(folder, server, made)
    assert not record.failed and record.held_out == {} and len(record.clients) == 3
    [bias, weight] = [x for _, x in sorted(load_tensors(folder.checkpoint)[0].items())]
    points = torch.tensor([[0.0, 5.0], [-5.0, 0.0], [5.0, 0.0]])  # c, b, a
    assert (points @ weight.T + bias).argmax(1).tolist() == [0, 1, 2]
    assert summarize(folder, server)["accuracy_last"] is None
    ended = fedpeft("evaluate", folder.path)
    assert ended.exit_code == 2 and "there is no file 'server.npz'" in ended.stderr
    # A server that has held-out examples later, of two of the labels.
    monkeypatch.setenv("FEDPEFT_DATA", str(own_data(tmp_path / "server.npz", "ab").parent))
    ended = fedpeft("evaluate", folder.path, "--json")
    assert json.loads(ended.stdout)["held_out"]["accuracy"] == 1.0, ended.output
    ended = fedpeft("evaluate", folder.path, "--per-client")
    assert ended.exit_code == 2 and "is of nodes with data of their own" in ended.stderr


@pytest.mark.parametrize("where", ["owners", "server"])
def test_an_owner_is_measured_on_the_share_that_the_plan_sets_apart(
    where: str, tmp_path: Path
) -> None:
    """Whoever measures: a later plan may ask the owner how the model does on the same share."""
    own = OwnData(str(own_data(tmp_path / "north.npz", "ab")))
    settings = {"partition.held_out": 0.25, "evaluate_at": [where]}
    pairs = [f"{key}={value!r}" for key, value in settings.items()]
    whole = node_site(read_plan(OWN), own, "north").data
    data = node_site(read_plan(OWN, pairs), own, "north").data
    held = sum(int(batch["mask"].sum()) for batch in data.held_out("north"))
    assert held == whole.size("north") // 4
    assert data.size("north") + held == whole.size("north")


def test_an_owner_that_has_nothing_to_be_measured_on_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = OwnData(str(own_data(tmp_path / "north.npz", "ab")))
    for where in ("server", "owners"):
        node_site(read_plan(OWN, [f"evaluate_at=['{where}']"]), own, "north")
        told = "north has no held-out examples, so that it trains and measures nothing"
        assert (told in caplog.text) == (where == "owners")


def refused(plan: Plan, words: str, **changes: Any) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        node_site(replace(plan, **changes), OwnData("nowhere"), "a")


def test_a_node_must_be_named_by_the_plan_and_the_labels_too() -> None:
    refused(PLAN, "the plan names no node 'a': its nodes are none")
    refused(PLAN, "the plan names no node 'a': its nodes are b, c", nodes=Nodes(("b", "c")))
    refused(PLAN, "the plan does not name the labels", nodes=Nodes(("a", "b")))
    refused(
        PLAN,
        "personal tensors stay with their nodes",
        routing=(Personal(("*",)),),
        local=points_plan().local,
        server=points_plan().server,
    )
    with pytest.raises(ValueError, match="names must be those of the nodes, each once"):
        Nodes(("a", "a"))
    with pytest.raises(ValueError, match="deadline must be a positive number of seconds"):
        Nodes(deadline=-1.0)
    assert replace(PLAN, nodes=Nodes(deadline=5.0)).fingerprint == PLAN.fingerprint


def test_a_disk_that_fails_at_a_node_is_its_clients_failure(site: Site, tmp_path: Path) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [], 30)
    made.gather()
    (tmp_path / "c001").mkdir()
    (tmp_path / "c001" / "clients").write_text("a file where the memory's folder should be")
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "the disk of its node fails: Not a directory"}


def test_a_worker_does_not_train_for_who_is_gone(site: Site, tmp_path: Path) -> None:
    """A slow node would else do the work of rounds that are over, one after the other, and never
    catch up."""
    said: list[str] = []
    worker = Node(site, "c000", tmp_path / "node", said.append)
    own = {
        **HEAD,
        "run": f"{site.plan.name}-{site.plan.fingerprint}",
        "token": TOKEN,
        **worker.terms,
    }
    asking, asked = socket.socketpair()
    with asked:
        send(asking, Envelope(own, encode_start(site.plan, start(site.plan, site.params()))))
        asking.close()
        worker._serve(asked)
    assert said == ["a job came too late and is left out"]
    assert not (tmp_path / "node").exists()
