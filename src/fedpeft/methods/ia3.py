"""(IA)³: infused adapter by inhibiting and amplifying inner activations (Liu et al., 2022,
arXiv:2205.05638)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.compute.trainable import trainable
from fedpeft.methods.peft_tuners import inject_tuner, without_whole
from fedpeft.methods.pretrained_adapter import Start
from fedpeft.methods.targets import attention_projections, find_targets
from fedpeft.methods.transformer_layout import mlp_outputs


@dataclass(frozen=True)
class IA3:
    """k ⊙ l_k, v ⊙ l_v, and W·(l_ff ⊙ x) in the last layer of the MLP; all vectors are one at
    first; plus the head.

    Through Hugging Face `peft`.

    Attributes:
      target: layers whose output is scaled, by the last parts of their names; empty means key and
        value.
      feedforward: layers whose input is scaled; empty means the last one of each block's MLP,
        unless `target` is set.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      init: a folder with a saved adapter to begin with.
      init_head: whether that adapter's head is taken too.
    """

    target: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    head: str = "auto"
    init: str = ""
    init_head: bool = True

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration for a base model (nothing injected yet); an export is written
        from it too."""
        from peft import IA3Config

        outputs = find_targets(model, self.target, self.head, "kv") or attention_projections(
            model, "kv"
        )
        inputs = find_targets(model, self.feedforward, self.head) or (
            [] if self.target else mlp_outputs(model)
        )
        config = IA3Config(target_modules=outputs + inputs, feedforward_modules=inputs)
        return without_whole(config, model, self.head)

    def inject(self, model: nn.Module) -> nn.Module:
        return inject_tuner(
            self.config(model), model, self.head, Start.of(self.init, self.init_head)
        )

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
