"""A node's worker: it holds the base model and the data, and trains for whoever may open its
socket.

It stays while Flower's processes come and go. What it trains is in the plan that its own user gave
it; an envelope can ask for a round of that plan, on the same base, and for nothing else.
"""

import re
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.deploy.agreement import Agreement, Refused
from fedpeft.deploy.answers import Answers
from fedpeft.deploy.terms import check_signer, disagreement, terms_of
from fedpeft.errors import RunError, WireError
from fedpeft.rounds.client import ClientRound, Worker
from fedpeft.rounds.site import Site
from fedpeft.runs.environment import compare_environments, environment
from fedpeft.runs.folder import RunFolder, lock_run
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import StoreError, private_folder
from fedpeft.wire.sockets import SOCKET, Envelope, listen, receive, send

# Seconds for the other end to write or read its part; both ends are on this machine.
PATIENCE = 60.0
RUN_SHOWN = 8
"""Of the 32 digits by which a node tells runs apart, those in its log."""
FIELDS: dict[str, tuple[type, ...]] = {
    "run": (str,),
    "round": (int,),
    "client": (str,),
    "phase": (str,),
    "seed": (int,),
    "accepted": (int, type(None)),
    "step": (int,),
}


@dataclass(frozen=True)
class Node:
    """One client and the folder of its worker: the socket, and what the client remembers, by run.

    Attributes:
      say: told in words of each job.
      signing: the private key that the plan's secure sum knows the client by.
      again: whether the owner agrees to one more run of the plan than were answered.
      reads: how its data are read otherwise than the plan says, in words; the server is told.
      declines: phases of the plan that the owner does not answer.
      terms: what an envelope must agree with.
      agreement: what the owner agreed to, and what was answered.

    Raises:
      PlanError: the plan has another key for the client, none is given where it has one, it is of
        files and of no connection, or it has no such phase to decline.
    """

    site: Site
    client: ClientId
    folder: Path
    say: Callable[[str], None] = print
    signing: bytes | None = field(default=None, repr=False)
    again: bool = False
    reads: Sequence[str] = ()
    declines: frozenset[str] = frozenset()
    terms: Mapping[str, str] = field(init=False)
    agreement: Agreement = field(init=False, repr=False)
    _said: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        plan = self.site.plan
        for check in plan.hooks("check_run"):
            check()
        check_signer(plan, self.client, self.signing)
        object.__setattr__(self, "terms", terms_of(self.site))
        answers = Answers.at(self.folder, plan)
        if self.again:
            answers.agree_again()
        clients = plan.known_clients(self.site.data.clients)
        agreement = Agreement(plan, self.client, clients, answers, self.declines)
        object.__setattr__(self, "agreement", agreement)

    def answer(self, asked: Envelope) -> Envelope:
        """The answer to one envelope."""
        kind, head = asked.head.get("kind"), asked.head
        if kind == "doctor":
            return Envelope({"kind": "here", "client": self.client})
        if why := disagreement(self.terms, head):
            self._say_once(f"this node cannot serve the run that asks: {why}")
            return self._cannot(why)
        if kind == "hello":
            return self._welcome(head)
        if kind != "job":
            return self._cannot(f"an envelope of the kind {kind!r} has no sense here")
        try:
            done = self._done(self._job(asked), token_of(head))
        except Refused as error:
            self.say(f"refused: {error}")
            return self._cannot(str(error))
        except WireError as error:
            return self._cannot(str(error))
        # A run of this machine alone would end; here it is one client's failure.
        except StoreError as error:
            self.say(f"the disk fails under the client's memory: {error}")
            return self._cannot(f"the disk of its node fails: {error.strerror}")
        if isinstance(done, Failure):
            return self._cannot(done.reason)
        return Envelope({"kind": "reply", "client": self.client}, done.payload)

    def _say_once(self, words: str) -> None:
        """A line, unless it was the last of this kind: a server asks again and again."""
        if self._said != [words]:
            self._said[:] = [words]
            self.say(words)

    def _welcome(self, head: Mapping[str, Any]) -> Envelope:
        """Who is here, and what of this machine is other than the server's."""
        here = environment(self.site.plan, self.site.device)
        asked = head.get("environment")
        differs = compare_environments(asked, here) if isinstance(asked, dict) else []
        told = [*differs, *self.reads]
        return Envelope({"kind": "welcome", "client": self.client, "differs": told})

    def _done(self, job: Job, token: str) -> Reply | Failure:
        """The answer to a job, once, or the same bytes again.

        Raises:
          Refused: the owner did not agree to it.
          StoreError: the disk fails.
        """
        answers, began = self.agreement.answers, monotonic()
        digest = self.agreement.check(token, job)
        if (
            digest in answers.asked(token, job)
            and (known := answers.reply(token, digest)) is not None
        ):
            done: Reply | Failure = Reply(job.client, known)
        else:
            done = self._worked(job, token, digest)
        if isinstance(done, Failure):
            self.say(f"run {token[:RUN_SHOWN]}, round {job.round + 1}: {done.reason}")
            return done
        if not answers.give(token, job, digest, done.payload):
            raise Refused(
                f"asked again for {job.phase!r} of round {job.round}, whose answer is kept no "
                "longer and would be other bytes now: the same words get the same bytes, or none"
            )
        self.say(
            f"run {token[:RUN_SHOWN]}, round {job.round + 1}: {len(done.payload):,} bytes after "
            f"{monotonic() - began:.1f} s"
        )
        return done

    def _worked(self, job: Job, token: str, digest: str) -> Reply | Failure:
        worker = Worker(self.site, self._store(token)).at(job.round)
        opened = worker.open(job)
        if not isinstance(opened, ClientRound):
            return opened
        # Not earlier, as what cannot be opened is to use nothing up; not later, as that training
        # fails tells something of the examples too.
        self.agreement.answers.begin(token, job, digest)
        return worker.close(opened, lambda: worker.alone(opened))

    def _cannot(self, reason: str) -> Envelope:
        self.agreement.answers.refusals.note(reason)  # for its owner, who may never see the log
        return Envelope({"kind": "failed", "client": self.client, "reason": reason})

    def _job(self, asked: Envelope) -> Job:
        for key, types in FIELDS.items():
            value = asked.head.get(key)
            # To Python true is the number 1.
            if not isinstance(value, types) or isinstance(value, bool):
                raise WireError(f"a job without a proper {key!r}: {value!r}")
        job = Job(**{key: asked.head[key] for key in FIELDS}, payload=asked.body)
        plan = self.site.plan
        if job.run != f"{plan.name}-{plan.fingerprint}" or job.client != self.client:
            raise WireError(
                f"a job of {job.run!r} for {job.client!r}: this is {self.client!r} of {plan.name!r}"
            )
        return job

    def _store(self, token: str) -> Folder:
        """A run's own folder: with another run of the same plan a round's reply need not be the
        same. What noise is drawn from lies beside the runs."""
        signing = {self.client: self.signing} if self.signing else {}
        return Folder(self.folder / "clients" / token, signing, self.folder)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer envelopes until the process is ended.

        Raises:
          RunError: another worker is at this folder, or the socket cannot be made.
        """
        private_folder(self.folder)
        # The lock comes before the socket: `listen` takes away the one that lies there, which must
        # be nobody's then.
        with lock_run(RunFolder(self.folder)):
            try:
                server = listen(self.folder / SOCKET)
            except OSError as error:
                raise RunError(
                    f"{self.folder / SOCKET} cannot be made: {error}; a shorter --out may help"
                ) from None
            with server:
                ready()
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError, WireError):  # who is gone gets no answer
                        connection.settimeout(PATIENCE)
                        self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        asked = receive(connection)
        if select.select([connection], [], [], 0)[0]:  # who asked has left since: its round is over
            self.say("a job came too late and is left out")
            return
        try:
            answer = self.answer(asked)
        except Exception as error:  # a head may hold anything, and the worker is to stay
            answer = self._cannot(f"{type(error).__name__} at its node")
        send(connection, answer)


def token_of(head: Mapping[str, Any]) -> str:
    """What tells a run from others of the same plan.

    Raises:
      WireError: there is none.
    """
    token = head.get("token")
    if not isinstance(token, str) or not re.fullmatch(r"[0-9a-f]{32}", token):
        raise WireError(
            f"a job without a run's token: {str(token)[:80]!r} is not 32 hexadecimal digits"
        )
    return token
