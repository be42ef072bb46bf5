"""What a contribution must agree with."""

from dataclasses import dataclass

FORMAT = "fedpeft-invitation-1"


@dataclass(frozen=True)
class Terms:
    """What a contribution must agree with to be counted in a study.

    Attributes:
      study: fresh for each invitation, so that a file counts in one study only; with a roster, a
        digest of it and of all that owners were invited with.
      plan: the plan's fingerprint; `base`, `start`, `labels` and `transforms`: digests of what
        their names say.
      server: the public key that files are sealed for, in hex.
    """

    study: str
    plan: str
    base: str
    start: str
    labels: str
    transforms: str
    server: str
    format: str = FORMAT
