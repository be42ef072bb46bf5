"""Clients on other machines, over Flower (arXiv:2007.14390): the same jobs, the same bytes, another
road."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.errors import RunError, WireError
from fedpeft.wire.sockets import Envelope

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid, ServerApp

Result = TypeVar("Result")
# Seconds between two looks for answers.
POLL = 0.25
# Seconds that new looks are waited for, and until a node that could not serve is first asked again.
SOON = 1.0
# Seconds after which it is told who has not come.
AWAITED = 3.0
# Answers that one look is for, each a question to the SuperLink.
AT_ONCE = 8
# Seconds that an envelope outlives its deadline: a late node is called late, not unavailable.
LATE = 5.0
# Seconds that an answer may take until its node is looked for, and that it then must be missed for.
STUCK = 10.0
# Seconds until a node that long cannot serve is asked again, which costs it a process with two of
# work.
AGAIN = 15.0


@dataclass(eq=False)
class Flower:
    """One message for each job. What a node cannot do in time is its client's failure, and the
    round goes on.

    Nodes say who they are when they first come. A node that is gone and comes back is asked again,
    whoever it was.

    Attributes:
      clients: the names of all that may take part, of this run, here or not.
      terms: what a node must agree with; it goes along with each envelope.
      deadline: seconds that a round waits for answers, and `gather` for nodes.
      say: told in words who came, and who cannot serve.
      homes: the node of each client that is here.
      refused: by client, why its node cannot serve.
    """

    grid: "Grid"
    clients: Sequence[ClientId]
    terms: Mapping[str, Any]
    deadline: float
    say: Callable[[str], None] = print
    homes: dict[ClientId, int] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    _greeted: dict[str, int] = field(default_factory=dict)  # by message, the node
    _later: dict[int, float] = field(default_factory=dict)  # by node, when it may be greeted again
    # By node, since when it cannot serve, and why.
    _idle: dict[int, tuple[float, str]] = field(default_factory=dict)
    # By message, for its answer.
    _looks: "dict[str, Future[list[Message]]]" = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)  # by message, when last
    _sent: dict[str, int] = field(default_factory=dict)  # by message, the node of a job
    # By message, since when its node is not there.
    _missed: dict[str, float] = field(default_factory=dict)

    def gather(self) -> None:
        """Wait until all clients are here, or the deadline.

        Raises:
          RunError: nobody came.
        """
        began, told = monotonic(), list[ClientId]()
        while (missing := self._missing()) and monotonic() < began + self.deadline:
            if monotonic() > began + AWAITED and missing != told:
                self.say(f"waiting for {', '.join(missing)}")
                told = missing
            self._greet(self._here())
            self._welcome()
            sleep(POLL)
        whys = [
            f"{client}: {self.refused.get(client, 'no node of that name came')}"
            for client in missing
        ]
        if len(missing) == len(self.clients):
            raise RunError(f"no client is here after {self.deadline:g} s; {'; '.join(whys)}")
        for why in whys:
            self.say(why)

    def _missing(self) -> list[ClientId]:
        """The clients that are not here."""
        return [client for client in self.clients if client not in self.homes]

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        """The answers in the order of the jobs, by the deadline."""
        every, ends = list(jobs), monotonic() + self.deadline
        unsent, asked = {job.client: job for job in every}, dict[str, ClientId]()
        done: dict[ClientId, Reply | Failure] = {}
        self._greeted.clear()  # who has not said by now who it is, is asked again
        self._looks = {name: look for name, look in self._looks.items() if not look.done()}
        self._looked.clear()
        self._sent.clear()
        self._missed.clear()
        for job in every:
            while job.client not in done and monotonic() < ends:
                if unsent:
                    self._greet(self._here())
                    self._welcome()
                    done |= self._dispatch(unsent, asked, ends - monotonic())
                done |= self._answers(asked)
                done |= self._broken_off(asked)
                if job.client not in done:
                    sleep(POLL)
            yield done.pop(job.client, Failure(job.client, f"no answer within {self.deadline:g} s"))

    def close(self) -> None:
        """The connection is Flower's."""

    def _here(self) -> set[int]:
        """The nodes that are connected; clients of others have no home."""
        # Where the SuperLink cannot say who is connected, nobody counts as gone.
        here = self._patiently(lambda: set(self.grid.get_node_ids()), set(self.homes.values()))
        self.homes = {client: node for client, node in self.homes.items() if node in here}
        return here

    def _greet(self, here: set[int]) -> None:
        """Ask the nodes that nobody knows yet who they are."""
        known = {*self.homes.values(), *self._greeted.values()}
        new = [node for node in sorted(here - known) if self._later.get(node, 0) <= monotonic()]
        names = self._push(new, [Envelope({"kind": "hello"})] * len(new), self.deadline)
        self._greeted |= {name: node for node, name in zip(new, names, strict=False) if name}

    def _push(
        self, nodes: Sequence[int], envelopes: Sequence[Envelope], seconds: float
    ) -> list[str | None]:
        """Send envelopes; by each the name under which its answer will come, or None if it could
        not be sent.

        Nothing where the SuperLink stumbles: then they can be sent again.
        """
        from flwr.app import Message, MessageType

        from fedpeft.engines.flower.courier import pack_envelope

        whole = [Envelope({**self.terms, **one.head}, one.body) for one in envelopes]
        made = [
            Message(pack_envelope(one), node, MessageType.QUERY, ttl=max(0.0, seconds) + LATE)
            for node, one in zip(nodes, whole, strict=True)
        ]
        none: list[str | None] = []
        return self._patiently(lambda: list(self.grid.push_messages(made)), none) if made else none

    def _patiently(self, call: Callable[[], Result], otherwise: Result) -> Result:
        """What the SuperLink says, or `otherwise` where it stumbles: it may be busy with its
        database."""
        from httpx import HTTPStatusError

        try:
            return call()
        except HTTPStatusError as error:
            if error.response.status_code < 500:
                raise
            self.say(f"the SuperLink stumbles: {error}")
            return otherwise

    def _pull(self, asked: Mapping[str, Any]) -> Iterator[tuple[str, Envelope]]:
        """The answers that came, by the name of what they answer."""
        from fedpeft.engines.flower.courier import unpack_envelope

        for message in self._fetched(asked):
            if message.has_error():
                reason = f"its node did not do the work: {message.error.reason}"
                yield (
                    message.metadata.reply_to_message_id,
                    Envelope({"kind": "lost", "reason": reason}),
                )
                continue
            try:
                yield message.metadata.reply_to_message_id, unpack_envelope(message)
            except WireError as error:
                yield (
                    message.metadata.reply_to_message_id,
                    Envelope({"kind": "lost", "reason": str(error)}),
                )

    def _fetched(self, asked: Mapping[str, Any]) -> "Iterator[Message]":
        """What came. Each look has a thread: for an answer whose upload was broken off Flower waits
        many minutes."""
        idle = sorted(
            (name for name in asked if name not in self._looks),
            key=lambda name: self._looked.get(name, 0.0),
        )
        for name in idle[:AT_ONCE]:
            self._looked[name], self._looks[name] = monotonic(), Future()
            Thread(target=self._look, args=(name, self._looks[name]), daemon=True).start()
        wait([self._looks[name] for name in idle[:AT_ONCE]], SOON)
        none: list[Message] = []
        for name in [name for name in asked if name in self._looks and self._looks[name].done()]:
            yield from self._patiently(self._looks.pop(name).result, none)

    def _look(self, name: str, found: "Future[list[Message]]") -> None:
        try:
            found.set_result(list(self.grid.pull_messages([name])))
        except BaseException as error:  # it is raised where the result is asked for
            found.set_exception(error)

    def _welcome(self) -> None:
        """Take in who answered a greeting."""
        for name, answer in self._pull(self._greeted):
            node, head = self._greeted.pop(name, None), answer.head
            if node is None:  # answered already
                continue
            client, differs = words(head.get("client", "")), head.get("differs")
            why = (
                words(head.get("reason", "?"))
                if head.get("kind") != "welcome"
                else self._unwelcome(client)
            )
            if not why:
                self.homes[client] = node
                self.refused.pop(client, None)
                self._idle.pop(node, None)
                self.say(f"{client} is here" + (f"; differs: {words(differs)}" if differs else ""))
                continue
            if client in self.clients and client not in self.homes:
                self.refused[client] = why
            self._put_off(node, f"{client or 'a node'} cannot serve: {why}")

    def _put_off(self, node: int, why: str) -> None:
        """Ask it again soon, and then ever less often; say why once."""
        now = monotonic()
        since, said = self._idle.get(node, (now, ""))
        self._idle[node] = since, why
        self._later[node] = now + min(AGAIN, max(SOON, now - since))
        if why != said:
            self.say(why)

    def _unwelcome(self, client: ClientId) -> str:
        if client not in self.clients:
            return (
                f"this run knows no client {client!r}; it has {', '.join(map(str, self.clients))}"
            )
        return f"another node is {client!r} already" if client in self.homes else ""

    def _dispatch(
        self, unsent: dict[ClientId, Job], asked: dict[str, ClientId], seconds: float
    ) -> dict[ClientId, Failure]:
        """Send what can be sent; a job whose client is not here waits for nodes that have not said
        who they are."""
        ready = [job for client, job in unsent.items() if client in self.homes]
        envelopes = [Envelope({"kind": "job", **head_of(job)}, job.payload) for job in ready]
        names = self._push([self.homes[job.client] for job in ready], envelopes, seconds)
        failed = {}
        for job, name in zip(ready, names, strict=False):
            del unsent[job.client]
            if name:
                asked[name], self._sent[name] = job.client, self.homes[job.client]
            else:
                failed[job.client] = Failure(job.client, "its job could not be sent")
        if not self._greeted:
            for client in [client for client in unsent if client not in self.homes]:
                failed[client] = Failure(
                    client, self.refused.get(client, "its node is not connected")
                )
                del unsent[client]
        return failed

    def _answers(self, asked: dict[str, ClientId]) -> dict[ClientId, Reply | Failure]:
        done: dict[ClientId, Reply | Failure] = {}
        for name, answer in self._pull(asked):
            client = asked.pop(name, None)
            if client is None:  # answered already
                continue
            if answer.head.get("kind") == "reply":
                done[client] = Reply(client, answer.body)
            else:
                reason = words(answer.head.get("reason", "its node's answer has no sense"))
                done[client] = Failure(client, reason, answered=answer.head.get("kind") == "failed")
        return done

    def _broken_off(self, asked: dict[str, ClientId]) -> dict[ClientId, Failure]:
        """Whose answer has begun to come and whose node is gone: the SuperLink would wait long for
        the rest of it."""
        now = monotonic()
        looking = {name for name in asked if name in self._looks and not self._looks[name].done()}
        stuck = [name for name in looking if now - self._looked[name] > STUCK]
        here = self._here() if stuck else set()
        missed = {
            name: self._missed.get(name, now) for name in stuck if self._sent[name] not in here
        }
        self._missed = missed
        gone = [
            name
            for name, since in missed.items()
            if now - since >= STUCK and not self._looks[name].done()
        ]
        return {
            client: Failure(client, "its node went in the middle of its answer")
            for client in map(asked.pop, gone)
        }


def words(value: object) -> str:
    """What a node says, fit for a line in a terminal: it may be anything."""
    return "".join(x if x.isprintable() else " " for x in str(value)[:500])


def head_of(job: Job) -> dict[str, Any]:
    """All of a job but its payload, as an envelope's head has it."""
    return {
        key: getattr(job, key)
        for key in ("run", "round", "client", "phase", "seed", "accepted", "step")
    }


def server_app(serve: "Callable[[Grid, Mapping[str, Any]], None]") -> "ServerApp":
    """A function of a grid and the settings of a run, as what Flower starts."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    def main(grid: Grid, context: Context) -> None:
        serve(grid, dict(context.run_config))

    app = ServerApp()
    app.main()(main)
    return app
