"""Attackers that teach a trigger (Gu et al., 2017: BadNets, arXiv:1708.06733; Bagdasaryan et al.,
2020, arXiv:1807.00459)."""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.core.types import Tensors, Update


@dataclass(frozen=True)
class Backdoor:
    """Every other picture of an attacker gets a white square in its lower right corner and the
    label `target`. For simulation.

    It succeeds on held-out pictures of other classes that, with the square, are taken for `target`.

    Attributes:
      share: of all clients that attack, rounded to whole ones.
      target: the number of the class.
      size: of the square's side, as a share of the picture's shorter one.

    Raises:
      ValueError: a value out of range, or no pictures with labels.
    """

    share: float = 0.2
    target: int = 0
    size: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.target >= 0 and 0 < self.size <= 1):
            raise ValueError(
                f"share must be in [0, 1], target a class and size in (0, 1], got {self.share}, "
                f"{self.target} and {self.size}"
            )

    def poison(self, rows: Tensors, classes: int) -> Tensors:
        self._check(rows, classes)
        image, label = rows["image"].clone(), rows["label"].clone()
        image[::2], label[::2] = self._stamped(image[::2]), self.target
        return {**rows, "image": image, "label": label}

    def probe(self, rows: Tensors, classes: int) -> Tensors | None:
        self._check(rows, classes)
        others = {name: x[rows["label"] != self.target] for name, x in rows.items()}
        label = others["label"].new_full(others["label"].shape, self.target)
        return {**others, "image": self._stamped(others["image"]), "label": label}

    def send(self, update: Update) -> Update:
        return update

    def _check(self, rows: Tensors, classes: int) -> None:
        if not {"image", "label"} <= rows.keys() or self.target >= classes:
            raise ValueError(
                f"a backdoor needs pictures with labels, and {self.target} among their {classes} "
                "classes"
            )

    def _stamped(self, image: Tensor) -> Tensor:
        """Pictures uint8 (n, channels, height, width) with the trigger."""
        image = image.clone()
        side = max(1, round(self.size * min(image.shape[-2:])))
        image[..., -side:, -side:] = 255
        return image
