"""Trainers of a user's own, as plans name them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from fedpeft.local.model_trainer import ModelTraining
from fedpeft.local.trainer import ClientModel, ClientTraining


def make(training: ClientTraining, **settings: Any) -> Trainer:
    """The three lines of the guide."""
    arguments = training.arguments(**settings)
    return Trainer(training.model, arguments, train_dataset=training.examples)


@dataclass
class Loop:
    """Plain steps on all examples at once, and something else at their end."""

    model: ClientModel
    size: int
    lr: float = 0.1
    steps: int = 1
    also: Callable[[nn.Module], object] = field(default=lambda weights: None)

    def train(self) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.model(torch.arange(self.size))["loss"].backward()
            optimizer.step()
        self.also(self.model.weights)


def loop(training: ClientTraining, **settings: Any) -> Loop:
    return Loop(training.model, len(training.examples), **settings)


def noisy(training: ClientTraining) -> Loop:
    """Prints, and trains at a rate that all three streams of chance decide."""
    draws = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
    print("a line of a trainer's log", training.seed, training.round, training.rounds)  # noqa: T201
    (training.folder / "checkpoint").write_text("left behind")
    return loop(training, lr=0.01 * draws)


def _drop(weights: nn.Module) -> None:
    del weights.get_submodule("head").weight


def _reshape(weights: nn.Module) -> None:
    weights.head.weight = nn.Parameter(torch.zeros(1))  # type: ignore[union-attr]


def _raise(weights: nn.Module) -> None:
    raise ValueError("the trainer's own words")


def _leave(weights: nn.Module) -> None:
    raise SystemExit(3)


BROKEN: dict[str, Callable[[nn.Module], object]] = {
    "drops": _drop,
    "reshapes": _reshape,
    "raises": _raise,
    "leaves": _leave,
}


def broken(training: ClientTraining, size: int, how: str) -> Loop | None:
    """A trainer that goes wrong at clients with so many examples, and nowhere else."""
    if len(training.examples) != size:
        return loop(training)
    if how == "nothing":
        return None
    if how == "still":
        return loop(training, lr=0.0)
    return loop(training, also=BROKEN[how])


def supervised(training: ClientTraining, size: int) -> Any:
    """At clients with so many examples TRL's trainer, with a data set of the kind that it takes."""
    if len(training.examples) != size:
        return loop(training)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    places = Dataset.from_dict({"place": list(range(size))})
    arguments = SFTConfig(str(training.folder), report_to="none", use_cpu=True, bf16=False)
    return SFTTrainer(training.model, arguments, train_dataset=places)


NO_FUNCTION = 3


@dataclass
class Plain:
    """A stand-in for TRL's trainers: it reads `model.config`, and learns from labels."""

    training: ModelTraining
    lr: float
    steps: int
    length: int
    also: Callable[[nn.Module], object]

    def train(self) -> Any:
        model, read = self.training.model, self.training.tokenizer()
        assert model.config.model_type == "llama"
        texts = [read.bos_token + text + read.eos_token for text in self.training.dataset()["text"]]
        made = read(texts, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor(one[: self.length])[None] for one in made]
        learned = [x for x in model.parameters() if x.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=self.lr)
        last = 0.0
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = torch.stack([model(input_ids=one, labels=one).loss for one in rows]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = float(loss.detach())
        self.also(model)
        return SimpleNamespace(training_loss=last)


def _frozen(model: nn.Module) -> nn.Parameter:
    return next(x for x in model.parameters() if not x.requires_grad)


def _write(model: nn.Module) -> None:
    """As a careless optimizer does, which no count of writes sees."""
    _frozen(model).data.mul_(1.5)


def plain(
    training: ModelTraining,
    lr: float = 0.05,
    steps: int = 1,
    length: int = 64,
    writes_in: int = -1,
    size: int = 0,
) -> Plain:
    """It goes wrong in one round, at clients with so many examples."""
    wrong = training.round == writes_in and len(training.dataset()) == size
    return Plain(training, lr, steps, length, _write if wrong else lambda model: None)


def sft(training: ModelTraining, **settings: Any) -> Any:
    """The three lines of the guide."""
    from trl import SFTConfig, SFTTrainer

    arguments = training.arguments(SFTConfig, **settings)
    return SFTTrainer(training.model, arguments, train_dataset=training.dataset())


def dpo(training: ModelTraining, **settings: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    arguments = training.arguments(DPOConfig, **settings)
    return DPOTrainer(
        training.model, training.reference(), arguments, train_dataset=training.dataset()
    )
