"""Early exits: a model that tells classes after some of its blocks too, so that clients may hold as
many blocks as they can (ReeFL; Lee et al., 2024, arXiv:2405.14791)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable
from fedpeft.core.depth import LIMIT
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Method
from fedpeft.core.outputs import LOGITS, note_outputs
from fedpeft.errors import PlanError, unknown
from fedpeft.methods.exit_heads import Modulating, OwnHeads, Recurrent, Ree
from fedpeft.methods.transformer_layout import (
    blocks,
    features_of,
    is_linear,
    name_model,
    trained_head,
)
from fedpeft.registry import part

OWN, RECURRENT = "own", "recurrent"
MOST = 256
"""Blocks of a model, as far as names of exits go that a plan does not list."""
AFTER = "score"
"""What decoders that classify call their head, which tells classes of all tokens."""


class ExitHead(nn.Module):
    """What stands in the place of a model's head: it gives the logits of the last exit there is.

    The buffer `depth_limit` has the number of blocks that are computed. The blocks after them give
    what they get.
    """

    def __init__(self, exits: nn.Module, blocks: int) -> None:
        super().__init__()
        self.exits: Any = exits
        self.blocks = blocks
        self.register_buffer(LIMIT, torch.tensor(float(blocks)), persistent=False)
        self.limit = blocks
        self.ran = False

    def depth(self) -> int:
        """The number of blocks that are computed."""
        limit = self.get_buffer(LIMIT)
        return self.blocks if limit.is_meta else int(limit.item())

    def forward(self, x: Tensor) -> Tensor:
        # Where features are kept, no block was called, and what is kept comes into `exits` instead.
        gathered = self.exits.gather(x) if self.ran else self.exits.blank(x)
        self.ran = False
        told: Tensor = self.exits(gathered, self.depth())[LOGITS]
        return told


@dataclass(eq=False)
class ExitBlock:
    """The forward of a block, number `number` from 1, before which or after which a model may end.

    Attributes:
      before: what was the block's forward, where it was not its class's.
      further: for all blocks of a model, how many things a block gives beside its tokens, where it
        gives any.
    """

    block: nn.Module
    number: int
    head: ExitHead
    before: Callable[..., Any] | None = None
    further: dict[str, int] = field(default_factory=dict)

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        head = self.head
        if self.number == 1:  # read once a pass, as a device waits for it
            head.limit, head.ran = head.depth(), True
        if self.number > head.limit:
            return (hidden, *[None] * self.further["count"]) if self.further else hidden
        output = self._computed(hidden, *args, **kwargs)
        rest = output[1:] if isinstance(output, tuple) else None
        tokens = output if rest is None else output[0]
        tokens = head.exits.seen(self.number, tokens, self.number == head.limit)
        if rest is None:
            return tokens
        self.further["count"] = len(rest)
        return (tokens, *rest)

    def _computed(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(hidden, *args, **kwargs)
        return type(self.block).forward(self.block, hidden, *args, **kwargs)


@dataclass(frozen=True)
class EarlyExits:
    """Exits after some of a transformer's blocks. Each exit's logits are learned as the model's
    own, with equal weight, and measured as e.g. "accuracy at block 3"; the last exit is the model.

    routing = [{ name = "depths", depths = [3, 6, 9, 12] }] lets a client hold the blocks up to an
    exit of its own. With heads = "own" each exit has a head. With heads = "recurrent" there is
    ReeFL's: one transformer layer and one head for all exits, which read the class tokens of all
    blocks so far.
    With `modulate` what that layer makes of a block's class token goes on to the next block. Where
    the blocks are frozen, modulate = false lets the class tokens of an example be computed once.

    Attributes:
      exits: after which blocks, counted from 1, ascending; none for all. Blocks after the last one
        are not used.
      inner: the method for the blocks: "head" for none, "lora", "adapter", ...
      heads: "own" or "recurrent".
      modulate: whether a recurrent layer changes what goes on between blocks.

    Raises:
      ValueError: a value out of range, or exits in exits.
    """

    exits: tuple[int, ...] = ()
    inner: Method = part("method", "head")
    heads: str = OWN
    modulate: bool = True
    not_exported: ClassVar[str] = "its exits"

    def __post_init__(self) -> None:
        ascending = sorted(set(self.exits))
        if list(self.exits) != ascending or (ascending and ascending[0] < 1):
            raise ValueError(
                "exits must be numbers of blocks, from 1 on and ascending, e.g. [3, 6, 9, 12]; got "
                f"{list(self.exits)}"
            )
        if self.heads not in (OWN, RECURRENT):
            raise ValueError(unknown("heads", self.heads, (OWN, RECURRENT)))
        if isinstance(self.inner, EarlyExits):
            raise ValueError(
                'inner is a method for the blocks, such as "lora", and not early_exits'
            )

    @property
    def pretrained(self) -> bool:
        return self.inner.pretrained

    @property
    def head(self) -> str:
        """The name of the head's module; "auto" for the usual ones."""
        return getattr(self.inner, "head", "auto") or "auto"

    @property
    def offers(self) -> frozenset[Fact]:
        own = Fact.MOVES_START if self.heads == RECURRENT else Fact.ROWS_OF_EXITS
        return frozenset({Fact.DEPTHS, Fact.SEVERAL_LOGITS, own})

    @property
    def logits_at(self) -> tuple[str, ...]:
        """The places of further logits; the last exit's are the model's."""
        before = self.exits[:-1] if self.exits else range(1, MOST)
        return tuple(f"block {k}" for k in before)

    def inject(self, model: nn.Module) -> nn.Module:
        """Raises PlanError for a model without a head to replace, or without these blocks."""
        model = self.inner.inject(model)
        name, stack = self._head(model), self._blocks(model)
        exits = self.exits or tuple(range(1, len(stack) + 1))
        around, _, last = name.rpartition(".")
        made = ExitHead(self._learned(model, name, exits), exits[-1])
        made = made.to(next(model.get_submodule(name).parameters()).device)
        made.exits.requires_grad_(True)
        setattr(model.get_submodule(around), last, made)
        further: dict[str, int] = {}
        for number, block in enumerate(stack, start=1):
            before = block.__dict__.get("forward")
            block.forward = ExitBlock(block, number, made, before, further)
        note_outputs(model, f"{name}.exits")
        return model

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def _head(self, model: nn.Module) -> str:
        name = trained_head(model, self.head)
        if not name:
            raise PlanError(
                f"{name_model(model)} has no new head, which exits are copies of; use early_exits "
                "for classification, or another method"
            )
        if name.rpartition(".")[2] == AFTER:
            raise PlanError(
                f"{name_model(model)} chooses a token after its head, and exits choose one before; "
                "use another method, or a ViT or BERT"
            )
        return name

    def _blocks(self, model: nn.Module) -> list[nn.Module]:
        stacks = blocks(model)
        if len(stacks) != 1:
            raise PlanError(
                f"{name_model(model)} has {len(stacks)} stacks of transformer blocks, and "
                "early_exits is for one with one; use a ViT or BERT, or another method"
            )
        if len(stacks[0]) < max(self.exits, default=1):
            raise PlanError(
                f"{name_model(model)} has {len(stacks[0])} blocks, and exits = {list(self.exits)} "
                "needs more: use fewer"
            )
        return [model.get_submodule(name) for name in stacks[0]]

    def _learned(self, model: nn.Module, name: str, exits: Sequence[int]) -> nn.Module:
        head = model.get_submodule(name)
        if self.heads == OWN:
            return OwnHeads(head, exits)
        if not is_linear(head):
            raise PlanError(
                f"the head {name!r} of {name_model(model)} is no linear layer, which a recurrent "
                'exit ends with; use heads = "own"'
            )
        if not any("cls" in one or "class_" in one for one, _ in model.named_parameters()):
            raise PlanError(
                f"{name_model(model)} has no class token before its tokens, which recurrent exits "
                'read; use heads = "own", or a ViT'
            )
        ree = Ree(head, features_of(head)[0], exits[-1])
        return Modulating(ree, exits) if self.modulate else Recurrent(ree, exits)
