"""Vector-based random matrix adaptation (Kopiczko et al., 2024, arXiv:2310.11454), through Hugging
Face `peft`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.compute.trainable import trainable
from fedpeft.methods.peft_tuners import check_dropout, inject_tuner, without_whole
from fedpeft.methods.pretrained_adapter import Start
from fedpeft.methods.targets import attention_projections, find_targets


@dataclass(frozen=True)
class VeRA:
    """y = W·x + b ⊙ B·(d ⊙ A·x): the vectors b, shape (out,), and d, shape (r,), are trained; plus
    the head.

    A and B are random, frozen and common to all layers. They do not travel: every site makes them
    from one seed. b is zero at first, d is `d_initial`.

    Attributes:
      rank: r; far larger than LoRA's, as only vectors are trained.
      d_initial: every entry of d at first.
      dropout: the share of a layer's inputs to A that are left out in training.
      projection_seed: where A and B come from.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      init: a folder with a saved adapter to begin with.
      init_head: whether that adapter's head is taken too.

    Raises:
      ValueError: a value out of range.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    projection_seed: int = 0
    target: tuple[str, ...] = ()
    head: str = "auto"
    init: str = ""
    init_head: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        check_dropout(self.dropout)

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration, from which an export is written too; there A and B are written
        down."""
        from peft import VeraConfig

        config = VeraConfig(
            r=self.rank,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            projection_prng_key=self.projection_seed,
            target_modules=find_targets(model, self.target, self.head)
            or attention_projections(model, "qv"),
        )
        return without_whole(config, model, self.head)

    def inject(self, model: nn.Module) -> nn.Module:
        start = Start.of(self.init, self.init_head)
        return inject_tuner(self.config(model), model, self.head, start, _with_shared_projections)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def _with_shared_projections(model: nn.Module, config: Any) -> nn.Module:
    """`peft` injects no tuner with shared state, but the state is in reach of every layer without
    the wrapper."""
    from peft import VeraModel

    tuned: nn.Module = VeraModel(model, config, "default").model
    return tuned
