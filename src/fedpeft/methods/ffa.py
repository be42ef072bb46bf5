"""FFA-LoRA: low-rank adaptation with A frozen (Sun et al., 2024, arXiv:2403.12313), through Hugging
Face `peft`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.compute.trainable import train_only, trainable
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import A
from fedpeft.methods.peft_tuners import check_low_rank, inject_tuner, low_rank_config
from fedpeft.methods.pretrained_adapter import Start


@dataclass(frozen=True)
class FFA:
    """y = W·x + (α/r)·B·A·x for one random A (r, in) that never changes, and B (out, r), zero at
    first; plus the head.

    A does not travel: every site makes it from the plan's seed. The mean of the clients' B's is
    then exact, half the bytes go each way, and noise on B is noise on the product.

    Attributes:
      rank: r.
      alpha: α.
      dropout: the share of a layer's inputs to A that are left out in training.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      init: a folder with a saved adapter to begin with.
      init_head: whether that adapter's head is taken too.

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
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOW_RANK})

    def __post_init__(self) -> None:
        check_low_rank(self.rank, self.alpha, self.dropout)

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration for a base model (nothing injected yet); an export is written
        from it too."""
        return low_rank_config(model, self)

    def inject(self, model: nn.Module) -> nn.Module:
        model = inject_tuner(
            self.config(model), model, self.head, Start.of(self.init, self.init_head)
        )
        return train_only(model, [name for name in trainable(model) if A not in name])

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
