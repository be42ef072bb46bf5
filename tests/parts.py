"""Parts as a user would write them, in a module of their own: named "parts:Class" in a plan."""

import builtins
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from networks import NETWORKS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpeft.core.outputs import LOGITS, PREDICTION, Outputs, head_input
from fedpeft.core.secrets import Secret
from fedpeft.core.types import Batch, Examples, Job, Table, Tensors
from fedpeft.storage.client_memory import Folder


@dataclass(frozen=True)
class Blobs:
    """A cloud of points around a centre for each class. `point`: float32 (n, features)."""

    classes: int = 3
    features: int = 8
    examples: int = 120

    def load(self) -> Examples:
        draws = torch.Generator().manual_seed(0)
        centre = torch.randn(self.classes, self.features, generator=draws)
        label = torch.arange(self.examples) % self.classes
        point = centre[label] + 0.5 * torch.randn(self.examples, self.features, generator=draws)
        test = torch.arange(self.examples) >= self.examples * 3 // 4

        def rows(which: Tensor) -> Table:
            return Table({"point": point[which], "label": label[which]})

        return Examples(rows(~test), rows(test), tuple(f"class {k}" for k in range(self.classes)))


@dataclass(frozen=True)
class HalfBlobs(Blobs):
    """The same, with noise in the second half of the features."""

    def load(self) -> Examples:
        found, half = super().load(), self.features // 2
        draws = torch.Generator().manual_seed(1)
        for table in (found.train, found.test):
            noise = torch.randn(len(table), self.features - half, generator=draws)
            table.columns["point"][:, half:] = noise
        return found


@dataclass(frozen=True)
class Points:
    """Classify points with one of `NETWORKS`."""

    network: str = "linear"
    features: int = 8

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        network: nn.Module = NETWORKS[self.network](self.features, len(classes))
        return network

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits: Tensor = model(batch["point"])
        return {LOGITS: logits, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"accuracy": (outputs[LOGITS].argmax(-1) == batch["label"]).float()}


@dataclass(frozen=True)
class ClassedPoints(Points):
    """The same, which says that it tells classes apart, and its loss too."""

    tells_classes: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "loss")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {**super().metrics(outputs, batch), "loss": self.losses(outputs, batch)}


@dataclass(frozen=True)
class Slopes(Points):
    """A number learned of a point, by the squared error of the first output: `target` is the class
    of the point as a number, or is what a batch has."""

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        found = super().forward(model, batch, head)
        return {**found, PREDICTION: found[LOGITS][:, 0]}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        target = batch["target"] if "target" in batch else batch["label"].float()
        return (outputs[PREDICTION] - target).square()

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}

    def example(self) -> Batch:
        return {
            "point": torch.ones(1, self.features),
            "target": torch.ones(1),
            "mask": torch.ones(1),
        }


class Bowl(nn.Module):
    """A point that is looked for, from 1 in each coordinate."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


@dataclass(frozen=True)
class Bowls:
    """The loss of the example (point x, curvature a) is a/2·‖w − x‖²: what descent makes of it is
    known by hand."""

    features: int = 1

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return Bowl(self.features)

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return {PREDICTION: model(batch["point"])}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        squared = outputs[PREDICTION].square().sum(-1)
        return batch["curvature"] / 2 * squared

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


@dataclass(frozen=True)
class Fatal:
    """Points, but the process that trains the example whose first feature is `trigger` is killed.

    Attributes:
      once: a file; it is made, and nobody is killed once it is there. Empty: always.
    """

    trigger: float
    once: str = ""
    points: Points = field(default_factory=Points)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return self.points.build(classes, pretrained)

    def prepare(self, table: Table) -> Tensors:
        return self.points.prepare(table)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return self.points.batch(rows, generator)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return self.points.forward(model, batch, head)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        if bool((batch["point"][:, 0] == self.trigger).any()):
            die(self.once)
        return self.points.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return self.points.metrics(outputs, batch)


@dataclass(frozen=True)
class Raising:
    """Points, but who trains the example whose first feature is `trigger` gets the built-in
    exception `error`."""

    trigger: float
    error: str
    points: Points = field(default_factory=Points)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return self.points.build(classes, pretrained)

    def prepare(self, table: Table) -> Tensors:
        return self.points.prepare(table)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return self.points.batch(rows, generator)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return self.points.forward(model, batch, head)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        if bool((batch["point"][:, 0] == self.trigger).any()):
            raise getattr(builtins, self.error)("of this task")
        return self.points.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return self.points.metrics(outputs, batch)


@dataclass(frozen=True)
class Odd:
    """Points that are not like others.

    Attributes:
      what: "infinite", the loss of the example whose first feature is `trigger`; "cut", batches to
        widths of their own; "random", the loss from torch's own stream; "large", what a step asks
        for: `trigger` bytes a client.
    """

    what: str
    trigger: float = 0.0
    points: Points = field(default_factory=Points)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return self.points.build(classes, pretrained)

    def prepare(self, table: Table) -> Tensors:
        return self.points.prepare(table)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        width = 5 + int(rows["label"][0]) if self.what == "cut" else self.points.features
        return {**rows, "point": rows["point"][:, :width]}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        x = batch["point"]
        wide = torch.nn.functional.pad(x, (0, self.points.features - x.shape[1]))
        return self.points.forward(model, {**batch, "point": wide}, head)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        x = batch["point"]
        if self.what == "large":
            x.new_empty(int(self.trigger), dtype=torch.uint8)
        losses = self.points.losses(outputs, batch)
        if self.what == "random":
            losses = losses * torch.rand_like(losses)
        return (
            torch.where(x[:, 0] == self.trigger, torch.inf, 1.0) * losses
            if self.what == "infinite"
            else losses
        )

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return self.points.metrics(outputs, batch)


def die(once: str) -> None:
    """What `kill -9` does, at a moment of our choosing."""
    if not once or not Path(once).exists():
        if once:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DiesAfterSaving:
    """A folder of clients' memory whose process is killed between the memory's file and the reply,
    once."""

    folder: Folder
    client: str
    once: str

    def load(self, client: str, accepted: int | None, before: Job | None = None) -> Tensors:
        return self.folder.load(client, accepted, before)

    def reply(self, job: Job) -> bytes | None:
        return self.folder.reply(job)

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        self.folder.save(job, memory, payload)
        if job.client == self.client and job.round == 1:
            die(self.once)

    def secret(self, client: str) -> Secret:
        return self.folder.secret(client)

    def signer(self, client: str) -> bytes | None:
        return self.folder.signer(client)

    def note(self, client: str) -> bytes:
        return self.folder.note(client)

    def keep(self, client: str, note: bytes) -> None:
        self.folder.keep(client, note)


@dataclass(frozen=True)
class FailingDisk:
    """A folder of clients' memory whose disk is full when `client` comes to one of its methods."""

    folder: Folder
    client: str
    method: str

    def load(self, client: str, accepted: int | None, before: Job | None = None) -> Tensors:
        self._at("load", client)
        return self.folder.load(client, accepted, before)

    def reply(self, job: Job) -> bytes | None:
        self._at("reply", job.client)
        return self.folder.reply(job)

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        self._at("save", job.client)
        self.folder.save(job, memory, payload)

    def secret(self, client: str) -> Secret:
        return self.folder.secret(client)

    def signer(self, client: str) -> bytes | None:
        return self.folder.signer(client)

    def note(self, client: str) -> bytes:
        return self.folder.note(client)

    def keep(self, client: str, note: bytes) -> None:
        self.folder.keep(client, note)

    def _at(self, method: str, client: str) -> None:
        if (method, client) == (self.method, self.client):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "memory")
