"""Visual prompt tuning (Jia et al., 2022, arXiv:2203.12119), FedPEFT-Prompt in arXiv:2210.01708."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable
from fedpeft.core.facts import Fact
from fedpeft.errors import PlanError
from fedpeft.methods.peft_tuners import check_dropout
from fedpeft.methods.transformer_layout import blocks, mlp_outputs, name_model, trained_head


class Appended(nn.Module):
    """A block that sees `prompt`, shape (tokens, d), after its input, shape (batch, n, d)."""

    def __init__(self, block: nn.Module, prompt: nn.Parameter, dropout: float) -> None:
        super().__init__()
        self.block = block
        self.prompt = prompt
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        prompt = self.dropout(self.prompt.expand(len(x), -1, -1))
        return self.block(torch.cat([x, prompt.to(x.dtype)], 1), *args, **kwargs)


class Cut(nn.Module):
    """A block whose last `tokens` outputs are dropped."""

    def __init__(self, block: nn.Module, tokens: int) -> None:
        super().__init__()
        self.block = block
        self.tokens = tokens

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(x, *args, **kwargs)[:, : -self.tokens]


@dataclass(frozen=True)
class Prompt:
    """Trained tokens beside the patches, without position embeddings; plus the head.

    Deep: every block has its own tokens; they are appended to its input and cut off its output.
    Shallow: the first block's tokens stay until the last block. The entries start as U(-v, v) with
    v = sqrt(6 / (3·p² + d)) for patches of p pixels a side and width d. The authors of FedPEFT
    append where VPT inserts after the class token; as prompts have no position the two compute the
    same.

    Attributes:
      tokens: for each block (deep), or in all (shallow).
      deep: whether each block has tokens of its own.
      dropout: on the prompt's entries, in training.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    tokens: int = 10
    deep: bool = True
    dropout: float = 0.1
    head: str = "auto"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MOVES_START})

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        check_dropout(self.dropout)

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        stack, convolution = _plain_vit(model)
        last = model.get_submodule(mlp_outputs(model)[0])
        assert isinstance(last, nn.Linear)
        model.requires_grad_(False)
        for name in stack if self.deep else stack[:1]:
            prompt = _prompt(self.tokens, last, convolution)
            model.set_submodule(name, Appended(model.get_submodule(name), prompt, self.dropout))
        for name in stack if self.deep else stack[-1:]:
            model.set_submodule(name, Cut(model.get_submodule(name), self.tokens))
        if head:
            model.get_submodule(head).requires_grad_(True)
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def _prompt(tokens: int, like: nn.Linear, convolution: nn.Conv2d) -> nn.Parameter:
    height, width = (int(side) for side in convolution.kernel_size)
    bound = (6 / (3 * height * width + like.out_features)) ** 0.5
    prompt = torch.empty(
        tokens, like.out_features, device=like.weight.device, dtype=like.weight.dtype
    )
    return nn.Parameter(nn.init.uniform_(prompt, -bound, bound))


def _plain_vit(model: nn.Module) -> tuple[list[str], nn.Conv2d]:
    """The blocks' names and the convolution that cuts patches.

    Raises:
      PlanError: the model is no plain vision transformer.
    """
    stacks = blocks(model)
    patches = [
        m for n, m in model.named_modules() if "patch_embed" in n and isinstance(m, nn.Conv2d)
    ]
    if len(stacks) != 1 or len(patches) != 1:
        raise PlanError(
            f"{name_model(model)} is no plain vision transformer (stacks of blocks: "
            f"{len(stacks)}, patch embeddings: {len(patches)}), and visual prompts need one, e.g. "
            'a ViT; for a decoder language model there is method = "prefix"'
        )
    return stacks[0], patches[0]
