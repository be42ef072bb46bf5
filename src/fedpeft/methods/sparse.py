"""Train a few entries of each weight, at random places (sparse fine-tuning, the first stage of
SLoRA; Babakniya et al., 2023, arXiv:2308.06522)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedpeft.compute.trainable import tensors_of, trainable
from fedpeft.core.seeds import generator
from fedpeft.core.types import Tensors
from fedpeft.methods.full import Full
from fedpeft.methods.targets import target_layers
from fedpeft.methods.transformer_layout import features_of, train_parts, trained_head

ENTRIES = "entries"
"""The name of what is trained in a layer."""


class Scattered(nn.Module):
    """y = (W + D)·x + b for a D (out, in) whose entries at `places` are trained, from zero."""

    def __init__(self, base: nn.Module, density: float, draws: torch.Generator) -> None:
        super().__init__()
        weight = base.get_parameter("weight")
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        into, out = features_of(base)
        count = max(1, round(density * into * out))
        self.base, self.shape = base, (out, into)
        self.places: Tensor
        drawn = torch.randperm(into * out, generator=draws, device="cpu")[:count].sort().values
        self.register_buffer("places", drawn.to(weight.device))
        self.entries = nn.Parameter(torch.zeros(count, device=weight.device, dtype=dtype))

    @property
    def weight(self) -> Tensor:
        """The layer's, of which T5 asks the type before it calls the layer."""
        return self.base.get_parameter("weight")

    def change(self, entries: Tensor) -> Tensor:
        """D (out, in)."""
        out, into = self.shape
        return entries.new_zeros(out * into).scatter(0, self.places, entries).view(out, into)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.base(x) + linear(x, self.change(self.entries))
        return changed


@dataclass(frozen=True)
class Sparse:
    """y = (W + D)·x, of which `density` of the entries of D are trained, from zero; plus the head.

    The places follow from `seed` and a layer's name, alike on every site, and do not travel: a
    layer sends its trained entries alone, and their mean is the mean of the changes, exactly.
    `fedpeft export` writes the whole model. `fedpeft export --lora-rank R` writes the change as
    LoRA of rank R, with which method.init begins: this is SLoRA's start.

    Attributes:
      density: the share of a weight's entries that is trained; one entry at least.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      seed: of the places.

    Raises:
      ValueError: a value out of range.
    """

    density: float = 0.01
    target: tuple[str, ...] = ()
    head: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        made = []
        for name in target_layers(model, self.target, self.head):
            draws = generator(self.seed, "sparse", name)
            layer = Scattered(model.get_submodule(name), self.density, draws)
            model.set_submodule(name, layer)
            made.append(layer)
        model = train_parts(model, (), head)
        for layer in made:
            layer.entries.requires_grad_(True)
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def as_exported(self, model: nn.Module, tensors: Tensors) -> tuple[Full, dict[str, Tensor]]:
        """The same as weights of the base."""
        every, plain = tensors_of(model), dict(tensors)
        for name in [name for name in tensors if name.endswith(f".{ENTRIES}")]:
            layer = name.removesuffix(f".{ENTRIES}")
            module = model.get_submodule(layer)
            assert isinstance(module, Scattered)
            weight = every[f"{layer}.base.weight"].detach().cpu()
            change = module.change(plain.pop(name).to(module.places.device)).cpu()
            # other layers, as GPT-2 has them, hold their weight transposed
            plain[f"{layer}.weight"] = weight + (
                change if isinstance(module.base, nn.Linear) else change.T
            )
        return Full(self.head), plain
