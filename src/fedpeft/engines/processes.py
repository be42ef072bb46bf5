"""Clients spread over worker processes of this machine, each with one frozen base.

Worker processes begin by importing the script that starts them, so a script of your own needs
`if __name__ == "__main__":` before what it does, and its own parts in importable modules.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging import ERROR, getLogger
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pickle import PicklingError
from threading import Thread
from time import monotonic, sleep
from typing import Any

import torch

from fedpeft.core.interfaces import Store
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.engines.fork_server import (
    interrupts_blocked,
    load_libraries,
    take_environment,
    worker_context,
)
from fedpeft.errors import PlanError, reason_of
from fedpeft.plan.plan import Plan
from fedpeft.plan.values import shares_optimizer_state
from fedpeft.rounds.client import Worker
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.storage.files import StoreError

PARTING = 5.0  # seconds that an idle worker process has to end
STARTING = 30.0  # seconds that a worker process may take until its first sign of life
LOADED, FORKED = 10.0, 6.0
"""Seconds until worker processes have loaded libraries, models and data, each for itself or as
forks; more than most need."""
# A job whose worker process dies goes to a fresh one; after this many deaths it is a failure.
ATTEMPTS = 2


def _serve(
    connection: Connection,
    beat: Any,
    plan: Plan,
    device: str,
    store: Store,
    environment: Mapping[str, str],
) -> None:
    """A worker process: answer jobs until the other end is gone."""
    take_environment(environment)
    Thread(target=_end_with_parent, daemon=True).start()
    Thread(target=_beat, args=(beat,), daemon=True).start()
    torch.set_num_threads(plan.compute.threads)
    worker = make_answerer(plan, device, store)
    while True:
        try:
            connection.send(answer_job(worker, connection.recv()))
        except (EOFError, OSError, KeyboardInterrupt):
            return


def answer_job(worker: Callable[[Job], Reply | Failure], job: Job) -> Reply | Failure | StoreError:
    """A disk that fails is for the parent to raise: here it would be one more end of a worker
    process."""
    try:
        return worker(job)
    except StoreError as error:
        return error


def make_answerer(plan: Plan, device: str, store: Store) -> Callable[[Job], Reply | Failure]:
    """A worker; where it cannot be made, what says why to each job, since a death would only tell a
    number."""
    try:
        with _told_already():
            site = open_site(plan, device)
        return Worker(site, store)
    except Exception as error:  # parts that users write may raise anything
        reason = f"its worker process could not start: {reason_of(error)}"
        return lambda job: Failure(job.client, reason)


@contextmanager
def _told_already() -> Iterator[None]:
    """What is said of data and model when they are opened, the first process has said."""
    log = getLogger("fedpeft")
    before = log.level
    log.setLevel(ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _beat(beat: Any) -> None:
    """Show once a second that this process runs; one that is stopped, or swapped out, does not."""
    while True:
        beat.value = monotonic()
        sleep(1)


def _end_with_parent() -> None:
    """A parent that is killed closes the connection, but a worker in the middle of a job would not
    look at it."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(eq=False)
class _Hand:
    """A worker process and what it is at."""

    process: BaseProcess
    connection: Connection
    beat: Any
    warned: bool = False
    at: tuple[int, Job, int] | None = None  # place in the order, job, attempt


def processors() -> int:
    """As many as this process may use, which a container or a batch system makes fewer than the
    machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def begins_by_fork(plan: Plan, device: str) -> bool:
    """Whether worker processes load no libraries of their own."""
    return worker_context(plan, device).get_start_method() == "forkserver"


def starting_time(plan: Plan, device: str) -> float:
    """Seconds until worker processes are ready for work, which is more than most need."""
    return FORKED if begins_by_fork(plan, device) else LOADED


def _dismiss(hand: _Hand, grace: float = 0) -> int | None:
    """End a worker process, dead already or not. Nothing is lost: what it had to keep, it wrote
    before it answered."""
    hand.connection.close()
    hand.process.join(grace)
    hand.process.kill()
    hand.process.join()
    return hand.process.exitcode


@dataclass
class Processes:
    """Replies come in the order of the jobs; a worker that is killed costs nothing but time.

    Attributes:
      workers: processes; 0 for as many as there are processors for `compute.threads` each.
      quiet: seconds without a sign of life after which a worker process is named in the log.
      lost: seconds after which it is killed, and its client goes to another one.

    Raises:
      PlanError: the plan needs clients in one process.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    workers: int = 0
    quiet: float = 10.0
    lost: float = 60.0
    _hands: list[_Hand] = field(default_factory=list)

    def __post_init__(self) -> None:
        if shares_optimizer_state(self.site.plan):
            raise PlanError(
                'local.as_published needs clients one after another: use the engine "inprocess"'
            )

    @staticmethod
    def prepare(plan: Plan, device: str) -> None:
        """Have the libraries loaded that worker processes need."""
        load_libraries(plan, device)

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        """Hand out the jobs and give their answers in order.

        Raises:
          PlanError: a part of the plan cannot be sent to another process.
          StoreError: the disk fails under the clients' memory.
        """
        waiting = deque((place, job, 1) for place, job in enumerate(jobs))
        wanted = self.workers or max(1, processors() // self.site.plan.compute.threads)
        while len(self._hands) < min(wanted, len(waiting)):
            self._hands.append(self._hire())
        done: dict[int, Reply | Failure] = {}
        following = 0
        try:
            while waiting or any(hand.at for hand in self._hands) or done:
                for hand in self._hands:
                    if hand.at is None and waiting:
                        self._give(hand, waiting.popleft())
                done.update(self._answers(waiting))
                while following in done:
                    yield done.pop(following)
                    following += 1
        finally:
            # who leaves in the middle of a round must not find its late answers in the next
            for hand in [hand for hand in self._hands if hand.at]:
                _dismiss(hand)
                self._hands.remove(hand)

    def _hire(self) -> _Hand:
        context = worker_context(self.site.plan, self.site.device)
        ours, theirs = context.Pipe()
        # In the future at first: it loads its libraries before it can give a sign of life.
        beat = context.Value("d", monotonic() + STARTING, lock=False)
        site, environment = self.site, dict(os.environ)
        arguments = (theirs, beat, site.plan, site.device, self.store, environment)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        try:
            with interrupts_blocked():
                process.start()
        except (PicklingError, AttributeError, TypeError) as error:
            ours.close()
            message = (
                f"a part of the plan cannot be sent to worker processes ({error}): "
                'use engine = "inprocess"'
            )
            raise PlanError(message) from None
        finally:
            # As long as this process holds the other end too, a child's death does not close the
            # pipe.
            theirs.close()
        return _Hand(process, ours, beat)

    def _give(self, hand: _Hand, what: tuple[int, Job, int]) -> None:
        hand.at = what
        with suppress(OSError):  # its death is seen when its answer is waited for
            hand.connection.send(what[1])

    def _answers(
        self, waiting: "deque[tuple[int, Job, int]]"
    ) -> Iterator[tuple[int, Reply | Failure]]:
        busy = {hand.connection: hand for hand in self._hands if hand.at}
        came = wait(list(busy), self.quiet / 2)
        self._watch([hand for hand in busy.values() if hand.connection not in came])
        for ready in came:
            hand = busy[ready]  # type: ignore[index]
            assert hand.at is not None
            place, job, attempt = hand.at
            try:
                answer = hand.connection.recv()
            except (EOFError, OSError):  # the latter where it died in the middle of an answer
                code = _dismiss(hand, grace=5)
                self._hands[self._hands.index(hand)] = self._hire()
                if attempt < ATTEMPTS:
                    # At the front, as the replies after it wait for it.
                    waiting.appendleft((place, job, attempt + 1))
                else:
                    yield (
                        place,
                        Failure(
                            job.client,
                            f"its worker process ended with code {code}, {attempt} times",
                        ),
                    )
                continue
            hand.at = None
            if isinstance(answer, StoreError):
                raise answer
            yield place, answer

    def _watch(self, hands: Sequence[_Hand]) -> None:
        """Name workers that show no sign of life; one that is lost for good is killed, and its job
        goes to another as after any death."""
        for hand in hands:
            silent = monotonic() - hand.beat.value
            if hand.at is None or silent < self.quiet:
                hand.warned = False
                continue
            client = hand.at[1].client
            if not hand.warned:
                getLogger("fedpeft").warning(
                    "worker process %s, which trains %s, has shown no sign of life for %.0f s: "
                    "is it stopped? It is killed after %.0f s, and another worker takes the client",
                    hand.process.pid,
                    client,
                    silent,
                    self.lost,
                )
                hand.warned = True
            if silent > self.lost:
                hand.process.kill()

    def close(self) -> None:
        """End the worker processes; an idle one ends itself, so that what its libraries hold is
        given back."""
        for hand in self._hands:
            hand.connection.close()
        while self._hands:
            hand = self._hands.pop()
            _dismiss(hand, grace=0 if hand.at else PARTING)
