"""Torch modules as users write them, for the tests of the task that federates such modules."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers and a head."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def linear() -> nn.Module:
    return nn.Linear(64, 10)


class Summed(nn.Module):
    """Gives no logits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(x)


NOT_A_MODULE = {"a": 1}
