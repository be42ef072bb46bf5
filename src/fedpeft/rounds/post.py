"""The post: it carries the questions of a round to the engine, and the answers back.

It encodes equal messages once, counts bytes, admits, decodes, and gives the answers in the order of
the clients' names, so that no result depends on when each came.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fedpeft.core.conversation import PARAMS, Answer, Ask, Message
from fedpeft.core.interfaces import Coding, Engine
from fedpeft.core.seeds import fold
from fedpeft.core.types import ClientId, Job, Reply, State, Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.coding import DOWNLINK, downlink_coding, follows, is_in_step
from fedpeft.plan.plan import Plan
from fedpeft.registry import describe
from fedpeft.rounds.admission import Admission
from fedpeft.rounds.ledger import Ledger
from fedpeft.wire.frames import headers
from fedpeft.wire.payloads import decode_sent, encode_message, flatten


def encode_start(plan: Plan, state: State) -> bytes:
    """What every client without a view of its own receives of a state to train on."""
    message = Message({PARAMS: state.params, **state.shared})
    return _encode(plan, message, downlink_coding(plan, state.round))


def _encode(plan: Plan, message: Message, how: Coding) -> bytes:
    try:
        return encode_message(message, plan.downlink, how)
    except ValueError as error:
        name = describe("codec", plan.downlink)["name"]
        raise PlanError(
            f"the downlink codec {name!r} cannot hold the state of round {how.round}: {error}"
        ) from None


@dataclass(eq=False)
class _Parcel:
    """A message as it is sent, and as its readers find it."""

    payload: bytes
    read: Message


@dataclass(eq=False)
class Post:
    """It is called with a question and gives the answers, lazily.

    Attributes:
      run: what clients tell the experiment from others by.
      step: the number of questions asked in this round so far.
      left: what the clients that were asked to train have now, of a downlink that follows.
    """

    plan: Plan
    engine: Engine
    admission: Admission
    ledger: Ledger
    run: str
    step: int = 0
    left: Tensors | None = None
    _open: bool = field(default=False, init=False)

    def __call__(self, ask: Ask) -> Iterator[Answer]:
        """The answers that are admitted.

        Raises:
          RuntimeError: the flow asks before it has read all answers to its last question.
          PlanError: the downlink's codec cannot hold what is sent.
        """
        if self._open:
            raise RuntimeError(
                f"{ask.phase!r} is asked before all answers to the last question were read: an "
                "algorithm must read them all"
            )
        clients = self.admission.eligible(sorted(ask.to))
        following = ask.updates and follows(self.plan)
        sent = self._followed(ask, clients) if following else self._parcels(ask, clients)
        jobs = [self._job(ask, client, parcel.payload) for client, parcel in sent.items()]
        self.step += 1
        for job in jobs:
            self.ledger.down[job.client] = self.ledger.down.get(job.client, 0) + len(job.payload)
        self._open = bool(jobs)
        return self.admission.bounded(ask, self._answers(ask, jobs, sent))

    def _parcels(self, ask: Ask, clients: list[ClientId]) -> dict[ClientId, _Parcel]:
        """What each client is sent; equal messages are encoded once."""
        parcels: dict[tuple[int, int, float], _Parcel] = {}
        sent: dict[ClientId, _Parcel] = {}
        for client in clients:
            message, round = ask.to[client], ask.rounds.get(client, self.ledger.round)
            view = ask.views.get(client) or self.plan.view(client, round, self.engine.clients)
            # What a codec is told of a message enters its bytes, so that equal messages may have
            # several payloads.
            same = id(message), round, view.budget
            if same not in parcels:
                parcels[same] = self._parcel(message, downlink_coding(self.plan, round, view))
            sent[client] = parcels[same]
        return sent

    def _followed(self, ask: Ask, clients: list[ClientId]) -> dict[ClientId, _Parcel]:
        """What each client is sent where the codec follows: those in step get the change of what
        they hold, and all others, as a whole, what that comes to. So all train from the same.

        Raises:
          RuntimeError: clients are sent different messages, or are asked to train twice.
        """
        if not clients:
            return {}
        message = self._one_message(ask, clients)
        round, state = self.ledger.round, self.admission.state
        held = state.memory.get(DOWNLINK)
        ready = {one for one in clients if held and is_in_step(state.accepted.get(one), round)}
        # where nobody could follow, the whole as it is: nothing of it need be lost
        how = downlink_coding(self.plan, round, held=held if ready else None)
        change = self._parcel(message, how)
        self.left = flatten(change.read.tensors)
        if len(ready) in (0, len(clients)):
            return dict.fromkeys(clients, change)
        whole = self._parcel(change.read, downlink_coding(self.plan, round))
        return {one: change if one in ready else whole for one in clients}

    def _one_message(self, ask: Ask, clients: list[ClientId]) -> Message:
        """What all clients are sent in a round of a downlink that follows."""
        messages = {id(ask.to[client]): ask.to[client] for client in clients}
        if len(messages) > 1 or self.left is not None:
            raise RuntimeError(
                "a downlink that follows sends one message a round, and this plan has several: a "
                "part that makes them must offer a fact that the codec forbids"
            )
        return next(iter(messages.values()))

    def remember(self, state: State) -> State:
        """The state with what clients hold of this round's message; a round without one leaves
        nothing that the next could follow."""
        if self.left is None and DOWNLINK not in state.memory:
            return state
        memory = {owner: some for owner, some in state.memory.items() if owner != DOWNLINK}
        if self.left is not None:
            memory[DOWNLINK] = self.left
        return replace(state, memory=memory)

    def _parcel(self, message: Message, how: Coding) -> _Parcel:
        payload = _encode(self.plan, message, how)
        # What clients find, and not what was encoded: changes are of what the downlink's codec
        # left.
        read = decode_sent(payload, self.plan.downlink, set(message.tensors), how)
        return _Parcel(payload, read)

    def _job(self, ask: Ask, client: ClientId, payload: bytes) -> Job:
        plan, state = self.plan, self.admission.state
        round = ask.rounds.get(client, state.round)
        seed = fold(round_seed(plan, round), "client", client)
        # Who answers for another round takes asynchronous steps, and has no memory of which a
        # version counts.
        accepted = state.accepted.get(client) if round == state.round else None
        return Job(self.run, round, client, ask.phase, seed, accepted, payload, self.step)

    def _answers(
        self, ask: Ask, jobs: list[Job], sent: dict[ClientId, _Parcel]
    ) -> Iterator[Answer]:
        for reply in self.engine.run(jobs):
            if not isinstance(reply, Reply):
                self.admission.miss(reply)
                continue
            client, payload = reply.client, reply.payload
            # What crossed the wire is counted, whether it is let in or not.
            self.ledger.up[client] = self.ledger.up.get(client, 0) + len(payload)
            message = self.admission.decode(ask, client, payload, sent[client].read)
            if message is not None:
                self.ledger.up_headers += headers(payload)
                yield Answer(client, message, sent[client].read)
        self._open = False
