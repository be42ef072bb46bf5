"""What early exits learn beside a model's blocks: a head for each, or one for all (ReeFL; Lee et
al., 2024, arXiv:2405.14791), read in the authors' code.

Each of the three collects what it needs of the blocks in a pass, brings it into one tensor, and
makes logits of that tensor alone. So where the blocks are frozen, the tensor may be computed once
for each example.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from fedpeft.core.outputs import FURTHER, LOGITS
from fedpeft.errors import PlanError

HEADS, INNER, RATIO = 8, 16, 1.35
"""Of the recurrent layer: heads, the width of its attention in all, and that of its MLP over d."""
STD = 0.02
"""Of the first weights, from a normal distribution that ends at 2."""


class Exits(Protocol):
    """What is learned at the exits.

    `seen` gets what block `number` (from 1) gives, (batch, tokens, d), and gives what goes on from
    there. `gather` makes one tensor (batch, ...) of all that was seen and of x, which came into
    the model's head; `blank` is one of that shape with nothing in it. Called with such a tensor,
    and with the number of blocks that are computed, it gives logits by their names among outputs.
    """

    def seen(self, number: int, hidden: Tensor, last: bool) -> Tensor: ...
    def gather(self, x: Tensor) -> Tensor: ...
    def blank(self, x: Tensor) -> Tensor: ...


def name_logits(logits: dict[int, Tensor]) -> dict[str, Tensor]:
    """Logits by the number of their block as outputs: those of the last one are the model's."""
    *before, last = sorted(logits)
    return {**{f"{FURTHER}block {k}": logits[k] for k in before}, LOGITS: logits[last]}


class OwnHeads(nn.Module):
    """A head for each exit, each a copy of the model's own at first.

    The hidden tokens of all exits go on together, as further rows of the batch, through what the
    model has after its blocks: its last normalisation and its choice of a token. So every exit's
    head gets what the model's own would get, had the model ended there.
    """

    def __init__(self, head: nn.Module, exits: Sequence[int]) -> None:
        super().__init__()
        self.exits = tuple(exits)
        self.exit_layers = nn.ModuleDict({str(k - 1): deepcopy(head) for k in exits})
        self.rows: list[Tensor] = []

    def seen(self, number: int, hidden: Tensor, last: bool) -> Tensor:
        if number == 1:
            self.rows = []
        if number in self.exits:
            self.rows.append(hidden)
        return torch.cat(self.rows) if last else hidden

    def gather(self, x: Tensor) -> Tensor:
        """From (exits · batch, d) to (batch, exits, d).

        Raises:
          PlanError: the head gets more than a row for each example.
        """
        count, self.rows = len(self.rows), []
        if x.ndim != 2:
            raise PlanError(
                f"early_exits needs one row of features an example, and the model's head gets "
                f"{x.ndim - 1} dimensions: use it for classification with a ViT or BERT"
            )
        return x.reshape(count, -1, x.shape[-1]).transpose(0, 1)

    def blank(self, x: Tensor) -> Tensor:
        count = len(self.exits)
        return x.new_full((max(1, len(x) // count), count, *x.shape[1:]), float("nan"))

    def forward(self, features: Tensor, depth: int) -> dict[str, Tensor]:
        held = [k for k in self.exits if k <= depth]
        return name_logits(
            {k: self.exit_layers[str(k - 1)](features[:, at]) for at, k in enumerate(held)}
        )


class Place(nn.Module):
    """What is added to a block's class token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.place = nn.Parameter(_drawn(size))


class Ree(nn.Module):
    """One layer T for all exits, and one head.

    Of the class tokens c_1..c_t after t blocks and a learned token q, m = T([q; c_1..c_t] + places)
    for a transformer layer T with the normalisation first, and the logits are
    head(LN(m_0 + c_t)). The attention's scale is 1 / √16, by its whole width and not by a head's,
    as in the authors' code.
    """

    def __init__(self, head: nn.Module, size: int, blocks: int) -> None:
        super().__init__()
        self.meta, self.meta_place = (nn.Parameter(_drawn(size)) for _ in range(2))
        self.exit_layers = nn.ModuleList([Place(size) for _ in range(blocks)])
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.qkv, self.out = _linear(size, 3 * INNER), _linear(INNER, size)
        self.up, self.down = _linear(size, int(RATIO * size)), _linear(int(RATIO * size), size)
        self.head = head

    def _place(self, block: int) -> Tensor:
        layer = self.exit_layers[block]
        assert isinstance(layer, Place)
        return layer.place

    def forward(self, tokens: Tensor) -> Tensor:
        """m, (batch, 1 + t, d), of the class tokens (batch, t, d)."""
        places = torch.stack([self._place(k) for k in range(tokens.shape[1])])
        first = (self.meta + self.meta_place).expand(len(tokens), 1, -1)
        x = torch.cat([first, tokens + places], 1)
        x = x + self._attend(self.norm1(x))
        mixed: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return mixed

    def logits(self, features: Tensor) -> Tensor:
        """What the head makes of m_0 + c_t."""
        told: Tensor = self.head(self.norm(features))
        return told

    def _attend(self, x: Tensor) -> Tensor:
        each = self.qkv(x).unflatten(-1, (3, HEADS, INNER // HEADS))
        q, k, v = (one.transpose(-2, -3) for one in each.unbind(-3))
        found = scaled_dot_product_attention(q, k, v, scale=INNER**-0.5)
        attended: Tensor = self.out(found.transpose(-2, -3).flatten(-2))
        return attended


class Recurrent(nn.Module):
    """A Ree at the exits, which leaves the blocks as they are."""

    def __init__(self, ree: Ree, exits: Sequence[int]) -> None:
        super().__init__()
        self.ree = ree
        self.exits = tuple(exits)
        self.tokens: list[Tensor] = []

    def seen(self, number: int, hidden: Tensor, last: bool) -> Tensor:
        self.tokens = [*(self.tokens if number > 1 else ()), hidden[:, 0]]
        return hidden

    def gather(self, x: Tensor) -> Tensor:
        """The class tokens, (batch, blocks, d)."""
        tokens, self.tokens = self.tokens, []
        return torch.stack(tokens, 1)

    def blank(self, x: Tensor) -> Tensor:
        return _blank(self.ree, len(x), self.exits[-1])

    def forward(self, tokens: Tensor, depth: int) -> dict[str, Tensor]:
        found = {}
        for k in (k for k in self.exits if k <= depth):
            mixed = self.ree(tokens[:, :k])
            found[k] = self.ree.logits(mixed[:, 0] + tokens[:, k - 1])
        return name_logits(found)


class Modulating(nn.Module):
    """A Ree after every block, whose m_t goes on in the place of the block's class token.

    The tokens of earlier blocks are m_1..m_{t-1} then, as the authors' code writes over them.
    """

    def __init__(self, ree: Ree, exits: Sequence[int]) -> None:
        super().__init__()
        self.ree = ree
        self.exits = tuple(exits)
        self.tokens: list[Tensor] = []
        self.features: list[Tensor] = []

    def seen(self, number: int, hidden: Tensor, last: bool) -> Tensor:
        if number == 1:
            self.tokens, self.features = [], []
        token = hidden[:, 0]
        mixed = self.ree(torch.stack([*self.tokens, token], 1))
        self.tokens.append(mixed[:, -1])
        if number in self.exits:
            self.features.append(mixed[:, 0] + token)
        return hidden if last else torch.cat([mixed[:, -1:].to(hidden), hidden[:, 1:]], 1)

    def gather(self, x: Tensor) -> Tensor:
        """m_0 + c_t of each exit, (batch, exits, d)."""
        features, self.features, self.tokens = self.features, [], []
        return torch.stack(features, 1)

    def blank(self, x: Tensor) -> Tensor:
        return _blank(self.ree, len(x), len(self.exits))

    def forward(self, features: Tensor, depth: int) -> dict[str, Tensor]:
        held = [k for k in self.exits if k <= depth]
        return name_logits({k: self.ree.logits(features[:, at]) for at, k in enumerate(held)})


def _blank(ree: Ree, rows: int, count: int) -> Tensor:
    return ree.meta.new_full((rows, count, len(ree.meta)), float("nan"))


def _drawn(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=STD)


def _linear(into: int, out: int) -> nn.Linear:
    made = nn.Linear(into, out)
    nn.init.trunc_normal_(made.weight, std=STD)
    nn.init.zeros_(made.bias)
    return made
