"""Visual prompt tuning (Jia et al., 2022, arXiv:2203.12119), FedPEFT-Prompt in arXiv:2210.01708."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable
from fedpeft.core.facts import Fact
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError
from fedpeft.methods.peft_tuners import check_dropout
from fedpeft.methods.transformer_layout import blocks, mlp_outputs, name_model, trained_head
from fedpeft.registry import unwritten

Patching: TypeAlias = nn.Conv2d | nn.Conv3d
"""What cuts patches out of a picture, or blocks of them out of a video."""
LEFT, RIGHT = "prompt_left", "prompt_right"
"""The factors of a prompt of low rank."""


class Appended(nn.Module):
    """A block that sees `prompt`, shape (tokens, d), after its input, shape (batch, n, d)."""

    def __init__(self, block: nn.Module, prompt: nn.Parameter, dropout: float) -> None:
        super().__init__()
        self.block = block
        self.prompt = prompt
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _beside(self.block, self.dropout, self.prompt, x, *args, **kwargs)


class AppendedProduct(nn.Module):
    """The same with the prompt left·right, of shapes (tokens, r) and (r, d)."""

    def __init__(
        self, block: nn.Module, left: nn.Parameter, right: nn.Parameter, dropout: float
    ) -> None:
        super().__init__()
        self.block = block
        self.prompt_left = left
        self.prompt_right = right
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        prompt = self.prompt_left @ self.prompt_right
        return _beside(self.block, self.dropout, prompt, x, *args, **kwargs)


def _beside(
    block: nn.Module, dropout: nn.Module, prompt: Tensor, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """What a block makes of its input and the prompt after it."""
    dropped = dropout(prompt.expand(len(x), -1, -1))
    return block(torch.cat([x, dropped.to(x.dtype)], 1), *args, **kwargs)


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
    v = sqrt(6 / (3·p² + d)) for patches of p pixels a side and width d; for p²·t where
    a patch is of t frames of a video. The authors of FedPEFT
    append where VPT inserts after the class token; as prompts have no position the two compute the
    same.

    With `rank` a prompt is U·V for U (tokens, r) and V (r, d), both trained: the low-rank prompts
    (DVPT) of Alkhunaizi et al. (2024, arXiv:2407.11573), of which the paper's start was not to be
    had. Here U begins as U(-v, v), and V with orthonormal rows times sqrt(d / r), so that the
    prompt's entries have the variance that they have without `rank`.

    Attributes:
      tokens: for each block (deep), or in all (shallow).
      deep: whether each block has tokens of its own.
      dropout: on the prompt's entries, in training.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.
      rank: r; 0 for prompts that are trained whole.

    Raises:
      ValueError: a value out of range.
    """

    tokens: int = 10
    deep: bool = True
    dropout: float = 0.1
    head: str = "auto"
    rank: int = unwritten(0)
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MOVES_START})

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        if not 0 <= self.rank <= self.tokens:
            raise ValueError(
                f"rank must be from 1 to tokens = {self.tokens}, or 0 for whole prompts, got "
                f"{self.rank}"
            )
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
            block = model.get_submodule(name)
            model.set_submodule(name, self._appended(block, last, convolution))
        for name in stack if self.deep else stack[-1:]:
            model.set_submodule(name, Cut(model.get_submodule(name), self.tokens))
        if head:
            model.get_submodule(head).requires_grad_(True)
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def as_exported(self, model: nn.Module, tensors: Tensors) -> tuple["Prompt", dict[str, Tensor]]:
        """The same with whole prompts."""
        plain = dict(tensors)
        for name in tensors:
            if name.endswith(LEFT):
                around = name.removesuffix(LEFT)
                plain[f"{around}prompt"] = plain.pop(name) @ plain.pop(f"{around}{RIGHT}")
        return replace(self, rank=0), plain

    def _appended(self, block: nn.Module, like: nn.Linear, convolution: Patching) -> nn.Module:
        if not self.rank:
            return Appended(block, _prompt(self.tokens, like, convolution), self.dropout)
        if self.rank > like.out_features:
            raise PlanError(
                f"rank = {self.rank}: prompts of this model are {like.out_features} wide: set the "
                "method's rank to that or less"
            )
        whole = _prompt(self.tokens, like, convolution)
        left = nn.Parameter(whole.detach()[:, : self.rank].clone())
        rows = torch.empty(self.rank, like.out_features)
        # of r rows each entry has the mean square 1 / d, and a product sums r of them
        gain = (like.out_features / self.rank) ** 0.5
        right = nn.Parameter(nn.init.orthogonal_(rows, gain).to(like.weight))
        return AppendedProduct(block, left, right, self.dropout)


def _prompt(tokens: int, like: nn.Linear, convolution: Patching) -> nn.Parameter:
    pixels = prod(int(side) for side in convolution.kernel_size)
    bound = (6 / (3 * pixels + like.out_features)) ** 0.5
    prompt = torch.empty(
        tokens, like.out_features, device=like.weight.device, dtype=like.weight.dtype
    )
    return nn.Parameter(nn.init.uniform_(prompt, -bound, bound))


def _plain_vit(model: nn.Module) -> tuple[list[str], Patching]:
    """The blocks' names and the convolution that cuts patches.

    Raises:
      PlanError: the model is no plain vision transformer.
    """
    stacks = blocks(model)
    patches = [
        m
        for n, m in model.named_modules()
        if "patch_embed" in n and isinstance(m, nn.Conv2d | nn.Conv3d)
    ]
    if len(stacks) != 1 or len(patches) != 1:
        raise PlanError(
            f"{name_model(model)} is no plain vision transformer (stacks of blocks: "
            f"{len(stacks)}, patch embeddings: {len(patches)}), and visual prompts need one, e.g. "
            'a ViT; for a decoder language model there is method = "prefix"'
        )
    return stacks[0], patches[0]
