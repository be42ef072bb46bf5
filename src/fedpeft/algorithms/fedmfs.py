"""FedMFS: a client sends those groups of tensors, such as the encoders of its modalities, that do
most for their size (Yuan et al., 2023, arXiv:2310.07048).

After local training a client finds the Shapley value φ of each group, and with s the bytes that the
group has,

    priority = (1 − by_size)·φ̄ + by_size·(1 − s̄) + recency·r
    x̄ = (x − min x) / (max x − min x)        r = (t − u − 1) / t

over its own groups, where t counts the rounds from 1 and u is the last one in which the client
sent the group, 0 for none. The last summand is that of its successor, MFedMC (Yuan et al., 2024,
arXiv:2401.16685), and is 0 by default. It sends the `keep` groups of the highest priority, and what
is in no group; the rest of its update is absent, and a tensor's mean is over those who sent it.

The worth of a coalition of groups is minus the mean loss of the trained model in which the other
groups are absent. A group whose inputs are named is absent where these are zero, so that φ is the
worth of a modality, as in the paper. Without names its tensors are as the client received them, so
that φ is the worth of what the client has learnt.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

import torch

from fedpeft.algorithms.received_loss import mean_loss
from fedpeft.algorithms.shapley import Coalition, shapley_values
from fedpeft.core.conversation import DELTA, Answer, Flow, changed_answers
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.types import Batch, State, Tensors, Update
from fedpeft.core.views import meets
from fedpeft.errors import PlanError, say_count
from fedpeft.registry import unwritten

OWNER = "fedmfs"
MOST = 6
"""Groups: the model goes 2^groups times over a client's examples in each round."""
COLUMN = re.compile(r"([^\[\]]+)(?:\[(\d+):(\d+)\])?")


@dataclass(frozen=True)
class FedMFS:
    """Clients choose which groups of tensors they send.

    Attributes:
      groups: by a name the patterns of its tensors' names, as of file names.
      keep: how many groups a client sends.
      by_size: how much a group's size counts beside its Shapley value, from 0 to 1. The paper has
        one half.
      inputs: by group the columns of a batch that its modality comes in, such as "x", or "x[0:32]"
        for these places of the second dimension.
      sets_apart: the share of each client's examples on which it does not train but chooses; at 0
        it chooses on those that it trains on.
      recency: how much it counts that a group was not sent for long. Above 0 a client remembers
        when it sent which group.

    Raises:
      ValueError: a value out of range, or inputs that are not of the groups.
    """

    groups: Mapping[str, tuple[str, ...]]
    keep: int = 1
    by_size: float = 0.5
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sets_apart: float = 0.0
    recency: float = unwritten(0.0)
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: "fedmfs lets clients of one round send different tensors, and "
        '{aggregator} takes updates of one layout: set aggregator = "mean", or leave fedmfs out',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.SUM_ONLY: "fedmfs takes the mean of a tensor over those who sent it, whom a sum "
        'hides: leave it out, or set exchange = "plain"',
        Fact.SENDS_LATER: "{other} {what}, and with fedmfs a tensor that is left out now may be "
        "left out for ever: leave out one of them",
        Fact.REMEMBERS_MEAN: "{other} {what}, and with fedmfs a tensor's mean is over those who "
        "sent it: leave out one of them",
        Fact.CONTROL: "{other} {what}, which fit an update that has all tensors: leave it out, or "
        "fedmfs",
    }

    def __post_init__(self) -> None:
        if not 2 <= len(self.groups) <= MOST or not all(self.groups.values()):
            raise ValueError(
                f"groups must be 2 to {MOST}, each with a pattern of its tensors' names, such as "
                f'{{ sound = ["sound.*"], motion = ["motion.*"] }}, got {dict(self.groups)}'
            )
        if not 1 <= self.keep <= len(self.groups):
            raise ValueError(f"keep must be from 1 to {len(self.groups)} groups, got {self.keep}")
        if not 0 <= self.by_size <= 1:
            raise ValueError(f"by_size must be from 0 to 1, got {self.by_size}")
        if not 0 <= self.sets_apart < 1:
            raise ValueError(f"sets_apart must be at least 0 and below 1, got {self.sets_apart}")
        if not 0 <= self.recency < float("inf"):
            raise ValueError(f"recency must be at least 0 and finite, got {self.recency}")
        self._check_inputs()

    def _check_inputs(self) -> None:
        if self.inputs and self.inputs.keys() != self.groups.keys():
            raise ValueError(
                f"inputs must be of all groups, {', '.join(self.groups)}, or of none, got those of "
                f"{', '.join(self.inputs)}"
            )
        for column in (one for columns in self.inputs.values() for one in columns):
            if not COLUMN.fullmatch(column):
                raise ValueError(f'inputs are columns such as "x" or "x[0:32]", got {column!r}')

    @property
    def offers(self) -> frozenset[Fact]:
        remembers = {Fact.REMEMBERS} if self.recency else set()
        return frozenset({Fact.MIXED_TENSORS, *remembers})

    @property
    def remembers_clients(self) -> bool:
        """Whether a client notes when it sent which group."""
        return self.recency > 0

    @property
    def reveals(self) -> frozenset[str]:
        """What the server learns from which groups come."""
        if self.keep == len(self.groups):
            return frozenset()
        return frozenset({f"which of {', '.join(self.groups)} do most for the model here"})

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where features are kept of inputs that are to be left out."""
        if self.inputs and plan.compute.features:
            raise PlanError(
                "fedmfs leaves out inputs, and what is kept of a frozen beginning of the model is "
                "of all of them: set compute.features = false, or leave out inputs"
            )

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError for a group without tensors, or a tensor of two groups."""
        owners: dict[str, str] = {}
        for group, patterns in self.groups.items():
            names = [name for name in params if meets(name, [tuple(patterns)])]
            if not names:
                raise PlanError(
                    f"fedmfs: the group {group!r} has no tensor that travels; the first is called "
                    f"{next(iter(params), 'none')!r}"
                )
            for name in names:
                if name in owners:
                    raise PlanError(
                        f"fedmfs: {name!r} is in the groups {owners[name]!r} and {group!r}: a "
                        "tensor has one group at most"
                    )
                owners[name] = group

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round; it tells how many clients sent each group."""
        sent = dict.fromkeys(self.groups, 0)

        def count(answer: Answer) -> Answer:
            for group in self._in_groups(answer.message.tensors.get(DELTA, {})):
                sent[group] += 1
            return answer

        after = yield from changed_answers(inner(state, round), count)
        round.report(OWNER, {"sent": sent})
        return after

    def may_leave_out(self, names: Sequence[str]) -> Sequence[Collection[str]]:
        """The groups of an update, where it has more than a client sends."""
        found = self._in_groups(names)
        return list(found.values()) if len(found) > self.keep else []

    def leave_out(self, client: Any, trained: Tensors) -> Collection[str]:
        """The tensors of the groups that a client does not send.

        Raises:
          ArithmeticError: without some groups the loss is not finite.
          PlanError: an input is not in the client's batches.
        """
        received: Tensors = client.received
        groups = self._in_groups(received)
        if len(groups) <= self.keep:
            return ()

        def worth(coalition: Coalition) -> float:
            absent = [group for group in groups if group not in coalition]
            loss = self._loss_without(absent, groups, client, trained)
            if not isfinite(loss):
                raise ArithmeticError(
                    f"without {', '.join(absent) or 'nothing'} its loss is {loss}"
                )
            return -loss

        values = shapley_values(list(groups), worth)
        sizes = {group: sum(received[n].nbytes for n in names) for group, names in groups.items()}
        kept = self._rank(values, sizes, self._waiting(client, groups))[: self.keep]
        if self.recency:
            now = {group: torch.tensor(float(client.job.round + 1)) for group in kept}
            client.remember(OWNER, {**client.recall(OWNER), **now})
        return {name for group, names in groups.items() if group not in kept for name in names}

    def check_update(self, update: Update, state: State, plan: Any) -> None:
        """Raises ValueError for an update of too many groups, or of nothing."""
        sent = self._in_groups(update.delta)
        if len(sent) > self.keep:
            raise ValueError(
                f"it holds {', '.join(sent)}, and a client sends {say_count(self.keep, 'group')}"
            )
        if not update.delta:
            raise ValueError("it holds no tensor: a client leaves out some groups, and not all")

    def _waiting(self, client: Any, groups: Iterable[str]) -> dict[str, float]:
        """By group r, for how large a share of the rounds so far a client has not sent it."""
        now, sent = client.job.round + 1, client.recall(OWNER)
        return {group: (now - float(sent.get(group, 0)) - 1) / now for group in groups}

    def _rank(
        self,
        values: Mapping[str, float],
        sizes: Mapping[str, float],
        waiting: Mapping[str, float],
    ) -> list[str]:
        """The groups by falling priority, equals by their names."""
        worth, size = scale_to_one(values), scale_to_one(sizes)
        priority = {
            group: (1 - self.by_size) * worth[group]
            + self.by_size * (1 - size[group])
            + self.recency * waiting[group]
            for group in values
        }
        return sorted(priority, key=lambda group: (-priority[group], group))

    def _loss_without(
        self,
        absent: Sequence[str],
        groups: Mapping[str, Collection[str]],
        client: Any,
        trained: Tensors,
    ) -> float:
        """The mean loss of the model on a client's examples without some groups."""
        site = client.site
        held = site.apart if site.apart and client.name in site.apart.clients else site.data
        batches: Iterable[Batch] = held.training(client.name)
        params = dict(trained)
        if self.inputs:
            columns = [column for group in absent for column in self.inputs[group]]
            batches = (blank_columns(batch, columns) for batch in batches)
        else:
            params |= {name: client.received[name] for group in absent for name in groups[group]}
        return mean_loss(site.task, client.outputs(params=params, batches=batches))

    def _in_groups(self, names: Iterable[str]) -> dict[str, frozenset[str]]:
        """By group those of the names that are in it, of groups that have some."""
        every = list(names)
        # by name, as the order of a plan's keys is no part of its fingerprint
        found = {
            group: frozenset(name for name in every if meets(name, [tuple(patterns)]))
            for group, patterns in sorted(self.groups.items())
        }
        return {group: some for group, some in found.items() if some}


def scale_to_one(values: Mapping[str, float]) -> dict[str, float]:
    """The least is 0 and the largest 1; all are 0 where all are equal."""
    least, largest = min(values.values()), max(values.values())
    width = largest - least
    return {name: (x - least) / width if width else 0.0 for name, x in values.items()}


def blank_columns(batch: Batch, columns: Sequence[str]) -> Batch:
    """A batch with zeros in some columns, or in places of their second dimension.

    Raises:
      PlanError: the batch has no such column, or the column no such places.
    """
    changed = dict(batch)
    for column, first, end in _parse_columns(columns):
        if column not in changed:
            raise PlanError(
                f"fedmfs: a batch has no column {column!r}; inputs may be of {', '.join(batch)}"
            )
        x = changed[column]
        if end is None:
            changed[column] = torch.zeros_like(x)
            continue
        if x.ndim < 2 or not first < end <= x.shape[1]:
            raise PlanError(
                f"fedmfs: {column}[{first}:{end}] are no places of a column of shape "
                f"{tuple(x.shape)}"
            )
        changed[column] = x.clone()
        changed[column][:, first:end] = 0
    return changed


def _parse_columns(columns: Sequence[str]) -> Iterator[tuple[str, int, int | None]]:
    """Each column's name, with the places of its second dimension; None for all of them."""
    for text in columns:
        match = COLUMN.fullmatch(text)
        if match is not None:
            name, first, end = match.groups()
            yield name, int(first or 0), None if end is None else int(end)
