"""Rounds of secure aggregation whose clients drop out or lie."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rounds import Recording, on, points_plan

from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.interfaces import Engine
from fedpeft.core.tensors import layout
from fedpeft.core.types import Failure, Job, Reply, State, Tensors, Update
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import decode_sent, encode_answer, encode_message, unpack

SECURE = {
    "exchange": {"name": "secure", "threshold": 4},
    "weighting": "uniform",
    "cohort": 6,
    "rounds": 2,
}
BY_SIZE = {
    **SECURE,
    "exchange": {"name": "secure", "threshold": 4, "max_weight": 100},
    "weighting": "examples",
}


def secure_plan(**changes: object) -> Plan:
    return points_plan(**{**SECURE, **changes})


def opened(payload: bytes) -> Message:
    """What a message of a secure sum holds, in either direction."""
    return decode_sent(payload, Dense(), None)


def question(message: Message) -> bytes:
    return encode_message(message, Dense())


def answer(message: Message) -> bytes:
    return encode_answer(message, Dense())


@dataclass(frozen=True)
class Losing:
    """An engine on whose way some clients are lost from a message on, or their answers harmed."""

    inner: Engine
    lost: Mapping[str, Sequence[str]] = field(default_factory=dict)
    harm: Mapping[tuple[str, str], Callable[[bytes], bytes]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            self.jobs.append(job)
            if job.client in self.lost.get(job.phase, ()):
                yield Failure(job.client, f"lost in {job.phase}")
                continue
            [reply] = self.inner.run([job])
            if isinstance(reply, Reply) and (job.phase, job.client) in self.harm:
                reply = Reply(reply.client, self.harm[job.phase, job.client](reply.payload))
            yield reply


def updates_in_the_open(site: Site, plan: Plan, state: State) -> dict[str, Update]:
    """What each client of the round trains, as it would send it without secure aggregation."""
    in_the_open = recording_plan(plan)
    recording = Recording(on(site, in_the_open))
    next(federate(in_the_open, recording, state))
    expected = layout(state.params)
    return {r.client: unpack(r.client, r.payload, plan.uplink, expected) for r in recording.replies}  # type: ignore[union-attr]


def recording_plan(plan: Plan) -> Plan:
    return replace(plan, exchange=points_plan().exchange)


def stepped(state: State, updates: Iterable[Update], plan: Plan, clients: int) -> Tensors:
    """The state after adding the mean of rounded updates, computed with plain integers."""
    by = plan.exchange.shift(clients)  # type: ignore[attr-defined]
    updates = list(updates)
    weight = sum(int(update.weight) for update in updates)
    new = {}
    for name, x in state.params.items():
        total = sum((u.delta[name].double() * u.weight * 2.0**by).round() for u in updates)
        new[name] = x + (total * 2.0**-by / weight).float()
    return new


def one_round(
    site: Site, plan: Plan, folder: Path, **losing: object
) -> tuple[State, State, Ledger, Losing]:
    engine = Losing(on(site, plan, Folder(folder)), **losing)  # type: ignore[arg-type]
    before = start(plan, site.params())
    after, ledger = next(federate(plan, engine, before))
    return before, after, ledger, engine
