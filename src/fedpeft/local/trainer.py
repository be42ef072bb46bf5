"""A client's training by a trainer of the user's own, such as `transformers.Trainer`.

The trainer sees a small module, which holds what travels and nothing else. Its pass is the plan's
own loss and gradient: the frozen base stays where no trainer can write to it, and methods, views,
buffers, `compute.micro_batch` and `compute.checkpointing` work as they do under `descent`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.seeds import fold, generator
from fedpeft.core.tensors import sub
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.errors import PlanError
from fedpeft.local.own_code import (
    NO_NOISE,
    SEEDS,
    TRAINS_ALONE,
    check_function_name,
    check_result,
    load_function,
    make_arguments,
    run_trainer,
    seeded,
)
from fedpeft.registry import code


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

    def arguments(self, kind: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
        """`transformers.TrainingArguments`, or those of another `kind`, with the seed and the
        folder of this training, without files, progress bars and reports; `settings` go before
        these."""
        device = next(self.model.parameters()).device.type
        return make_arguments(kind, settings, self.folder, self.seed, device)


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
    trains_alone: ClassVar[str] = TRAINS_ALONE
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.OWN_LENGTH})
    forbids: ClassVar[Mapping[Fact, str]] = {Fact.EXAMPLE_NOISE: NO_NOISE}

    def __post_init__(self) -> None:
        check_function_name(self.trainer)

    def check_run(self) -> None:
        """Raises PlanError where there is no such function, before anybody trains."""
        load_function(self.trainer)

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
        with TemporaryDirectory(prefix="fedpeft-trainer-") as folder, seeded(about["seed"]):
            training = ClientTraining(model, places, folder=Path(folder), **about)
            run_trainer(self.trainer, training, self.arguments)
        # without a pass there is no loss to tell
        totals = {"loss": model.total, "examples": model.seen} if model.seen else {}
        return {
            **carry,
            "params": check_result(self.trainer, model.read(), start),
            "totals": {name: torch.tensor(value) for name, value in totals.items()},
        }

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return sub(carry["params"], received), {}, carry["totals"]


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
