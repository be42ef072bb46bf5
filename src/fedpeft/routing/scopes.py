"""Groups of tensors, each of which some clients have in common: FedCola's scopes (Sun et al., 2024,
arXiv:2404.12467, section 3.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, Tensors
from fedpeft.core.views import Condition, View, meets
from fedpeft.errors import PlanError, unknown

ABSENT, FROZEN = "absent", "frozen"


@dataclass(frozen=True)
class Scopes:
    """Each scope is a pattern of tensors and the clients who train them. A tensor's mean is over
    those who trained it, and a tensor in no scope is everybody's; one in several is of those who
    are in all of them.

    A client who has pictures alone need not have the texts' tower. One with another kind of data
    may share its attention with all others, and leave the rest alone.

    Attributes:
      scopes: by a pattern of tensors' names the patterns of clients' names, as of file names; a
        leading "!" stands for all other names.
      outside: what becomes of a scope's tensors at other clients: "absent", they do not travel, and
        have their first values there; or "frozen", they come, and are not trained.

    Raises:
      ValueError: there are no scopes, or one without clients.
    """

    scopes: Mapping[str, tuple[str, ...]]
    outside: str = ABSENT
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MIXED_TENSORS, Fact.MIXED_VIEWS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: "scopes let clients of one round train different tensors, and "
        '{aggregator} takes updates of one layout: set aggregator = "mean", or leave scopes out',
    }

    def __post_init__(self) -> None:
        if not self.scopes:
            raise ValueError('scopes are by pattern, such as { "text_model.*" = ["text-*"] }')
        if empty := next((name for name, whom in self.scopes.items() if not whom), None):
            raise ValueError(f"the scope {empty!r} has no clients, so that nobody trains it")
        if self.outside not in (ABSENT, FROZEN):
            raise ValueError(unknown("outside", self.outside, (ABSENT, FROZEN)))

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        out: tuple[Condition, ...] = tuple(
            (_others(pattern),)
            for pattern, whom in self.scopes.items()
            if not meets(client, [tuple(whom)])
        )
        return View(receives=out) if self.outside == ABSENT else View(trains=out)

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError for a scope without tensors."""
        for pattern in self.scopes:
            if not any(meets(name, [(pattern,)]) for name in params):
                raise PlanError(
                    f"scopes: no trained tensor has a name like {pattern!r}; the first is called "
                    f"{next(iter(params), 'none')!r}"
                )


def _others(pattern: str) -> str:
    """The pattern of all names that a pattern does not match."""
    return pattern[1:] if pattern.startswith("!") else f"!{pattern}"
