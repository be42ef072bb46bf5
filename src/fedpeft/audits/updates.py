"""One update, as a server reads it."""

from fedpeft.core.rounds import update_layout
from fedpeft.core.types import Job, Reply, Tensors
from fedpeft.plan.coding import uplink_coding
from fedpeft.rounds.client import Worker
from fedpeft.rounds.received import Received
from fedpeft.wire.payloads import unpack


def read_update(worker: Worker, job: Job, reply: Reply) -> tuple[Received, Tensors]:
    """What a client was sent, and the delta that came back, as a server reads it."""
    plan = worker.site.plan
    view = plan.view(job.client, job.round, worker.clients)
    found = worker.receive(job.payload, view, job.phase, job.round)
    expected = update_layout(found.message, view, plan.local_shares)
    how = uplink_coding(plan, job.round, job.client, view, found.message)
    optional = plan.optional_groups(expected)
    return found, unpack(job.client, reply.payload, plan.uplink, expected, how, optional).delta
