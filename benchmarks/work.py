"""The work that is timed: models, data and the bare PyTorch loop without any federation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.racing.models import Head, bert, vit
from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.types import Batch, Examples, Table, Tensors

CLASSES = tuple(f"class{k}" for k in range(100))


@dataclass(frozen=True)
class TinyViT:
    """A ViT of 5.4 M parameters for 32x32 pixels."""

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return vit(len(classes))

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return {LOGITS: model(pixel_values=batch["x"]).logits}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


@dataclass(frozen=True)
class Tokens:
    """A BERT of MiniLM's size, without dropout."""

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return bert(len(classes))

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return {LOGITS: model(input_ids=batch["x"]).logits}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


@dataclass(frozen=True)
class LinearHead:
    """A new head on features that are there already: what head-tuning comes down to."""

    features: int = 192

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return Head(len(classes), self.features)

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        return {LOGITS: model(batch["x"])}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


@dataclass(frozen=True)
class Noise:
    """Random examples of a shape, `each` for every one of `clients` clients; tokens where `tokens`
    says of how many."""

    clients: int
    each: int
    shape: tuple[int, ...]
    tokens: int = 0

    def load(self) -> Examples:
        rng = torch.Generator().manual_seed(0)
        n = max(self.clients * self.each, len(CLASSES))
        shape = (n, *self.shape)
        x = (
            torch.randint(1, self.tokens, shape, generator=rng)
            if self.tokens
            else torch.randn(shape, generator=rng)
        )
        label = torch.arange(n) % len(CLASSES)
        few = Table({"x": x[: len(CLASSES)], "label": label[: len(CLASSES)]})
        return Examples(Table({"x": x, "label": label}), few, CLASSES)


def bare_round(
    model: nn.Module,
    forward: Callable[[nn.Module, Tensor], Tensor],
    clients: Sequence[tuple[Tensor, Tensor]],
    batch: int,
    lr: float,
) -> None:
    """One round by hand: each client from the same start, SGD with Nesterov's momentum, the mean
    written back."""
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    total = [torch.zeros_like(p) for p in trained]
    model.train()
    for x, y in clients:
        with torch.no_grad():
            for p, s in zip(trained, start, strict=True):
                p.copy_(s)
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, nesterov=True)
        for chunk in torch.split(torch.randperm(len(y)), batch):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(forward(model, x[chunk]), y[chunk]))
            optimizer.step()
        for t, p in zip(total, trained, strict=True):
            t += p.detach()
    with torch.no_grad():
        for p, t in zip(trained, total, strict=True):
            p.copy_(t / len(clients))
