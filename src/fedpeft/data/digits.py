"""scikit-learn's handwritten digits: 1,797 pictures of 8x8 pixels (Alpaydin and Kaynak, 1998,
UCI)."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fedpeft.core.types import Examples, Table
from fedpeft.data.splits import check_subset, some
from fedpeft.errors import DataError

SIDE = 8


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The ink of all pictures, float64 (n, 8, 8) from 0 to 16, and their digits, int64 (n,), from
    the file that scikit-learn brings.

    The file is read without the library, whose import takes longer than a round of the first run.

    Raises:
      DataError: there is no such file.
    """
    found = find_spec("sklearn")
    places = list(found.submodule_search_locations or ()) if found else []
    file = Path(*places[:1], "datasets", "data", "digits.csv.gz")
    if not places or not file.is_file():
        raise DataError(
            f"the digits of scikit-learn are not where they should be ({file}): install it again, "
            "by pip install --force-reinstall scikit-learn"
        )
    with gzip.open(file, "rt", encoding="ascii") as lines:
        rows = torch.from_numpy(np.loadtxt(lines, delimiter=","))
    return rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].long()


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
        ink, label = read_digits()
        image = (ink * (255 / 16)).round().to(torch.uint8)[:, None]
        test = torch.arange(len(label)) % 5 == 4

        def rows(which: torch.Tensor) -> Table:
            return Table({"image": image[which], "label": label[which]})

        train = some((~test).nonzero()[:, 0], self.subset, self.seed)
        return Examples(rows(train), rows(test), tuple(map(str, range(10))))
