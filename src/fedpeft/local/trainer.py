"""A client's training by a trainer of the user's own, such as `transformers.Trainer`.

The trainer sees a small module, which holds what travels and nothing else. Its pass is the plan's
own loss and gradient: the frozen base stays where no trainer can write to it, and methods, views,
buffers, `compute.micro_batch` and `compute.checkpointing` work as they do under `descent`.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.seeds import fold, generator, seed_torch
from fedpeft.core.tensors import equal, sub
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.errors import PlanError
from fedpeft.registry import code, import_target

SEEDS = 2**32
"""NumPy, which `transformers.set_seed` seeds too, takes no larger seed."""


class ClientModel(nn.Module):
    """What a trainer trains: a client's tensors under their own names, and the loss of examples.

    `forward(place)` takes the places (batch,) of examples among the client's, and gives their mean
    loss as `{"loss": loss}`. The gradient is the plan's own; the loss carries it as the slope of a
    sum that is zero, so that any scale, accumulation or optimizer of the trainer's applies to it.
    """

    def __init__(self, params: Tensors, examples: Batch, losses: LossFn) -> None:
        super().__init__()
        self.weights = nn.Module()
        for name, x in params.items():
            _place(self.weights, name, nn.Parameter(x.detach().clone()))
        self.places: dict[str, None] = dict.fromkeys(params)
        self.examples = examples
        self.losses = losses
        self.seen = 0.0
        self.total = 0.0

    def forward(self, place: Tensor) -> Mapping[str, Tensor]:
        params = self.read()
        batch = {name: x[place.to(x.device)] for name, x in self.examples.items()}
        # a trainer that evaluates asks without gradients, and the plan's pass takes them itself
        with torch.enable_grad():
            gradient, each, buffers = self.losses.gradient(params, batch)
        with torch.no_grad():
            for name, x in buffers.items():
                params[name].copy_(x)
        mask = batch["mask"]
        if self.training:
            self.total += float((each * mask).sum())
            self.seen += float(mask.sum())
        slope = torch.stack([(params[name] * g).sum() for name, g in gradient.items()]).sum()
        # The value is the loss to the last bit, and the derivative by each tensor its gradient.
        return {"loss": (each * mask).sum() / mask.sum() + (slope - slope.detach())}

    def read(self) -> dict[str, Tensor]:
        """The tensors as they are now, by the names under which they travel."""
        found = dict(self.weights.named_parameters(remove_duplicate=False))
        return {name: found[name] for name in self.places if name in found}


@dataclass(frozen=True)
class Places(torch.utils.data.Dataset[dict[str, int]]):
    """A client's examples as their places: the model looks up what stands there.

    So no collator or column filter of a trainer's changes an example.
    """

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict[str, int]:
        return {"place": place}


@dataclass(frozen=True)
class ClientTraining:
    """What the function that a plan names gets, and makes a trainer of.

    Attributes:
      model: what is trained.
      examples: what it is trained on, for `train_dataset`.
      seed: of this client in this round, from 0 to 2³² − 1.
      round: counted from 0.
      rounds: how many the plan has.
      folder: for files of the trainer's; it is deleted after the training.
    """

    model: ClientModel
    examples: Places
    seed: int
    round: int
    rounds: int
    folder: Path

    def arguments(self, **settings: Any) -> Any:
        """`transformers.TrainingArguments` with the seed and the folder of this training, without
        files, progress bars and reports; `settings` go before these."""
        from transformers import TrainingArguments  # `fedpeft show` of a plan needs none of it

        device = next(self.model.parameters()).device.type
        usual = {
            "output_dir": str(self.folder),
            "seed": self.seed,
            "use_cpu": device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            # the examples lie in memory, and pinning them needs a GPU
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**{**usual, **settings})


@dataclass(frozen=True, kw_only=True)
class OwnTrainer:
    """A function of the user's gets a `ClientTraining` and returns a trainer, whose `train()` is a
    client's round.

    A round is one step over all of a client's examples, as they are drawn at its beginning: the
    trainer says how often it goes through them, in which order and batches, and with which
    optimizer. It begins afresh in each round.

    Attributes:
      trainer: "package.module:function".
      arguments: for the call, by keyword.

    Raises:
      ValueError: `trainer` is no such name.
    """

    trainer: str = code()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    precision: ClassVar[str] = "float32"
    passes: ClassVar[float] = 1.0
    event: ClassVar[Event | None] = None
    trains_alone: ClassVar[str] = "a trainer of one's own trains one client at a time"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.OWN_LENGTH})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.EXAMPLE_NOISE: "{other} {what}, and a trainer of one's own clips no example and adds "
        'no noise: set local = "dp_sgd", or hide clients instead, with stages = ["client_dp"]'
    }

    def __post_init__(self) -> None:
        module, _, name = self.trainer.partition(":")
        if not module or not name:
            raise ValueError(
                "trainer must be a name like package.module:function, got "
                f"{self.trainer!r}: name the function that makes your trainer"
            )

    def check_run(self) -> None:
        """Raises PlanError where there is no such function, before anybody trains."""
        self._make()

    def _make(self) -> Callable[..., Any]:
        try:
            make = import_target(self.trainer)
        except (ImportError, AttributeError) as error:
            raise PlanError(
                f"local.trainer = {self.trainer!r} cannot be imported: {error}. Put its module "
                "into the working folder, or install it"
            ) from None
        if not callable(make):
            raise PlanError(
                f"local.trainer = {self.trainer!r} is of type {type(make).__name__}: name a "
                "function that makes a trainer"
            )
        checked: Callable[..., Any] = make
        return checked

    def steps_for(self, size: int) -> int:
        return 1

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        # all in one, since a trainer makes batches of its own
        return data.batches(context.client, context.size, 1, generator(context.seed, "batches"))

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        seed = fold(context.seed, "trainer") % SEEDS
        about = {"seed": seed, "round": context.round, "rounds": context.rounds}
        return {
            "params": received,
            "about": {name: torch.tensor(value) for name, value in about.items()},
            "totals": {},
        }

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        start = carry["params"]
        if any(x.is_meta for x in start.values()):
            raise PlanError(
                "what a trainer of one's own takes is known only when it runs: run one round"
            )
        model = ClientModel(start, batch, losses)
        about = {name: int(x) for name, x in carry["about"].items()}
        places = Places(len(batch["mask"]))
        with TemporaryDirectory(prefix="fedpeft-trainer-") as folder, _seeded(about["seed"]):
            self._train(ClientTraining(model, places, folder=Path(folder), **about))
        # without a pass there is no loss to tell
        totals = {"loss": model.total, "examples": model.seen} if model.seen else {}
        return {
            **carry,
            "params": self._trained(model, start),
            "totals": {name: torch.tensor(value) for name, value in totals.items()},
        }

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return sub(carry["params"], received), {}, carry["totals"]

    def _train(self, training: ClientTraining) -> None:
        # trainers print their logs, and commands promise what is on standard output
        with redirect_stdout(sys.stderr):
            try:
                trainer = self._make()(training, **self.arguments)
                if not callable(getattr(trainer, "train", None)):
                    raise TypeError(
                        f"local.trainer = {self.trainer!r} returned {type(trainer).__name__}: "
                        "return an object with a method train(), such as transformers.Trainer"
                    )
                trainer.train()
            except SystemExit as error:  # it would end the node, or the run of all clients
                raise RuntimeError(
                    f"local.trainer = {self.trainer!r} left with exit({error.code}): raise an "
                    "error instead"
                ) from None

    def _trained(self, model: ClientModel, start: Tensors) -> Tensors:
        """What the trainer made of the client's tensors.

        Raises:
          ValueError: they are other ones, or none of them has changed.
        """
        found = model.read()
        ended = {name: x.detach().to(start[name].device) for name, x in found.items()}
        other = [
            name
            for name, x in start.items()
            if name not in ended or (ended[name].shape, ended[name].dtype) != (x.shape, x.dtype)
        ]
        if other:
            raise ValueError(
                f"local.trainer = {self.trainer!r} left {other[0]!r} with another shape or type, "
                "or none: train the tensors of `model` and keep them as they are"
            )
        if equal(ended, start):
            raise ValueError(
                f"local.trainer = {self.trainer!r} changed no tensor: its train() must train "
                "`model` on `examples`, with a rate above 0"
            )
        return ended


def _place(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, by which trainers choose what decays."""
    *path, last = name.split(".")
    module = root
    for part in path:
        children = dict(module.named_children())
        if part not in children:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
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
