"""What the local trainings have in common that call a trainer of the user's own."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import equal
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError
from fedpeft.registry import import_target

SEEDS = 2**32
"""NumPy, which `transformers.set_seed` seeds too, takes no larger seed."""
NO_NOISE = (
    "{other} {what}, and a trainer of one's own clips no example and adds no noise: set local = "
    '"dp_sgd", or hide clients instead, with stages = ["client_dp"]'
)
"""Why noise for examples goes with no trainer; see `core.facts`."""
TRAINS_ALONE = "a trainer of one's own trains one client at a time"
"""Why no trainer trains a stack of clients."""


def check_function_name(trainer: str) -> None:
    """Raises ValueError for another name than package.module:function."""
    module, _, name = trainer.partition(":")
    if not module or not name:
        raise ValueError(
            "trainer must be a name like package.module:function, got "
            f"{trainer!r}: name the function that makes your trainer"
        )


def load_function(trainer: str) -> Callable[..., Any]:
    """The function that makes a trainer.

    Raises:
      PlanError: there is no such function.
    """
    try:
        make = import_target(trainer)
    except (ImportError, AttributeError) as error:
        raise PlanError(
            f"local.trainer = {trainer!r} cannot be imported: {error}. Put its module "
            "into the working folder, or install it"
        ) from None
    if not callable(make):
        raise PlanError(
            f"local.trainer = {trainer!r} is of type {type(make).__name__}: name a "
            "function that makes a trainer"
        )
    checked: Callable[..., Any] = make
    return checked


def run_trainer(trainer: str, training: Any, arguments: Mapping[str, Any]) -> Any:
    """What the `train()` of the trainer returns that the function makes.

    Raises:
      TypeError: it is no trainer.
      RuntimeError: it wanted to end the process.
    """
    # trainers print their logs, and commands promise what is on standard output
    with redirect_stdout(sys.stderr):
        try:
            made = load_function(trainer)(training, **arguments)
            if not callable(getattr(made, "train", None)):
                raise TypeError(
                    f"local.trainer = {trainer!r} returned {type(made).__name__}: "
                    "return an object with a method train(), such as transformers.Trainer"
                )
            return made.train()
        except SystemExit as error:  # it would end the node, or the run of all clients
            raise RuntimeError(
                f"local.trainer = {trainer!r} left with exit({error.code}): raise an error instead"
            ) from None


def check_result(trainer: str, found: Tensors, start: Tensors) -> dict[str, Tensor]:
    """What the trainer made of a client's tensors, where those lie that it started from.

    Raises:
      ValueError: they are other ones, or none of them has changed.
    """
    ended = {name: x.detach().to(start[name].device) for name, x in found.items()}
    other = [
        name
        for name, x in start.items()
        if name not in ended or (ended[name].shape, ended[name].dtype) != (x.shape, x.dtype)
    ]
    if other:
        raise ValueError(
            f"local.trainer = {trainer!r} left {other[0]!r} with another shape or type, "
            "or none: train the tensors of `model` and keep them as they are"
        )
    if equal(ended, start):
        raise ValueError(
            f"local.trainer = {trainer!r} changed no tensor: its train() must train "
            "`model` on the client's examples, with a rate above 0"
        )
    return ended


def make_arguments(
    kind: Callable[..., Any] | None, settings: Mapping[str, Any], folder: Path, seed: int, on: str
) -> Any:
    """Arguments of a trainer with this seed and folder, without files, progress bars and reports;
    `settings` go before these.

    Args:
      kind: the arguments' class; None for `transformers.TrainingArguments`.
      on: the kind of device that the trainer computes on, e.g. "cpu".
    """
    if kind is None:
        from transformers import TrainingArguments  # `fedpeft show` of a plan needs none of it

        kind = TrainingArguments
    usual = {
        "output_dir": str(folder),
        "seed": seed,
        "use_cpu": on == "cpu",
        "bf16": False,  # TRL's arguments set it unless they are told
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        # the examples lie in memory, and pinning them needs a GPU
        "dataloader_pin_memory": False,
    }
    return kind(**{**usual, **settings})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All streams that trainers draw from start from `seed` inside and are as before outside."""
    # the global streams, as others' code draws from them
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        with seed_torch(seed):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002
