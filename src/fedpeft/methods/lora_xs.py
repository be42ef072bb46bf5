"""LoRA-XS (Bałazy et al., 2024, arXiv:2405.17604), whose small matrix Fed-SB averages (Singhal et
al., 2025, arXiv:2502.15436)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from fedpeft.compute.trainable import tensors_of, trainable
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import A, B
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError
from fedpeft.methods.lora import LoRA
from fedpeft.methods.peft_tuners import check_low_rank
from fedpeft.methods.singular import largest_directions
from fedpeft.methods.targets import target_layers
from fedpeft.methods.transformer_layout import name_model, train_parts, trained_head

CORE = "core"
"""The name of R in a layer."""


class Cored(nn.Module):
    """y = W·x + b + s·B·R·A·x of a frozen layer, for frozen A (r, in) and B (out, r), and R (r,
    r)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, drop: float, name: str) -> None:
        super().__init__()
        u, s, vt = largest_directions(base.weight, rank, name)
        self.base, self.scale, self.drop = base, scale, drop
        self.down: Tensor
        self.up: Tensor
        self.register_buffer("down", (s[:, None] * vt).to(base.weight).contiguous())
        self.register_buffer("up", u.to(base.weight).contiguous())
        self.core = nn.Parameter(torch.zeros(rank, rank).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        within = linear(dropout(x, self.drop, self.training), self.down)
        added = linear(linear(within, self.core), self.up)
        whole: Tensor = self.base(x) + self.scale * added
        return whole


@dataclass(frozen=True)
class LoRAXS:
    """y = W·x + (α/r)·B·R·A·x, of which R (r, r) alone is trained, from zero; plus the head. With
    W ≈ U·S·Vᵀ, A = S·Vᵀ of shape (r, in) and B = U of shape (out, r), made on every site from the
    frozen weight.

    The mean of the R's is the mean of the products, exactly, and a layer sends r² numbers: every
    aggregator, secure sums, noise and codecs take it. Fed-SB begins with A, R and B from the
    gradient of pooled examples, which nobody may see here, and the published LoRA-XS with an R of
    random numbers of about 1e-5. Signs of singular vectors are fixed (see `methods.singular`).

    Attributes:
      rank: r.
      alpha: α.
      dropout: the share of the inputs of A that is left out in training.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    target: tuple[str, ...] = ()
    head: str = "auto"
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.QUANTIZED: "lora_xs reads the singular vectors of frozen weights, and task.quantize "
        'rounds them: leave it out, or take method = "lora"',
        Fact.MIXED_RANKS: "R of lora_xs has one size for all clients: leave out ranks, or take "
        'method = "lora"',
    }

    def __post_init__(self) -> None:
        check_low_rank(self.rank, self.alpha, self.dropout)

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        """Raises PlanError for a layer that is not linear, or has fewer than r directions."""
        head = trained_head(model, self.head)
        made = []
        for name in target_layers(model, self.target, self.head):
            base = model.get_submodule(name)
            if not isinstance(base, nn.Linear):
                raise PlanError(
                    f"{name_model(model)}: {name!r} is a {type(base).__name__}, and lora_xs takes "
                    "linear layers: set the method's key `target` to some"
                )
            core = Cored(base, self.rank, self.alpha / self.rank, self.dropout, name)
            model.set_submodule(name, core)
            made.append(core)
        model = train_parts(model, (), head)
        for core in made:
            core.core.requires_grad_(True)
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def as_exported(self, model: nn.Module, tensors: Tensors) -> tuple[LoRA, dict[str, Tensor]]:
        """The same as plain LoRA of rank r, with B·R for its B; an export is written from it."""
        every, plain = tensors_of(model), dict(tensors)
        layers = [name.removesuffix(f".{CORE}") for name in tensors if name.endswith(f".{CORE}")]
        for layer in layers:
            core = plain.pop(f"{layer}.{CORE}")
            down, up = every[f"{layer}.down"].detach().cpu(), every[f"{layer}.up"].detach().cpu()
            plain[f"{layer}{A}default.weight"] = down
            plain[f"{layer}{B}default.weight"] = up @ core
        return LoRA(self.rank, self.alpha, self.dropout, self.target, self.head), plain
