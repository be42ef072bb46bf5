"""What is asked of a contribution beyond that it fits its study: who signed it, how long its update
is, and how much it counts, beside the others.

Each is held to the others, whoever came first, so that what is admitted does not depend on the
order. What a lone file is held to follows from the tensors that all start from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from shlex import quote
from statistics import median
from typing import TypeAlias

from fedpeft.core.tensors import norm
from fedpeft.core.types import ClientId, Tensors
from fedpeft.errors import RunError
from fedpeft.oneshot.contribution import Contribution
from fedpeft.oneshot.invitation import Invitation
from fedpeft.oneshot.rejections import ContributionError, Rejection

FARTHEST = 1000.0
"""The longest update, in lengths of the starting tensors, or of as many ones where that is more."""
LONE = 10.0
"""By how much more two updates may differ than one from a median: one length is a poor median."""
HEAVIEST = 100.0
"""How much a file may count, in what the median of the others counts."""

Came: TypeAlias = Mapping[ClientId, tuple[Path, Contribution]]
"""Files and what they hold by client, in the order in which they came."""


@dataclass(frozen=True)
class Rules:
    """What is asked of a file; kept with what is merged, for those that come later.

    Attributes:
      trust: by public key, in hex, who signs with it; empty for signed and unsigned files alike.
      norm_factor: an update may be so many times as long as the median of the others', and `LONE`
        times that where there is one other.
      max_norm: the longest that an update may be; None for `FARTHEST`, infinity for any length.
      max_weight: the most examples that a file may count as; None for `HEAVIEST` times the median
        of the others'.

    Raises:
      RunError: a value out of range.
    """

    trust: Mapping[str, str] = field(default_factory=dict)
    norm_factor: float = 10.0
    max_norm: float | None = None
    max_weight: float | None = None

    def __post_init__(self) -> None:
        bounds = [x for x in (self.max_norm, self.max_weight) if x is not None]
        if not (self.norm_factor >= 1 and all(x > 0 for x in bounds)):
            raise RunError(
                "the norm factor must be at least 1, the largest norm and number of examples "
                f"positive; got {self.norm_factor}, {self.max_norm} and {self.max_weight}"
            )

    def but(
        self,
        trust: Mapping[str, str],
        norm_factor: float | None,
        max_norm: float | None,
        max_weight: float | None,
    ) -> "Rules":
        """The same with more keys, and with other bounds where they are given."""
        bounds = {"norm_factor": norm_factor, "max_norm": max_norm, "max_weight": max_weight}
        given = {key: x for key, x in bounds.items() if x is not None}
        return replace(self, trust={**self.trust, **trust}, **given)

    def values(self) -> dict[str, object]:
        """The rules as JSON holds them, which has no infinity."""
        bounds = {"max_norm": self.max_norm, "max_weight": self.max_weight}
        told = {key: None if x is None else str(x) for key, x in bounds.items()}
        return {"trust": dict(self.trust), "norm_factor": self.norm_factor, **told}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Rules":
        """The inverse of `values`; of an earlier version too, which knew no bound of weights.

        Raises:
          KeyError, TypeError, ValueError: they are none.
        """
        bounds = (values["max_norm"], values.get("max_weight"))
        trust: Mapping[str, str] = dict(values["trust"])  # type: ignore[call-overload]
        limits = (None if x is None else float(str(x)) for x in bounds)
        return cls(trust, float(str(values["norm_factor"])), *limits)


def check_together(every: Came, before: Came, rules: Rules, study: Invitation) -> None:
    """Raise where files cannot be merged with each other, though each is good for itself.

    Args:
      before: those of `every` that were merged already.

    Raises:
      ContributionError: one is too long or counts too much beside the others.
      RunError: the files are masked, and one of the roster is missing or a rule cannot be applied.
    """
    if study.plan.exchange.sums:
        _check_full(every, rules, study)
    else:
        check_beside(every, before, rules, study.state.params)


def _check_full(every: Came, rules: Rules, study: Invitation) -> None:
    if rules != Rules(rules.trust):
        raise RunError(
            "nobody sees how long a masked update is or what it counts: leave out --norm-factor, "
            "--max-norm and --max-examples. Owners hold themselves to exchange.limit, "
            "exchange.max_norm and exchange.max_weight of the plan"
        )
    owners = study.roster.keys if study.roster else {}
    if not owners:
        raise RunError(
            f"{study.path} has no roster: gather what owners joined with by `fedpeft roster`, and "
            "merge the files that they make for the folder that it writes"
        )
    if missing := sorted(set(owners) - set(every)):
        raise RunError(
            f"the files of {', '.join(missing)} are missing. Masks take each other away only in "
            "the sum of all files of the roster, and nobody can take those of a missing one away: "
            "who could, could take them away from a file that did come (docs/security.md). Ask "
            "for the file, or for one that adds nothing (`fedpeft withdraw`); else invite again "
            "without them"
        )


def check_change(study: Invitation, add: Sequence[Path], remove: Sequence[ClientId]) -> None:
    """Raises RunError for files that would come to a masked sum later, or go from it."""
    if study.plan.exchange.sums and (add or remove):
        raise RunError(
            "a masked sum is of all files of its roster at once: none can be added or taken out, "
            "since two sums would tell the update by which they differ. Invite again with the "
            "owners that are to be in it"
        )


def check_beside(every: Came, before: Came, rules: Rules, start: Tensors) -> None:
    """Raises ContributionError for a file that is too long or counts too much beside the others.

    Args:
      before: those of `every` that were merged already.
      start: what all began with.
    """
    sizes = {client: one.size for client, (_, one) in every.items()}
    lengths = {client: size.length for client, size in sizes.items()}
    weights = {client: one.weight for client, (_, one) in every.items()}
    for client in _largest_first(lengths):
        if words := _too_long(client, lengths, rules, start):
            words = f"its {sizes[client].of} is {words.format(_mend(client, before))}"
            raise ContributionError(Rejection.NORM, every[client][0], words)
    for client in _largest_first(weights):
        if words := _too_heavy(client, weights, rules):
            raise ContributionError(
                Rejection.EXAMPLES, every[client][0], words.format(_mend(client, before))
            )


def _largest_first(sizes: Mapping[ClientId, float]) -> list[ClientId]:
    # So the error names the farthest one, and the same one whatever the order of arrival.
    return sorted(sizes, key=lambda client: (-sizes[client], client))


def _mend(client: ClientId, before: Came) -> str:
    if client not in before:
        return "ask the client"
    return (
        f"{client!r} was merged before: take it out (--remove {quote(client)}), or leave out what "
        "is new"
    )


def _too_long(
    client: ClientId, lengths: Mapping[ClientId, float], rules: Rules, start: Tensors
) -> str:
    """What is wrong, with a place for what to do; empty where nothing is."""
    length, others = lengths[client], [x for name, x in lengths.items() if name != client]
    most, why = rules.max_norm, ""
    if most is None:
        # Of a start that is all zeros, any number of times its length would let nothing in.
        least = sqrt(sum(x.numel() for x in start.values()))
        most = FARTHEST * max(float(norm(start)), least)
        why = f", {FARTHEST:g} times what training starts from"
    if length > most:
        return f"{length:.4g} long, at most {most:.4g} is allowed{why}; {{}}, or raise --max-norm"
    usual = median(others) if others else 0.0
    factor = rules.norm_factor * (LONE if len(others) == 1 else 1)
    # A lone other one that did not move at all is no measure of how far is too far.
    if not others or (len(others) == 1 and not usual) or length <= factor * usual:
        return ""
    beside = f"the median of the other {len(others)}" if len(others) > 1 else "the only other one"
    return (
        f"{length:.4g} long, {beside} is {usual:.4g}, and at most {factor:g} times "
        "that is allowed; {}, or raise --norm-factor"
    )


def _too_heavy(client: ClientId, weights: Mapping[ClientId, float], rules: Rules) -> str:
    weight, others = weights[client], [x for name, x in weights.items() if name != client]
    most, why = rules.max_weight, ""
    if most is None:
        if not others:  # alone it is the mean, whatever it counts
            return ""
        usual = median(others)
        most, why = HEAVIEST * usual, f", {HEAVIEST:g} times the median {usual:g} of the others"
    if weight <= most:
        return ""
    return (
        f"it counts as {weight:.16g} examples, at most {most:.16g} are allowed{why}; {{}}, or "
        f"if that is true give --max-examples {weight:.16g}"
    )
