"""Play a server that asks nodes for more than their owners agreed to, and count what they answer.

    python -m tools.curious_server                     every kind of plan
    python -m tools.curious_server plain "secure sum"  these
    python -m tools.curious_server --out docs/security.md     into the page, between its marks

A whole run of each kind of plan is led on real nodes (`deploy.node.Node`), by envelopes. Before
each question of the plan one node is asked whatever the plan does not ask, twice; then the question
itself, twice; then the same in other words. All but the plan's own questions must be refused with
a reason, and the plan's own twice must get the same bytes. The command ends with 1 where it is not
so.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from fedpeft.core.conversation import PARAMS
from fedpeft.core.signatures import KIND, public_of
from fedpeft.core.tensors import layout
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.deploy.node import Node
from fedpeft.deploy.terms import terms_of
from fedpeft.plan.calibration import select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import plan_at, read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.wire.sockets import SOCKET, Envelope, ask
from tools.curious_questions import Asking, Question, pack_job

TOKEN = "0123456789abcdef" * 2
CLIENTS = 5
SMALL: dict[str, Any] = {
    "name": "curious",
    "task": "image-classification",
    "data": {"name": "digits", "subset": 60},
    "partition": {"name": "iid", "clients": CLIENTS},
    "method": "head",
    "rounds": 3,
    "cohort": 4,
    "local": {"batch_size": 8, "lr": 0.1},
}
"""A plan of registered parts, with the digits of the package."""
NOISY = {"weighting": "uniform", "delta": 1e-3, "accountant": "rdp"}
SECURE = {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"}
DP_SGD = {"name": "dp_sgd", "noise_multiplier": 1.0, "steps": 2, "rate": 0.5, "batch_size": 8}
LOCAL_DP = {"stages": [{"name": "local_dp", "noise_multiplier": 1.0}], **NOISY}
OWN_HEAD = {"routing": [{"name": "personal", "patterns": ["*.bias"]}]}


def private_key(client: ClientId) -> bytes:
    """A client's signing key of these trials."""
    return blake2b(client.encode(), digest_size=32).digest()


def signed() -> dict[str, Any]:
    """A secure sum in which clients sign."""
    names = [f"c{k:03}" for k in range(CLIENTS)]
    lines = [f"{KIND}{public_of(private_key(name))} {name}" for name in names]
    return {**SECURE, "exchange": {"name": "secure", "threshold": 3, "keys": lines}}


def kinds() -> dict[str, dict[str, Any]]:
    """By what it is called, what a kind of plan sets."""
    return {
        "plain": {},
        "plain, class means": {"algorithms": ["class_means"]},
        "plain, vote": {"algorithms": ["vote"]},
        "plain, q_ffl": {"algorithms": ["q_ffl"]},
        "plain, minimax": {"algorithms": ["minimax"], "weighting": "uniform"},
        "plain, covariances": {"algorithms": ["class_covariances"]},
        "plain, ridge head": {"algorithms": ["ridge_head"]},
        "plain, virtual features": {"algorithms": ["virtual_features"]},
        "plain, fisher": {"algorithms": ["fisher"]},
        "plain, fedmfs": {
            "algorithms": [
                {"name": "fedmfs", "groups": {"slopes": ["*.weight"], "offsets": ["*.bias"]}}
            ],
        },
        "class means in a phase": {
            "phase": [{"until": 2, "set": ["algorithms=['class_means']"]}],
        },
        "plain, error feedback": {
            "uplink": {"name": "topk", "density": 0.5},
            "stages": ["error_feedback"],
        },
        "local_dp": LOCAL_DP,
        "client_dp": {"stages": [{"name": "client_dp", "noise_multiplier": 1.0}], **NOISY},
        "dp_sgd": {"local": DP_SGD, **NOISY},
        "dp_sgd, own head": {"local": DP_SGD, **NOISY, **OWN_HEAD},
        "secure sum": SECURE,
        "secure sum, keys": signed(),
        "secure sum, local_dp": {**SECURE, **LOCAL_DP},
    }


@dataclass(frozen=True)
class Outcome:
    """What became of a question that is not the plan's.

    Attributes:
      reason: why it is refused; empty where it was answered.
    """

    kind: str
    way: str
    what: str
    reason: str


class Answering(Protocol):
    """Who answers envelopes: a node of this process, or one behind a socket."""

    def answer(self, asked: Envelope) -> Envelope: ...


@dataclass(frozen=True)
class AtSocket:
    """A worker of `fedpeft node`, in a process of its own.

    Attributes:
      folder: what it was given as --out.
    """

    folder: Path

    def answer(self, asked: Envelope) -> Envelope:
        """What comes back.

        Raises:
          OSError: nobody answers within a minute.
        """
        return ask(self.folder / SOCKET, asked, 60.0)


@dataclass
class Curious:
    """An engine whose clients are nodes. One of them, the target, is asked for more.

    Attributes:
      outcomes: of what the plan does not ask.
      asked: how many questions of the plan came to the target; `own`: how many of them it answered;
        `same`: how many of them twice in the same bytes.
    """

    kind: str
    nodes: Mapping[ClientId, Answering]
    target: ClientId
    asking: Asking
    outcomes: list[Outcome] = field(default_factory=list)
    asked: int = 0
    own: int = 0
    same: int = 0

    @property
    def clients(self) -> Sequence[ClientId]:
        return list(self.nodes)

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        """Ask the plan's questions, and the target whatever else there is."""
        for job in jobs:
            envelope = pack_job(job, self.asking.token, self.asking.terms)
            if job.client == self.target:
                self.asked += 1
                self._try(self.asking.beside(job, answered=self.own > 0))
            told = self.nodes[job.client].answer(envelope)
            if job.client == self.target and told.head["kind"] == "reply":
                self.own += 1
                self.same += self.nodes[job.client].answer(envelope) == told
                self._try(self.asking.again(job))
            yield reply_of(job, told)

    def _try(self, questions: Iterable[Question]) -> None:
        """Ask each twice."""
        for one in questions:
            for _ in range(2):
                told = self.nodes[self.target].answer(one.envelope)
                reason = str(told.head["reason"]) if told.head["kind"] == "failed" else ""
                self.outcomes.append(Outcome(self.kind, one.way, one.what, reason))


def reply_of(job: Job, told: Envelope) -> Reply | Failure:
    """What an engine makes of a node's envelope."""
    if told.head["kind"] == "reply":
        return Reply(job.client, told.body)
    return Failure(job.client, str(told.head["reason"]))


def target_of(plan: Plan, clients: Sequence[ClientId]) -> tuple[ClientId, list[int]]:
    """A client that the plan draws in the first round and leaves out in another, or else the first
    one, and the rounds for which the plan draws others."""
    drawn = [select_cohort(plan, clients, k) for k in range(plan.rounds)]
    idle = {c: [k for k, cohort in enumerate(drawn) if c not in cohort] for c in clients}
    some = [c for c in clients if idle[c] and 0 not in idle[c]]
    target = next(iter(some), clients[0])
    return target, idle[target]


def interrogate(
    kind: str,
    settings: Mapping[str, Any],
    folder: Path,
    behind: Callable[[Site, ClientId, Path], Answering] | None = None,
) -> Curious:
    """Lead a run of a plan on nodes, and ask one of them for more.

    Args:
      settings: the plan.
      folder: where the nodes keep what they remember.
      behind: gives the target; without it, it is a node of this process too.

    Raises:
      RuntimeError: another node did not answer an honest question.
    """
    site = open_site(read_plan(dict(settings)))
    plan, clients = site.plan, list(site.data.clients)
    target, idle = target_of(plan, clients)
    nodes: dict[ClientId, Answering] = {c: node_at(site, c, folder / c) for c in clients}
    if behind is not None:
        nodes[target] = behind(site, target, folder / target)
    asking = Asking(plan, TOKEN, terms_of(site), partial(phases_alike, site), idle)
    curious = Curious(kind, nodes, target, asking)
    for _, ledger in federate(plan, curious, start(plan, site.params())):
        if set(ledger.failed) - {target}:
            raise RuntimeError(f"{kind}: an honest question failed: {ledger.failed}")
    return curious


def phases_alike(site: Site, round: int) -> list[str]:
    """The phases of a round whose questions may have the words of each other: class means are asked
    for with the parameters from which training then starts, Fisher information with what it
    gave."""
    plan, params = plan_at(site.plan, round), start(site.plan, site.params()).params
    fit = {PARAMS: layout(params), **plan.shares(params)}
    elsewhere = {p for only in plan.hooks("asks_in") for p in only if round not in only[p]}
    asked = [phase for phase in plan.handlers() if phase not in elsewhere]
    found = [phase for phase in asked if plan.receives(phase, fit) == fit]
    return ["fit", *found] if found else []


def node_at(site: Site, client: ClientId, folder: Path) -> Node:
    """A node of this process, with the key of these trials where clients sign."""
    key = private_key(client) if site.plan.exchange.signers else None
    return Node(site, client, folder, lambda words: None, key)


BEGIN, END = "<!-- curious -->\n", "<!-- end -->\n"
WAYS = ("phase", "round", "seed", "memory", "layout", "run", "plan", "again")


def table(found: Sequence[Curious]) -> list[str]:
    """What was tried by kind of plan, in Markdown; answered is what was not refused."""
    heads = ["plan", *WAYS, "refused", "answered", "own", "the same bytes twice"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for one in found:
        lines.append(_row(one.kind, one.outcomes, one.own, one.same))
    every = [outcome for one in found for outcome in one.outcomes]
    lines.append(_row("all", every, sum(x.own for x in found), sum(x.same for x in found)))
    return lines


def _row(kind: str, outcomes: Sequence[Outcome], own: int, same: int) -> str:
    ways = Counter(one.way for one in outcomes)
    refused = sum(bool(one.reason) for one in outcomes)
    numbers = [*(ways[way] for way in WAYS), refused, len(outcomes) - refused, own, same]
    return "| " + " | ".join([kind, *(f"{n:,}" for n in numbers)]) + " |"


def list_breaches(found: Sequence[Curious]) -> list[str]:
    """What is not as it must be."""
    told = [
        f"{one.kind}: answered {o.way}, {o.what}"
        for one in found
        for o in one.outcomes
        if not o.reason
    ]
    told += [f"{one.kind}: its own question was refused" for one in found if one.own < one.asked]
    told += [f"{one.kind}: other bytes the second time" for one in found if one.same < one.own]
    return told


def _write(page: Path, lines: Sequence[str]) -> None:
    """Put the table into a page, between its marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + after)


def main(words: Sequence[str]) -> int:
    """The command."""
    words = list(words)
    out = words.pop(words.index("--out") + 1) if "--out" in words else ""
    wanted = [word for word in words if word != "--out"] or list(kinds())
    found = []
    with TemporaryDirectory() as folder:
        for number, kind in enumerate(wanted):
            found.append(interrogate(kind, {**SMALL, **kinds()[kind]}, Path(folder) / str(number)))
    lines = table(found)
    print("\n".join(lines))
    if out:
        _write(Path(out), lines)
    told = list_breaches(found)
    print("\n".join(told or ["nothing was answered that the plan does not ask"]))
    return 1 if told else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
