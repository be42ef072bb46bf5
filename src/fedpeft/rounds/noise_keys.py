"""What the noise of one answer is drawn from, on the client that gives it."""

from hashlib import blake2b
from typing import TypeAlias

import torch

from fedpeft.core.interfaces import Data, Store
from fedpeft.core.secrets import Secret
from fedpeft.core.types import ClientId, Job
from fedpeft.storage.files import disk_errors

NoiseKey: TypeAlias = Secret


def key_of_answer(store: Store, job: Job, examples: str) -> NoiseKey:
    """The same for the same message and examples, and another for any other.

    Args:
      examples: their name, see `digest_examples`.
    """
    # of everything that a reply depends on, the examples too: the same noise on two replies would
    # take itself away
    asked = blake2b(job.payload).hexdigest()
    with disk_errors():
        own = store.secret(job.client)
    place = (job.run, job.round, job.phase, job.seed, job.accepted, job.step)
    return own.at(*place, asked, examples)


def digest_examples(data: Data, client: ClientId) -> str:
    """A name for the examples that a client trains on."""
    found = blake2b(digest_size=16)
    for batch in data.training(client):
        for name, x in sorted(batch.items()):
            found.update(name.encode())
            found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
