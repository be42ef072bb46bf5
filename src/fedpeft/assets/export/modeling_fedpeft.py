"""A classifier with trained layers that neither `transformers` nor `peft` has: bottleneck adapters,
visual prompts.

`fedpeft export` put this file here. It needs torch and transformers, not fedpeft. `config.fedpeft`
lists what is put into the base model, in order: ["adapter", layer, width], ["prompt", block,
tokens] or ["cut", block, tokens].
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import ViTForImageClassification as Base


class Bottleneck(nn.Module):
    """x + up(GELU(down(x))); Houlsby et al., 2019, arXiv:1902.00751."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, width)
        self.up = nn.Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(gelu(self.down(x)))
        return x + added


class Adapted(nn.Module):
    """A layer, and an adapter on its output."""

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        self.adapter = Bottleneck(base.weight.shape[1 if hasattr(base, "nf") else 0], width)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.adapter(self.base(x))
        return adapted


class Appended(nn.Module):
    """A block that sees `prompt`, shape (tokens, d), after its input; Jia et al., 2022,
    arXiv:2203.12119."""

    def __init__(self, block: nn.Module, tokens: int, size: int) -> None:
        super().__init__()
        self.block = block
        self.prompt = nn.Parameter(torch.zeros(tokens, size))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        prompt = self.prompt.expand(len(x), -1, -1)
        return self.block(torch.cat([x, prompt.to(x.dtype)], 1), *args, **kwargs)


class Cut(nn.Module):
    """A block whose last `tokens` outputs are dropped."""

    def __init__(self, block: nn.Module, tokens: int) -> None:
        super().__init__()
        self.block = block
        self.tokens = tokens

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(x, *args, **kwargs)[:, : -self.tokens]


class FedpeftConfig(Base.config_class):  # type: ignore[misc]
    """The base model's, under a name of its own: without this file nobody takes the folder for a
    plain base model."""

    model_type = "fedpeft"


class FedpeftModel(Base):  # type: ignore[misc]
    """The base model with the layers of `config.fedpeft`."""

    config_class = FedpeftConfig

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        config.__class__ = Base.config_class  # some base models choose their parts by it
        super().__init__(config, *args, **kwargs)
        config.__class__ = FedpeftConfig
        for kind, name, number in config.fedpeft:
            inner = self.get_submodule(name)
            if kind == "adapter":
                self.set_submodule(name, Adapted(inner, number))
            elif kind == "prompt":
                self.set_submodule(name, Appended(inner, number, config.hidden_size))
            else:
                self.set_submodule(name, Cut(inner, number))
