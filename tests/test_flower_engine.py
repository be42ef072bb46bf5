"""Flower's engine and the nodes' workers in this process, on a grid that does to letters what networks do."""

import random
import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from contributions import own_data
from rounds import SCAFFOLD, points_plan

from fedpeft.core.letters import Letter, send
from fedpeft.core.stores import Folder, load_tensors
from fedpeft.core.tensors import equal
from fedpeft.core.types import State
from fedpeft.deploy.node import Node
from fedpeft.deploy.terms import node_site, server_site, terms_of
from fedpeft.engines.flower import Flower
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError, RunError
from fedpeft.loop import Ledger, federate, start
from fedpeft.plan import Plan, read_plan
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import create
from fedpeft.runs.summary import summarize
from fedpeft.site import Site, open_site

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")

PLAN = points_plan(partition={"name": "dirichlet", "clients": 3, "alpha": 10.0}, cohort=3, **SCAFFOLD)
TORCH = torch.__version__.partition("+")[0]
TRAINING = threading.Lock()  # all nodes of a town have one model
TOKEN = "0123456789abcdef" * 2


@dataclass
class Town:
    """A grid whose nodes are functions from a letter to answers: one, none, or several."""

    nodes: dict[int, Callable[[Letter], list[Letter]]]
    waiting: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        names: list[str | None] = []
        for message in messages:
            name = f"message {len(self.waiting)}"
            message.metadata.__dict__["_message_id"] = name
            self.waiting[name] = message
            names.append(name if message.metadata.dst_node_id in self.nodes else None)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Any]:
        """The answers, all of them."""
        from flwr.app import Message

        from fedpeft.engines.courier import content, opened

        made: list[Any] = []
        for name in names:
            asked = self.waiting[name]
            answers = self.nodes.get(asked.metadata.dst_node_id, silent)(opened(asked))
            made += [Message(content(answer), reply_to=asked) for answer in answers]
        return made


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(PLAN)


def node(site: Site, client: str, folder: Path) -> Callable[[Letter], list[Letter]]:
    worker = Node(site, client, folder, lambda words: None)

    def answer(letter: Letter) -> list[Letter]:
        with TRAINING:
            return [worker.answer(letter)]

    return answer


def town(site: Site, folder: Path) -> Town:
    return Town({7 + k: node(site, client, folder / client) for k, client in enumerate(site.data.clients)})


def engine(site: Site, grid: Town, said: list[str], deadline: float = 0.7) -> Flower:
    terms = {"token": TOKEN, **terms_of(site)}
    return Flower(grid, site.data.clients, terms, deadline, said.append)


def run(site: Site, made: Flower | InProcess, rounds: int | None = None) -> list[tuple[State, Ledger]]:
    return list(islice(federate(site.plan, made, start(site.plan, site.params())), rounds))


def silent(letter: Letter) -> list[Letter]:
    return []


def test_the_bits_and_the_ledger_of_one_process_with_what_clients_remember(site: Site, tmp_path: Path) -> None:
    said: list[str] = []
    made = engine(site, town(site, tmp_path), said, 30)
    made.gather()
    assert sorted(said) == [f"{client} is here" for client in site.data.clients]
    got, want = run(site, made), run(site, InProcess(site, Folder(tmp_path / "here")))
    assert all(equal(a.params, b.params) and x == y for (a, x), (b, y) in zip(got, want, strict=True))


def test_who_does_not_answer_is_a_named_failure_and_the_others_are_counted(site: Site, tmp_path: Path) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [])
    made.gather()
    grid.nodes[8] = silent
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "no answer within 0.7 s"}
    assert sorted(ledger.weights) == ["c000", "c002"]


def test_an_upload_that_is_broken_off_keeps_nobody_waiting_beyond_the_deadline(site: Site, tmp_path: Path) -> None:
    """Flower waits for the rest of it as long as it may come."""
    grid, mended = town(site, tmp_path), threading.Event()
    made = engine(site, grid, [])
    made.gather()
    honest = grid.nodes[8]
    grid.nodes[8] = lambda letter: honest(letter) if mended.wait() else []
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "no answer within 0.7 s"} and sorted(ledger.weights) == ["c000", "c002"]
    mended.set()
    made.deadline = 30
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed


def test_who_is_gone_fails_at_once_and_may_come_back_as_another_node(site: Site, tmp_path: Path) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [], deadline=30)
    made.gather()
    gone = grid.nodes.pop(8)
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "its node is not connected"}
    grid.nodes[99] = gone
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed and made.homes["c001"] == 99


def test_what_makes_no_sense_is_a_failure_and_nothing_is_counted_twice(site: Site, tmp_path: Path) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [])
    made.gather()
    grid.nodes[7] = lambda letter: [Letter({"kind": "what"})]
    honest = grid.nodes[8]
    grid.nodes[8] = lambda letter: honest(letter) * 5
    grid.nodes[9] = lambda letter: [Letter({"kind": "reply"}, b"no update")]
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed["c000"] == "its node's answer has no sense"
    assert "its checksum does not match" in ledger.failed["c002"]
    assert list(ledger.weights) == ["c001"]


def test_a_node_with_another_plan_does_not_serve(site: Site, tmp_path: Path) -> None:
    why, other = "the plan here is not the run's", replace(site, plan=replace(site.plan, seed=9))
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    grid.nodes[8] = node(other, "c001", tmp_path / "other")
    made = engine(site, grid, said)
    made.gather()
    assert any(words.startswith(f"c001 cannot serve: {why}") for words in said)
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed["c001"].startswith(why)


def test_strangers_and_doubles_are_not_taken_in(site: Site, tmp_path: Path) -> None:
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    grid.nodes[20] = node(site, "c000", tmp_path / "double")
    grid.nodes[21] = lambda letter: [Letter({"kind": "welcome", "client": "mallory", "differs": 7})]
    grid.nodes[22] = lambda letter: [Letter({"kind": "no", "reason": "\033[2J" + "!" * 9999})]
    made = engine(site, grid, said)
    made.gather()
    made._greet(made._here())
    made._welcome()
    assert made.homes == {"c000": 7, "c001": 8, "c002": 9}
    assert "mallory cannot serve: this run knows no client 'mallory'; it has c000, c001, c002" in said
    assert "a node cannot serve:  [2J" + "!" * 496 in said
    assert "c000 cannot serve: another node is 'c000' already" in said


def test_nobody_is_an_error_that_says_who_is_missing(site: Site) -> None:
    with pytest.raises(RunError, match=r"no client is here after 0.3 s; c000: no node of that name came; c001"):
        engine(site, Town({}), [], 0.3).gather()


HEAD = {"kind": "job", "run": "", "round": 0, "client": "c000", "phase": "fit", "seed": 1, "accepted": None}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "shell"}, "a letter of the kind 'shell' has no sense here"),
        ({"round": "0"}, "a job without a proper 'round': '0'"),
        ({"seed": None}, "a job without a proper 'seed': None"),
        ({"client": "c001"}, "for 'c001': this is 'c000'"),
        ({"run": "other-1"}, "a job of 'other-1'"),
        ({"token": "../../etc"}, "a job without a run's token"),
        (
            {"torch": "1.0.0"},
            f"another version of torch here than at the server: install the same ({TORCH} here, 1.0.0",
        ),
        ({"base": "0"}, "the base model here is not the run's"),
        ({"labels": None}, "the labels here are not the run's"),
    ],
)
def test_a_worker_does_only_its_own_plan(site: Site, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    worker = Node(site, "c000", tmp_path / "node", lambda words: None)
    own = {**HEAD, "run": f"{site.plan.name}-{site.plan.fingerprint}", "token": TOKEN, **worker.terms}
    assert worker.answer(Letter({**own, **changes})).head["kind"] == "failed"
    assert why in worker.answer(Letter({**own, **changes})).head["reason"]
    assert not (tmp_path / "node").exists()


OWN = """
name = "own"
task = {name = "module", module = "torch.nn:Linear", arguments = {in_features = 2, out_features = 3}}
data = {name = "arrays", path = "server.npz"}
method = "full"
rounds = 1
cohort = 3
nodes = ["north", "south", "west"]
classes = ["c", "b", "a"]
local = {epochs = 10, lr = 0.1, batch_size = 8}
"""


def test_nodes_with_data_of_their_own_and_none_at_the_server(tmp_path: Path) -> None:
    plan, said = read_plan(OWN), []  # type: ignore[var-annotated]
    server = server_site(plan, said.append)
    assert said and said[0].startswith("the server has no held-out examples, so nothing is measured: there is no file")
    grid = Town({})
    for number, (name, labels) in enumerate((("north", "ab"), ("south", "cb"), ("west", "ca"))):
        mine = node_site(plan, str(own_data(tmp_path / f"{name}.npz", labels)), name)
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


def refused(plan: Plan, words: str, **changes: Any) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        node_site(replace(plan, **changes), "nowhere", "a")


def test_a_node_must_be_named_by_the_plan_and_the_labels_too() -> None:
    refused(PLAN, "the plan names no node 'a': its nodes are none")
    refused(PLAN, "the plan names no node 'a': its nodes are b, c", nodes=("b", "c"))
    refused(PLAN, "the plan does not name the labels", nodes=("a", "b"))
    refused(
        PLAN,
        "personal tensors stay with their nodes",
        personal=("*",),
        local=points_plan().local,
        server=points_plan().server,
    )
    with pytest.raises(PlanError, match="nodes must be names, each once"):
        replace(PLAN, nodes=("a", "a"))
    with pytest.raises(PlanError, match="deadline must be a positive number of seconds"):
        replace(PLAN, deadline=-1.0)
    assert replace(PLAN, deadline=5.0).fingerprint == PLAN.fingerprint


def test_a_superlink_that_stumbles_costs_nothing(site: Site, tmp_path: Path) -> None:
    """It answers 500 now and then; a 403, which says that the run is over, ends it."""
    import httpx

    def fails(code: int) -> httpx.HTTPStatusError:
        asked = httpx.Request("POST", "http://superlink")
        return httpx.HTTPStatusError("busy", request=asked, response=httpx.Response(code, request=asked))

    @dataclass
    class Stumbling:
        """A town where every other call fails, as it comes."""

        town: Town
        code: int = 500
        draws: random.Random = field(default_factory=lambda: random.Random(1))

        def _or_fail(self) -> None:
            if self.draws.random() < 0.5:
                raise fails(self.code)

        def get_node_ids(self) -> list[int]:
            self._or_fail()
            return self.town.get_node_ids()

        def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
            self._or_fail()
            return self.town.push_messages(messages)

        def pull_messages(self, names: Iterable[str]) -> list[Any]:
            self._or_fail()
            return self.town.pull_messages(names)

    grid, said = Stumbling(town(site, tmp_path)), []  # type: ignore[var-annotated]
    made = engine(site, grid, said, 30)  # type: ignore[arg-type]
    made.gather()
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed and "the SuperLink stumbles: busy" in said
    grid.code = 403
    with pytest.raises(httpx.HTTPStatusError):
        run(site, made, rounds=1)


def test_a_disk_that_fails_at_a_node_is_its_clients_failure(site: Site, tmp_path: Path) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [], 30)
    made.gather()
    (tmp_path / "c001").mkdir()
    (tmp_path / "c001" / "clients").write_text("a file where the memory's folder should be")
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "the disk of its node fails: Not a directory"}


def test_a_worker_does_not_train_for_who_is_gone(site: Site, tmp_path: Path) -> None:
    """A slow node would else do the work of rounds that are over, one after the other, and never catch up."""
    said: list[str] = []
    worker = Node(site, "c000", tmp_path / "node", said.append)
    own = {**HEAD, "run": f"{site.plan.name}-{site.plan.fingerprint}", "token": TOKEN, **worker.terms}
    asking, asked = socket.socketpair()
    with asked:
        send(asking, Letter(own, site.plan.downlink.encode(start(site.plan, site.params()).params)))
        asking.close()
        worker._serve(asked)
    assert said == ["a job came too late and is left out"]
    assert not (tmp_path / "node").exists()


def test_a_secure_sum_ends_in_the_bits_of_one_process_and_survives_who_drops_out(tmp_path: Path) -> None:
    """Four messages to each node in a round; the second round loses one who has shared its secrets already."""
    secure = {"exchange": {"name": "secure", "threshold": 2}, "weighting": "uniform", "cohort": 3, "rounds": 2}
    site = open_site(points_plan(partition={"name": "dirichlet", "clients": 3, "alpha": 10.0}, **secure))
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    made = engine(site, grid, said, 2)
    made.gather()
    rounds = federate(site.plan, made, start(site.plan, site.params()))
    state, ledger = next(rounds)
    [(wanted, _)] = run(site, InProcess(site, Folder(tmp_path / "here")), rounds=1)
    assert equal(state.params, wanted.params) and ledger.bytes_up > 0 and not ledger.failed
    honest = grid.nodes[8]
    grid.nodes[8] = lambda letter: silent(letter) if letter.head.get("phase") == "masked" else honest(letter)
    after, ledger = next(rounds)
    assert ledger.failed == {"c001": "no answer within 2 s"} and sorted(ledger.weights) == ["c000", "c002"]
    assert not equal(after.params, state.params)
