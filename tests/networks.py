"""Small networks with what models have: shared weights, BatchNorm, dropout, features on their
way."""

from time import sleep

from torch import Tensor, cat, nn, rand_like, randn


class Linear(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        return logits


class Convolution(nn.Module):
    """A convolution over the point's features, BatchNorm, and a head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4 * features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.convolution(x[:, None])).relu().flatten(1))
        return logits


class Tied(nn.Module):
    """Two layers with one weight, which a model thus has under two names."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)
        self.second.weight = self.first.weight
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x).tanh()).tanh())
        return logits


class Towers(nn.Module):
    """One tower for each half of the point's features, and a head on both."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.middle = features // 2
        self.left = nn.Linear(self.middle, 8)
        self.right = nn.Linear(features - self.middle, 8)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        sides = [self.left(x[:, : self.middle]).relu(), self.right(x[:, self.middle :]).relu()]
        logits: Tensor = self.head(cat(sides, 1))
        return logits


class Deep(nn.Module):
    """A frozen layer with a value that float16 cannot hold, and a head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        nn.init.eye_(self.first.weight)
        nn.init.constant_(self.first.bias, 1e5)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x) - 1e5)
        return logits


class Hidden(nn.Module):
    """A layer and a head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(x).tanh())
        return logits


class Dropping(nn.Module):
    """A layer, dropout, and a head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, features)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.first(x).tanh()))
        return logits


class Shaken(nn.Module):
    """A head on points to which torch's own stream adds something, so that no stack can hold it."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x + rand_like(x))
        return logits


class Slow(nn.Module):
    """A head that takes its time."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        sleep(0.25)
        logits: Tensor = self.head(x)
        return logits


class Block(nn.Module):
    """What a transformer's block is to a method: an attention, an MLP and two skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden.mean(1, keepdim=True)).tanh()
        changed: Tensor = hidden + self.down(self.up(hidden).tanh())
        return changed


class Blocks(nn.Module):
    """A class token and a token for each feature go through three blocks."""

    def __init__(self, features: int, classes: int, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, width)
        self.cls_token = nn.Parameter(0.1 * randn(1, 1, width))
        self.layers = nn.ModuleList([Block(width) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cat([self.cls_token.expand(len(x), -1, -1), self.embedding(x[..., None])], 1)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden)[:, 0])
        return logits


NETWORKS = {
    "blocks": Blocks,
    "dropping": Dropping,
    "linear": Linear,
    "convolution": Convolution,
    "tied": Tied,
    "deep": Deep,
    "hidden": Hidden,
    "shaken": Shaken,
    "slow": Slow,
    "towers": Towers,
}
