"""Clients spread over worker processes of this machine, each with one frozen base."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from os import cpu_count

import torch

from fedpeft.client import Site, Worker, open_site
from fedpeft.core.stores import Nowhere
from fedpeft.core.types import ClientId, Failure, Job, Reply, Store
from fedpeft.plan import Plan

ATTEMPTS = 2  # a job whose worker process dies goes to a fresh one; after this many deaths it is a failure


def _serve(connection: Connection, plan: Plan, device: str, store: Store) -> None:
    """A worker process: answer jobs until the other end is gone."""
    torch.set_num_threads(plan.threads)
    worker = Worker(open_site(plan, device), store)
    while True:
        try:
            connection.send(worker(connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return


@dataclass
class _Hand:
    """A worker process and what it is at."""

    process: BaseProcess
    connection: Connection
    at: tuple[int, Job, int] | None = None  # place in the order, job, attempt


@dataclass
class Processes:
    """Replies come in the order of the jobs; a worker that is killed costs nothing but time.

    Attributes:
      workers: processes; 0 for as many as the machine has processors for `plan.threads` each.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    workers: int = 0
    _hands: list[_Hand] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        waiting = deque((place, job, 1) for place, job in enumerate(jobs))
        wanted = self.workers or max(1, (cpu_count() or 1) // self.site.plan.threads)
        while len(self._hands) < min(wanted, len(waiting)):
            self._hands.append(self._hire())
        done: dict[int, Reply | Failure] = {}
        following = 0
        while waiting or any(hand.at for hand in self._hands) or done:
            for hand in self._hands:
                if hand.at is None and waiting:
                    self._give(hand, waiting.popleft())
            for place, answer in self._answers(waiting):
                done[place] = answer
            while following in done:
                yield done.pop(following)
                following += 1

    def _hire(self) -> _Hand:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self.site.plan, self.site.device, self.store)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Hand(process, ours)

    def _give(self, hand: _Hand, what: tuple[int, Job, int]) -> None:
        hand.at = what
        try:
            hand.connection.send(what[1])
        except (BrokenPipeError, ConnectionResetError):
            pass  # its death is seen when its answer is waited for

    def _answers(self, waiting: "deque[tuple[int, Job, int]]") -> Iterator[tuple[int, Reply | Failure]]:
        busy = {hand.connection: hand for hand in self._hands if hand.at}
        for ready in wait(list(busy)):
            hand = busy[ready]  # type: ignore[index]
            assert hand.at is not None
            place, job, attempt = hand.at
            try:
                answer = hand.connection.recv()
                hand.at = None
                yield place, answer
            except (EOFError, ConnectionResetError):
                hand.process.join()
                code = hand.process.exitcode
                self._hands[self._hands.index(hand)] = self._hire()
                if attempt < ATTEMPTS:
                    waiting.appendleft((place, job, attempt + 1))
                else:
                    yield place, Failure(job.client, f"its worker process ended with code {code}, {attempt} times")

    def close(self) -> None:
        """End the worker processes."""
        for hand in self._hands:
            hand.connection.close()
            hand.process.terminate()
            hand.process.join()
        self._hands.clear()
