"""Train the biases (BitFit: Ben Zaken et al., 2022, arXiv:2106.10199), FedPEFT-Bias in
arXiv:2210.01708."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedpeft.compute.trainable import train_only, trainable, within
from fedpeft.errors import PlanError
from fedpeft.methods.transformer_layout import name_model, trained_head


@dataclass(frozen=True)
class Bias:
    """Every parameter whose last name part contains "bias", of linear, convolution and LayerNorm
    alike; plus the head.

    Attributes:
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
    """

    head: str = "auto"

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        names = [name for name, _ in model.named_parameters()]
        inside = {name for name in names if head and within(name, head)}
        biases = {name for name in names if "bias" in name.rpartition(".")[2]} - inside
        if not biases:
            raise PlanError(
                f'{name_model(model)} has no biases (a Llama has none): use method = "lora", '
                '"layernorm" or "ia3"'
            )
        return train_only(model, biases | inside)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
