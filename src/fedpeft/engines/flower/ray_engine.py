"""Clients in actors of Ray (arXiv:1712.05889), as Flower's simulation holds them: on this machine,
or on a cluster.

Each actor stays, with the base model and the data. What crosses is what crosses Flower's networks:
an envelope for a job.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from logging import CRITICAL, ERROR, getLogger
from pickle import PicklingError
from queue import SimpleQueue
from threading import Event, Thread, current_thread, main_thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from fedpeft.core.interfaces import Store
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.engines.flower.engine import head_of, server_app, words
from fedpeft.engines.flower.ray_actor import client_app, result
from fedpeft.engines.processes import ATTEMPTS, processors
from fedpeft.errors import PlanError, RunError, explain_install
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.wire.sockets import Envelope

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

CLUSTER = "RAY_ADDRESS"
"""The variable that names a cluster; "auto" is the one that this machine belongs to."""
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Nothing is reported to anybody; the last spares a warning."""
AHEAD = 4  # jobs on their way for each actor: Flower looks for them ten times a second
OUT_OF_ACTORS = "<class 'IndexError'>"
"""What Flower's error begins with where its list of idle actors is empty; an error of a client's
own has another class."""
POLL = 0.02  # seconds between two looks for answers
LOOK = 2.0  # seconds between two counts of the cluster's machines, while nothing comes
GO_ON = (
    "The last finished round is kept: look at `ray status`, and go on with `fedpeft run --resume` "
    "on the machines that are left"
)
LONG = 1e9  # seconds that a job may take: a simulation waits for its clients
PARTING = 30.0  # seconds that Flower has to end; it takes two


@dataclass(eq=False)
class FlowerSimulation:
    """Replies come in the order of the jobs; an actor that is killed costs nothing but time.

    Attributes:
      workers: actors, each with `plan.compute.threads` processors; 0 for as many as there is room
        for.

    Raises:
      RunError: Flower or Ray is not installed, or a number is given for a cluster, which has its
        own.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    workers: int = 0
    _simulation: "Simulation | None" = None

    def __post_init__(self) -> None:
        self.check(self.workers)

    @staticmethod
    def check(workers: int) -> None:
        """Raises RunError as above."""
        if find_spec("flwr") is None or find_spec("ray") is None:
            raise RunError(
                f'the engine "flower-simulation" needs Ray: {explain_install("flower-simulation")}'
            )
        if workers and CLUSTER in os.environ:
            raise RunError(
                f"the cluster that {CLUSTER} names has its own number of workers: leave it out"
            )

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        """Hand out the jobs and give their answers in order.

        Raises:
          PlanError: a part of the plan cannot be sent to another process.
          RunError: Ray or Flower's simulation does not begin, or breaks down.
          StoreError: the disk fails under the clients' memory.
        """
        waiting = deque(jobs)
        clients, done = [job.client for job in waiting], dict[ClientId, Reply | Failure]()
        if clients and self._simulation is None:
            self._simulation = begin(self.site, self.store, self.workers)
        try:
            for client in clients:
                while client not in done:
                    assert self._simulation is not None
                    self._simulation.send(waiting)
                    done |= self._simulation.answers()
                yield done.pop(client)
        finally:
            # who leaves in the middle of a round must not wait for it in the next
            if self._simulation is not None and self._simulation.asked:
                self.close()

    def close(self) -> None:
        """End the actors, and this process's part in Ray, also where somebody else had begun it
        here."""
        simulation, self._simulation = self._simulation, None
        if simulation is not None:
            simulation.close()


@dataclass(eq=False)
class Simulation:
    """Flower's simulation, in a thread of its own.

    Attributes:
      ended: what it ended with, once it has ended.
      idle: the nodes that have no job; which of them carries one is no matter.
      asked: by message, whose job it holds, and at which node.
      machines: Ray's names of those that it began with.
      look: when they are counted again, in seconds of the clock.
    """

    grid: "Grid"
    thread: Thread
    leave: Event
    ended: "SimpleQueue[BaseException]"
    idle: list[int] = field(default_factory=list)
    asked: dict[str, tuple[ClientId, int]] = field(default_factory=dict)
    machines: frozenset[str] = field(default_factory=lambda: _machines())
    look: float = 0.0

    def send(self, waiting: deque[Job]) -> None:
        """Send as many of the jobs as there are idle nodes."""
        from flwr.app import Message, MessageType

        from fedpeft.engines.flower.courier import pack_envelope

        while waiting and self.idle:
            job, node = waiting.popleft(), self.idle.pop()
            envelope = Envelope(head_of(job), job.payload)
            [name] = self.grid.push_messages(
                [Message(pack_envelope(envelope), node, MessageType.QUERY, ttl=LONG)]
            )
            self.asked[name] = job.client, node

    def answers(self) -> dict[ClientId, Reply | Failure]:
        """What came; after a moment, where nothing did."""
        from fedpeft.engines.flower.courier import unpack_envelope

        if not self.thread.is_alive():
            raise RunError(f"Flower's simulation broke down: {self.ended.get()}")
        done: dict[ClientId, Reply | Failure] = {}
        for message in self.grid.pull_messages(self.asked):
            client, node = self.asked.pop(message.metadata.reply_to_message_id)
            self.idle.append(node)
            if message.has_error():
                done[client] = _failure(client, words(message.error.reason))
            else:
                done[client] = result(client, unpack_envelope(message))
        if not done:
            self._count_machines()
            sleep(POLL)
        return done

    def _count_machines(self) -> None:
        """Raises RunError where one is lost: Ray would wait for room for its actors for ever."""
        if monotonic() < self.look:
            return
        self.look = monotonic() + LOOK
        from ray.exceptions import RaySystemError

        try:
            now = _machines()
        except RaySystemError:  # Flower has ended it: the next look for answers says why
            return
        if lost := len(self.machines - now):
            raise RunError(f"the cluster has lost {lost} of {len(self.machines)} machines. {GO_ON}")

    def close(self) -> None:
        """End it. Nothing is lost of what a client had to keep: that is written before it
        answers."""
        import ray

        self.leave.set()
        # Where Flower broke down, it has shut Ray down itself.
        if self.asked and self.thread.is_alive():
            _end_actors()
        self.thread.join(PARTING)
        ray.shutdown()


def _machines() -> frozenset[str]:
    """Those of the cluster that Ray hears of. It takes some twenty seconds to miss one."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _failure(client: ClientId, reason: str) -> Failure:
    """What an error of Flower's says of a client's job.

    Raises:
      RunError: it is no client's: Flower has fewer actors than it gives work to, and every job that
        finds none would fail at once.
    """
    if reason.startswith(OUT_OF_ACTORS):
        raise RunError(
            "Flower's simulation has lost an actor for good, as it does where a machine of the "
            f"cluster goes. {GO_ON}"
        )
    return Failure(client, f"its actor did not do the work: {reason}")


def begin(site: Site, store: Store, workers: int) -> Simulation:
    """Begin Ray, or find the cluster, and have Flower make the actors.

    Raises:
      PlanError: a part of the plan cannot be sent to another process.
      RunError: Ray or Flower does not begin.
    """
    threads = site.plan.compute.threads
    wanted = min(
        workers or max(1, processors() // threads), site.plan.cohort, len(site.data.clients)
    )
    with _silence_ray():
        import ray

        # Before Flower begins it, so that the plan lies in Ray's store once and goes with no
        # message.
        _begin_ray(wanted * threads)
        try:
            app = client_app(_put_in_ray(site, store))
            nodes = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0) // threads))
            return _simulation(
                app, nodes, {"num_cpus": threads, "num_gpus": float(site.device.startswith("cuda"))}
            )
        except BaseException:
            ray.shutdown()
            raise


def _simulation(app: "ClientApp", nodes: int, each: dict[str, float]) -> Simulation:
    """Flower's simulation of so many nodes, whose actors have so much `each`."""
    from flwr.simulation import run_simulation

    leave, ended, grids = Event(), SimpleQueue[BaseException](), SimpleQueue["Grid | None"]()
    # Flower never begins a dead actor again. Ray does with these two, and repeats its job once.
    settings = {"client_resources": {**each, "max_restarts": -1, "max_task_retries": ATTEMPTS - 1}}
    getLogger("flwr").setLevel(CRITICAL)  # what goes wrong is a failure of a client, or raised

    def serve(grid: "Grid", settings: object) -> None:
        grids.put(grid)
        leave.wait()

    def simulate() -> None:
        try:
            run_simulation(server_app(serve), app, nodes, "ray", settings)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(RunError("it ended by itself"))
        finally:
            grids.put(None)

    thread = Thread(target=simulate, daemon=True)
    thread.start()
    try:
        grid = grids.get()
        if grid is None:
            raise RunError(f"Flower's simulation does not begin: {ended.get()}")
        made = Simulation(grid, thread, leave, ended)
        while thread.is_alive() and len(made.idle) < nodes:
            sleep(POLL)
            made.idle = list(grid.get_node_ids())
        return made
    except BaseException:  # Ctrl-C: Flower's threads would keep this process from ending
        leave.set()
        thread.join(PARTING)
        raise


def _end_actors() -> None:
    """End them in the middle of their work, or Flower waits for it, and for ever where Ray is shut
    down meanwhile.

    Ray's public way needs their handles, which Flower has.
    """
    import ray
    from ray._private.state import actors
    from ray._private.worker import global_worker

    for number in actors(job_id=global_worker.current_job_id):
        with suppress(Exception):  # it has ended meanwhile
            global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(number)), True)


def _begin_ray(count: int) -> None:
    """With so many processors, if it is begun here."""
    import ray

    here = (
        {}
        if CLUSTER in os.environ
        else {"address": "local", "num_cpus": count, "include_dashboard": False}
    )
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**here, log_to_driver=False, logging_level=ERROR)
    except Exception as error:  # it raises plain ones too
        raise RunError(f"Ray does not begin: {words(error)}") from None
    finally:
        if current_thread() is main_thread():  # where Ray takes it over
            signal.signal(signal.SIGTERM, handler)


def _put_in_ray(site: Site, store: Store) -> Any:
    """Where Ray keeps what each actor needs once."""
    import ray

    try:
        return ray.put((site.plan, site.device, store))
    except (TypeError, AttributeError, PicklingError) as error:
        message = (
            f"a part of the plan cannot be sent to other processes ({words(error)}): "
            'use engine = "inprocess"'
        )
        raise PlanError(message) from None


@contextmanager
def _silence_ray() -> Iterator[None]:
    """What is begun inside reports nothing to anybody, and finds the modules that this process
    finds."""
    found = os.pathsep.join(path or os.getcwd() for path in sys.path)
    own = {**SWITCHES, "PYTHONPATH": found}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
