"""Train the parameters that a user names, e.g. the attention of every block, of which stochastic
block attention trains one a round (Alkhunaizi et al., 2024, arXiv:2407.11573)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedpeft.compute.trainable import train_only, trainable, within
from fedpeft.core.views import meets
from fedpeft.errors import PlanError
from fedpeft.methods.transformer_layout import name_model, trained_head


@dataclass(frozen=True)
class Named:
    """The base's own parameters whose names match a pattern; plus the head.

    With routing = [{ name = "drawn", pattern = "*.layers.{}.attention.*", groups = 12 }] the
    attention of one block and the head are trained in each round, which is stochastic block
    attention.

    Attributes:
      trains: patterns of names, as of file names; the default is the attention of every block. A
        leading "!" stands for all other names.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: there are no patterns.
    """

    trains: tuple[str, ...] = ("*att*",)
    head: str = "auto"

    def __post_init__(self) -> None:
        if not self.trains:
            raise ValueError('trains must name parameters, e.g. "*.attention.*"')

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        """Raises PlanError for a pattern that no parameter outside the head matches."""
        head = trained_head(model, self.head)
        names = [name for name, _ in model.named_parameters()]
        inside = {name for name in names if head and within(name, head)}
        outside = [name for name in names if name not in inside]
        wanted = set(inside)
        for pattern in self.trains:
            found = [name for name in outside if meets(name, [(pattern,)])]
            if not found:
                some = ", ".join(map(repr, outside[:: max(1, len(outside) // 4)][:4]))
                raise PlanError(
                    f"{name_model(model)} has no parameter with a name like {pattern!r}; it has "
                    f"{some or 'none'} and others: set the method's key `trains` to patterns of "
                    "such names"
                )
            wanted.update(found)
        return train_only(model, wanted)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
