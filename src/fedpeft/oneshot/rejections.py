"""What may be wrong with a contribution file; the file is then not counted, and nothing is
changed."""

from enum import Enum
from pathlib import Path

from fedpeft.errors import FedpeftError


class Rejection(Enum):
    """Each with the words that name it."""

    LARGE = "too large"
    DAMAGED = "damaged or no contribution"
    FORMAT = "another format"
    STUDY = "another study"
    PLAN = "another plan"
    BASE = "another base model"
    START = "other starting tensors"
    LABELS = "other label order"
    TRANSFORMS = "other transforms"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown key"
    TAMPERED = "tampered with"
    TENSORS = "wrong tensors"
    NOT_FINITE = "not finite"
    SUMS = "sums of no examples"
    WEIGHT = "wrong weight"
    NORM = "absurd norm"
    EXAMPLES = "absurd number of examples"
    FOREIGN = "not in the roster"
    TWICE = "same client twice"


class ContributionError(FedpeftError):
    """A contribution that is not counted.

    Attributes:
      reason: what is wrong.
    """

    def __init__(self, reason: Rejection, file: Path | str, words: str) -> None:
        super().__init__(f"{file}: {reason.value}: {words}")
        self.reason = reason
