"""scikit-learn's handwritten digits: 1,797 pictures of 8x8 pixels (Alpaydin and Kaynak, 1998,
UCI)."""

from dataclasses import dataclass

import torch

from fedpeft.core.types import Examples, Table
from fedpeft.data.splits import check_subset, some


@dataclass(frozen=True)
class Digits:
    """Every fifth picture is held out. `image`: uint8 (n, 1, 8, 8); ink is bright.

    The pictures come by writer, so that the held-out ones have writers in common with the others.

    Attributes:
      subset: at most so many training pictures, drawn once, whatever the partition; 0 for all.
      seed: of the subset.

    Raises:
      ValueError: a negative subset.
    """

    subset: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        check_subset(self.subset, "pictures")

    def load(self) -> Examples:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        image = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
        label = torch.from_numpy(bunch.target).long()
        test = torch.arange(len(label)) % 5 == 4

        def rows(which: torch.Tensor) -> Table:
            return Table({"image": image[which], "label": label[which]})

        train = some((~test).nonzero()[:, 0], self.subset, self.seed)
        return Examples(rows(train), rows(test), tuple(map(str, range(10))))
