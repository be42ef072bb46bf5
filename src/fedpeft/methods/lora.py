"""Low-rank adaptation (Hu et al., 2022, arXiv:2106.09685), through Hugging Face `peft`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import tensors_of, trainable
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import pairs
from fedpeft.core.types import Tensors
from fedpeft.methods.peft_tuners import check_low_rank, inject_tuner, low_rank_config
from fedpeft.methods.pretrained_adapter import Start
from fedpeft.methods.singular import largest_directions
from fedpeft.registry import unwritten

STARTS = ("zero", "pissa", "orthogonal")
PISSA_FORBIDS: Mapping[Fact, str] = {
    Fact.QUANTIZED: 'start = "pissa" takes its factors out of frozen weights, and task.quantize '
    'rounds them: leave it out, or set start = "zero"',
    Fact.MIXED_RANKS: 'start = "pissa" takes its factors out of frozen weights, so that a client '
    'of a lower rank would lack a part of the model: leave out ranks, or set start = "zero"',
}


@dataclass(frozen=True)
class LoRA:
    """y = W·x + (α/r)·B·A·x for A of shape (r, in) and B of shape (out, r); A random, B zero at
    first; plus the head.

    `start` says with which factors training begins. "pissa" (Meng et al., 2024, arXiv:2404.02948,
    and for federations FeDeRA, arXiv:2404.18848) takes the r largest directions of W ≈ U·S·Vᵀ,
    B = U·√S' and A = √S'·Vᵀ with S' = S·r/α, and takes (α/r)·B·A out of the frozen weight, on every
    site alike. "orthogonal" is `peft`'s: random factors with B·A = 0, of an even rank. In all three
    the model begins as the base.

    Attributes:
      rank: r.
      alpha: α.
      dropout: the share of a layer's inputs to A that are left out in training.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      init: a folder with a saved adapter to begin with.
      init_head: whether that adapter's head is taken too.
      start: "zero", "pissa" or "orthogonal".

    Raises:
      ValueError: a value out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: tuple[str, ...] = ()
    head: str = "auto"
    init: str = ""
    init_head: bool = True
    start: str = unwritten("zero")

    def __post_init__(self) -> None:
        check_low_rank(self.rank, self.alpha, self.dropout)
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")
        if self.start == "orthogonal" and self.rank % 2:
            raise ValueError(f'start = "orthogonal" needs an even rank, got {self.rank}')
        if self.start != "zero" and self.init:
            raise ValueError(
                f"start = {self.start!r} and init = {self.init!r} are two ways to begin: leave out "
                "one of them"
            )

    @property
    def pretrained(self) -> bool:
        return True

    @property
    def offers(self) -> frozenset[Fact]:
        """Where B does not begin at zero, a factor whose entries are dropped is not the base."""
        return frozenset({Fact.LOW_RANK}) if self.start == "zero" else frozenset()

    @property
    def forbids(self) -> Mapping[Fact, str]:
        return PISSA_FORBIDS if self.start == "pissa" else {}

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration for a base model (nothing injected yet); an export is written
        from it too."""
        config = low_rank_config(model, self)
        if self.start == "orthogonal":
            config.init_lora_weights = "orthogonal"
        return config

    def inject(self, model: nn.Module) -> nn.Module:
        """Raises PlanError for a start of more directions than a layer has."""
        model = inject_tuner(
            self.config(model), model, self.head, Start.of(self.init, self.init_head)
        )
        if self.start == "pissa":
            self._take_out(model)
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def as_exported(self, model: nn.Module, tensors: Tensors) -> tuple["LoRA", dict[str, Tensor]]:
        """The same on the base as it is saved: what "pissa" took out of it comes back as further
        ranks, −B₀·A₀, under an α that leaves the scale as it is."""
        if self.start != "pissa":
            return self, dict(tensors)
        begun, plain = tensors_of(model), dict(tensors)
        rank = self.rank
        for a, b in pairs(tensors).values():
            first, second = begun[a].detach().cpu(), begun[b].detach().cpu()
            plain[a] = torch.cat([tensors[a], first])
            plain[b] = torch.cat([tensors[b], -second], 1)
            rank = len(plain[a])
        alpha = self.alpha * rank / self.rank
        return replace(self, rank=rank, alpha=alpha, start="zero"), plain

    def _take_out(self, model: nn.Module) -> None:
        """Move the largest directions of each weight into its factors; in place."""
        every = tensors_of(model)
        for layer, (a, b) in pairs(every).items():
            weight = every[f"{layer}.base_layer.weight"]
            transposed = getattr(model.get_submodule(layer), "fan_in_fan_out", False)
            whole = weight.T if transposed else weight
            u, s, vt = largest_directions(whole, self.rank, layer)
            root = (s * self.rank / self.alpha).sqrt()
            with torch.no_grad():
                every[a].copy_(root[:, None] * vt)
                every[b].copy_(u * root)
                rest = (
                    whole.double() - self.alpha / self.rank * every[b].double() @ every[a].double()
                )
                weight.copy_(rest.T if transposed else rest)
