"""What every racer is given, and how it is told to go. Nothing here knows a framework, fedpeft
included."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.racing.models import MODELS, forward

START, ROWS, ORDERS = "start.safetensors", "rows.safetensors", "course.json"


@dataclass(frozen=True)
class Course:
    """A folder with the same work for everybody: the model at its start, the rows, who trains when
    on which.

    Attributes:
      settings: `model`, `classes`, `lora` (what `peft` is told, or None), `trained` (names),
        `batch`, `lr`, `clients` and `rounds`: for each round the clients in order, for each client
        its rows in the order of its steps.
    """

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / ORDERS).read_text())
        return values

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        return load_file(self.folder / ROWS)

    @cached_property
    def rounds(self) -> Sequence[Mapping[str, Tensor]]:
        return [
            {name: torch.tensor(rows) for name, rows in one.items()}
            for one in self.settings["rounds"]
        ]

    def model(self) -> nn.Module:
        """The model at its start; only what is trained asks for gradients."""
        model: nn.Module = MODELS[self.settings["model"]](self.settings["classes"])
        if self.settings["lora"]:
            from peft import LoraConfig, inject_adapter_in_model

            model = inject_adapter_in_model(LoraConfig(**self.settings["lora"]), model)
        model.load_state_dict(load_file(self.folder / START))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.settings["trained"])
        return model.train()

    def of(self, round_: int, client: str) -> tuple[Tensor, Tensor]:
        """A client's inputs and labels in the order of its steps."""
        order = self.rounds[round_][client]
        return self.rows["x"][order], self.rows["label"][order]

    def batches(self, round_: int, client: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The same in batches, taken from the rows one at a time."""
        for chunk in torch.split(self.rounds[round_][client], self.settings["batch"]):
            yield self.rows["x"][chunk], self.rows["label"][chunk]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            trained(model).values(), lr=self.settings["lr"], momentum=0.9, nesterov=True
        )

    def train(self, model: nn.Module, round_: int, client: str) -> None:
        """One client's epoch, as it is written in PyTorch's tutorials."""
        optimizer = self.optimizer(model)
        for x, y in self.batches(round_, client):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(forward(model, x), y))
            optimizer.step()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put the trained tensors into the model."""
    with torch.no_grad():
        for name, x in trained(model).items():
            x.copy_(values[name])


@dataclass
class Track:
    """A racer's end: commands come on stdin, answers go to what was stdout; whatever else is
    printed goes to stderr.

        while track.go():
            ...one round...
            track.done()
        track.end(parameters)

    Commands are `go N`, which asks for N rounds, and `end`. For each `go` there is one answer: the
    rounds' seconds.
    """

    result: Path
    asked: int = 0
    at: int = -1
    seconds: list[float] = field(default_factory=list)
    began: float = 0.0
    answers: TextIO = field(init=False)

    def __post_init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def go(self) -> bool:
        """Wait until a round is asked for; its number is `at`. False at the end."""
        if not self.asked:
            word, _, count = sys.stdin.readline().strip().partition(" ")
            if word != "go":
                return False
            self.asked = int(count)
        self.at += 1
        self.began = time.perf_counter()
        return True

    def done(self) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.asked -= 1
        if not self.asked:
            self.answers.write(json.dumps(self.seconds) + "\n")
            self.seconds = []

    def end(self, parameters: Mapping[str, Tensor]) -> None:
        save_file({name: x.detach().clone() for name, x in parameters.items()}, self.result)
        self.answers.write("[]\n")
