"""What an actor of Ray does with the messages of Flower's simulation: it keeps the base model and
the data."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.engines.processes import answer_job, make_answerer
from fedpeft.storage.files import StoreError
from fedpeft.wire.sockets import Envelope

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp


def client_app(held: Any) -> "ClientApp":
    """What an actor does with a message; `held` is where Ray keeps what it needs once."""
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from fedpeft.engines.flower.courier import pack_envelope, unpack_envelope

    def carry(message: "Message", context: "Context") -> "Message":
        asked = unpack_envelope(message)
        done = answer_job(_worker(held), Job(**asked.head, payload=asked.body))
        return Message(pack_envelope(_pack_result(done)), reply_to=message)

    app = ClientApp()
    app.query()(carry)
    return app


@lru_cache(maxsize=1)
def _worker(held: Any) -> Callable[[Job], Reply | Failure]:
    """An actor's worker, made for its first message: it keeps the base model and the data."""
    import ray

    plan, device, store = ray.get(held)
    torch.set_num_threads(plan.compute.threads)
    return make_answerer(plan, device, store)


def _pack_result(done: Reply | Failure | StoreError) -> Envelope:
    if isinstance(done, Reply):
        return Envelope({"kind": "reply"}, done.payload)
    if isinstance(done, Failure):
        return Envelope({"kind": "failed", "reason": done.reason})
    return Envelope(
        {"kind": "disk", "error": [done.errno, done.strerror, done.filename and str(done.filename)]}
    )


def result(client: ClientId, answer: Envelope) -> Reply | Failure:
    """What an envelope says of a client's job.

    Raises:
      StoreError: the disk fails under the clients' memory.
    """
    if answer.head["kind"] == "disk":
        raise StoreError(*answer.head["error"])
    if answer.head["kind"] == "failed":
        return Failure(client, answer.head["reason"], answered=True)
    return Reply(client, answer.body)
