"""One seed, many independent streams, each named by where it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def fold(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream at `path`, e.g. `fold(seed, "fit", round, client)`.

    Hashing the whole path means that no two uses share a stream by accident, and that adding a
    stream does not shift the others.
    """
    # Every draw of every run follows from this text and from the streams' names: another spelling
    # is another result.
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A generator of its own for the stream at `path`."""
    return torch.Generator().manual_seed(fold(seed, *path))


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Torch's default generators start from `seed` inside and are as before outside.

    For code that takes no generator: initialisers of `transformers` and `peft`, dropout layers.
    """
    # not torch.manual_seed: for every device that is not in use it formats the stack and keeps it
    # for ever
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), _apple_seeded(seed):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


@contextmanager
def _apple_seeded(seed: int) -> Iterator[None]:
    """The same for Apple's devices, where there is one."""
    if not torch.backends.mps.is_available():
        yield
        return
    before = torch.mps.get_rng_state()
    torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        torch.mps.set_rng_state(before)
