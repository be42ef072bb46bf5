"""scikit-learn's digits in motion: clips of which no frame by itself tells the class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.core.seeds import generator
from fedpeft.core.types import Examples, Table
from fedpeft.data.digits import Digits
from fedpeft.data.splits import check_subset, some

STEPS = {"right": 1, "left": -1, "right fast": 3, "left fast": -3}
"""Pixels a frame, by class."""
FRAMES = 8
"""As many as a digit is wide, so that each class goes through all places once."""


@dataclass(frozen=True)
class MovingDigits:
    """Digits that move to the side by one or three pixels a frame, and come in again where they
    went out. The class is how they move: to the right or to the left, slow or fast.

    A digit's clips of all four classes consist of the same eight frames, in other orders: what
    averages over frames is right of every fourth held-out clip, whatever it learns.

    Gives `video`, uint8 (n, 8, 1, 8, 8). Digits are those of the source `digits`; each has a clip
    of every class, from a place that is drawn once for each clip.

    Attributes:
      subset: at most so many training clips, drawn once, whatever the partition; 0 for all.
      seed: of the places and the subset.

    Raises:
      ValueError: a negative subset.
    """

    subset: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        check_subset(self.subset, "clips")

    def load(self) -> Examples:
        digits = Digits().load()
        draws = generator(self.seed, "moving digits")
        train, test = (_moved(side.columns["image"], draws) for side in (digits.train, digits.test))
        chosen = some(torch.arange(len(train)), self.subset, self.seed)
        kept = {name: x[chosen] for name, x in train.columns.items()}
        return Examples(Table(kept), test, tuple(STEPS))


def _moved(image: Tensor, draws: torch.Generator) -> Table:
    """Pictures (n, 1, 8, 8) as clips (4·n, 8, 1, 8, 8), the classes in turn."""
    steps = torch.tensor(list(STEPS.values()))
    begin = torch.randint(0, FRAMES, (len(image), len(steps), 1), generator=draws)
    place = begin + steps[:, None] * torch.arange(FRAMES)
    # what stands in a column of a frame is what stood `place` columns to the left of it
    columns = (torch.arange(FRAMES) - place[..., None]) % FRAMES
    rows = image[:, None, None].expand(-1, len(steps), FRAMES, -1, -1, -1)
    index = columns[:, :, :, None, None].expand(-1, -1, -1, *image.shape[1:3], -1)
    label = torch.arange(len(steps)).repeat(len(image))
    return Table({"video": rows.gather(-1, index).flatten(0, 1), "label": label})
