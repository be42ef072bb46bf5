"""LayerNorm tuning (Zhao et al., 2024, arXiv:2312.11420), through Hugging Face `peft`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.compute.trainable import trainable
from fedpeft.methods.peft_tuners import inject_tuner
from fedpeft.methods.pretrained_adapter import Start
from fedpeft.methods.transformer_layout import normalisations, trained_head


@dataclass(frozen=True)
class LayerNorm:
    """The weights and biases of every LayerNorm, or the weights of every RMSNorm; plus the head.

    Attributes:
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      init: a folder with a saved adapter to begin with.
      init_head: whether that adapter's head is taken too.
    """

    head: str = "auto"
    init: str = ""
    init_head: bool = True

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration for a base model (nothing injected yet); an export is written
        from it too."""
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=normalisations(model, trained_head(model, self.head)))

    def inject(self, model: nn.Module) -> nn.Module:
        return inject_tuner(
            self.config(model), model, self.head, Start.of(self.init, self.init_head)
        )

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
