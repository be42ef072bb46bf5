"""What a server can tell of a client's examples from what the client sends, against what it could
tell without."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.audits.inversion import input_of, labels_of, nearest, psnr, solved, sought, ssim
from fedpeft.audits.membership import membership
from fedpeft.audits.messages import Message, alone, overheard, partitioned
from fedpeft.compute.trainable import head_of
from fedpeft.core.seeds import generator
from fedpeft.core.types import Batch, ClientId, Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import learns, select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.registry import describe
from fedpeft.rounds.site import Site, threads

BASELINES = ("class_mean", "mean", "other")
"""What is had without a message."""
MOST = 8
"""Inputs that are sought at a time."""


@dataclass(frozen=True)
class Effort:
    """How much an attack may cost.

    Attributes:
      pictures: single examples that are tried.
      steps: of a search.
      messages: of the client that are heard; 0 for all.

    Raises:
      PlanError: a value out of range.
    """

    pictures: int = 4
    steps: int = 120
    messages: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 2 or self.steps < 1 or self.messages < 0:
            raise PlanError(
                f"an attack tries 2 or more pictures in 1 or more steps, not {self.pictures} in "
                f"{self.steps}, with {self.messages} messages"
            )


@dataclass(frozen=True)
class Attacker:
    """What a server knows: the plan, the model, what it sent and received, and examples that are
    public.

    To its favour it is also told how many examples the client has, where the plan does not tell.

    Attributes:
      public: the held-out examples, as rows.
      bias: the name of the head's.
    """

    site: Site
    public: Tensors
    bias: str

    @classmethod
    def of(cls, site: Site) -> "Attacker":
        """Raises PlanError where inputs are no numbers that can be sought, or no head's bias tells
        the labels."""
        public = partitioned(site).test
        input_of(public)
        asked = getattr(site.plan.method, "head", None)
        bias = f"{head_of(site.model, 'auto' if asked is None else asked)}.bias"
        if "label" not in public or bias not in site.plan.method.names(site.model):
            raise PlanError(
                "inversion takes its labels from the bias of a trained head, which is not there"
            )
        return cls(site, public, bias)

    @property
    def inputs(self) -> Tensor:
        """The inputs of the public examples."""
        return self.public[input_of(self.public)].float()

    @property
    def span(self) -> tuple[float, float]:
        return float(self.inputs.min()), float(self.inputs.max())

    def like(self, label: Tensor) -> list[Tensor]:
        """For each label the public inputs of it, or all where there are none."""
        of = [self.inputs[self.public["label"] == one] for one in label]
        return [some if len(some) else self.inputs for some in of]

    def invert(
        self,
        messages: Sequence[Message],
        examples: int,
        steps: int,
        draws: torch.Generator,
        tick: Callable[[], None],
    ) -> tuple[Tensor, Tensor]:
        """Inputs and their labels, `MOST` at most, for a client with so many examples; the search
        begins at the mean of the public inputs of a label."""
        label = labels_of(messages[0].delta, self.bias, examples)
        label = label[torch.randperm(examples, generator=draws)[:MOST]]
        begin = torch.stack([some.mean(0) for some in self.like(label)])

        def batch(x: Tensor) -> Batch:
            rows = self.site.task.batch({input_of(self.public): x, "label": label}, None)
            return self.site.on_device({**rows, "mask": torch.ones(len(label))})

        self.site.model.eval()
        with threads(self.site.plan.compute.threads):
            found = solved(messages[0], begin, batch(begin))
            if found is None:
                found = sought(messages, begin, batch, self.span, steps, tick)
        return found[: len(label)], label[: len(found)]

    def judged(
        self, found: Tensor, label: Tensor, truth: Tensor, draws: torch.Generator
    ) -> dict[str, Tensor]:
        """PSNR (and SSIM) of each find with the nearest true input, and of what is had without a
        message."""
        known = self.like(label)
        every = self.inputs.mean(0, keepdim=True).expand(len(label), *found.shape[1:])
        guesses = {
            "found": found.cpu(),
            "class_mean": torch.stack([some.mean(0) for some in known]),
            "mean": every,
            "other": torch.stack(
                [some[int(torch.randint(len(some), (), generator=draws))] for some in known]
            ),
        }
        span, each = self.span[1] - self.span[0], {}
        for name, guess in guesses.items():
            near = truth[nearest(guess, truth)]
            each[f"psnr_{name}"] = psnr(guess, near, span)
            if guess.ndim == 4:
                each[f"ssim_{name}"] = ssim(guess, near, span)
        return each


def attack(
    site: Site, client: ClientId, effort: Effort, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Everything that `fedpeft audit` tells of messages, as plain values.

    Raises:
      RunError, PlanError, DataError: see `overheard` and `membership`.
    """
    messages = overheard(site, client, effort.messages, tick)
    return {
        "plan": site.plan.name,
        "method": describe("method", site.plan.method)["name"],
        "rounds": site.plan.rounds,
        "client": client,
        "examples": site.data.size(client),
        "messages": len(messages),
        **_noise(site.plan),
        "membership": {
            name: asdict(found) for name, found in membership(site, client, messages).items()
        },
        "inversion": _inversion(site, client, messages, effort, tick),
    }


def _noise(plan: Plan) -> dict[str, Any]:
    """Which part of the plan adds noise, and whether it is in what one client sends; None without
    such a part."""
    part = plan.private_part
    if part is None:
        return {"privacy": None, "noise_in_messages": None}
    kind = "local" if part is plan.local else "stage"
    kind = "algorithm" if any(part is one for one in plan.algorithms) else kind
    return {"privacy": describe(kind, part)["name"], "noise_in_messages": not part.event.central}


def favourite(site: Site) -> ClientId:
    """The client that takes part most often, of several the first; of those of the first round,
    where a sampler learns and nobody can tell whom it draws later."""
    plan, every = site.plan, site.data.clients
    known = min(plan.rounds, 1) if learns(plan) else plan.rounds
    times = Counter(name for round_ in range(known) for name in select_cohort(plan, every, round_))
    return min(times, key=lambda name: (-times[name], name))


def _inversion(
    site: Site,
    client: ClientId,
    messages: Sequence[Message],
    effort: Effort,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Of single examples, each alone with a client, and of what the client did send."""
    try:
        attacker = Attacker.of(site)
    except PlanError as error:
        return {"skipped": str(error)}
    draws, data = generator(site.plan.seed, "attack"), partitioned(site)
    own = data.parts[client]
    truth, labels = data.train[input_of(data.train)].float()[own], data.train["label"][own]
    singles, right = [], 0.0
    places = torch.randperm(len(own), generator=draws)[: effort.pictures].tolist()
    for place in places:
        first = overheard(alone(site, client, place), client, 1)
        found, label = attacker.invert(first, 1, effort.steps, draws, tick)
        right += float(label == labels[place]) / len(places)
        singles.append(attacker.judged(found, label, truth[place : place + 1], draws))
    found, label = attacker.invert(messages[:1], len(own), effort.steps, draws, tick)
    guessed = labels_of(messages[0].delta, attacker.bias, len(own))
    one = {key: torch.cat([single[key] for single in singles]) for key in singles[0]}
    return {
        "one_example": {"labels_right": right, **_summed(one)},
        "as_sent": {
            "labels_right": _overlap(guessed, labels),
            **_summed(attacker.judged(found, label, truth, draws)),
        },
    }


def _overlap(guessed: Tensor, truth: Tensor) -> float:
    """The share of the labels that are right, as bags."""
    bins = int(max(guessed.max(), truth.max())) + 1
    return float(
        torch.minimum(guessed.bincount(minlength=bins), truth.bincount(minlength=bins)).sum()
        / len(truth)
    )


def _summed(each: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means, and by how much the finds are nearer than the best of what needs no message, with a 95
    % t interval."""
    from scipy.special import stdtrit

    means = {name: float(x.mean()) for name, x in each.items()}
    best = max((f"psnr_{name}" for name in BASELINES), key=lambda name: means[name])
    ahead = each["psnr_found"] - each[best]
    mean = float(ahead.mean())
    found = {**means, "tries": len(ahead), "ahead": mean, "ahead_low": None, "ahead_high": None}
    if len(ahead) > 1:
        wide = float(stdtrit(len(ahead) - 1, 0.975) * ahead.std() / len(ahead) ** 0.5)
        found |= {"ahead_low": mean - wide, "ahead_high": mean + wide}
    return found
