"""Two adapters that teach each other (FedDAT; Chen et al., 2023, arXiv:2308.12305), read in the
authors' code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.facts import Fact, forbidden_by
from fedpeft.core.interfaces import Added, Augment, Data, Local, LossFn, Term
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.errors import PlanError
from fedpeft.local.descent import Descent
from fedpeft.registry import build, describe, part

OWN, SHARED = ".own_adapter.", ".shared_adapter."
"""What the names of the two adapters' tensors hold; see `methods.dual_adapter`."""
SECOND = "second"
"""The prefix of what the own adapter's training carries."""
FROZEN = "frozen"
TAUGHT, TEACHING = (0.0, 1.0), (0.5, 0.5)
"""The gates of the shared adapter alone, and of both."""


@dataclass(frozen=True, kw_only=True)
class MutualDistillation:
    """Two steps on each batch. The student is the shared adapter S alone; the teacher is half of
    the own adapter L and half of S⁰, the shared adapter as it came.

        S, head ← a step along ∇(CE(z_S) + w·τ²·KL(z_T ‖ z_S)) / 2
        L, head ← a step along ∇(CE(z_T) + w·τ²·KL(z_S ‖ z_T)) / 2

    for the logits z of the student and of the teacher; who teaches gets no gradient. In the second
    step z_S is that of before the first one. As in the authors' code both steps move the head. Here
    each adapter has an optimizer of its own, with one memory more of the head. The rate follows the
    batches, and not the steps. After training both count half, with the new S.

    What a client tells is the student's loss, half of both terms.

    Attributes:
      temperature: τ.
      weight: w; 1 in the paper.
      inner: how both steps are taken: "descent", without terms and correction.

    Raises:
      ValueError: a value out of range, or an inner training that this one cannot wrap.
    """

    temperature: float = 3.0
    weight: float = 1.0
    inner: Local = part("local", "descent")
    # `inner` begins, and it looks at nothing of the context but its rounds and steps
    begins_alike: ClassVar[bool] = True
    _term: Term = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Descent) or not _is_plain(self.inner):
            raise ValueError(
                'mutual wraps plain descent: set local.inner = "descent", without terms, '
                "correction, as_published and restart_schedule = false"
            )
        spec = {"name": "distillation", "weight": self.weight, "temperature": self.temperature}
        try:
            term = build("term", spec)
        except PlanError as error:
            raise ValueError(str(error)) from None
        object.__setattr__(self, "_term", term)

    @property
    def descent(self) -> Descent:
        """What takes the steps."""
        assert isinstance(self.inner, Descent)
        return self.inner

    @property
    def forbids(self) -> Mapping[Fact, str]:
        return forbidden_by(self._term)

    @property
    def precision(self) -> str:
        return self.inner.precision

    @property
    def passes(self) -> float:
        return self.inner.passes

    @property
    def event(self) -> Event | None:
        return None

    @property
    def batch_size(self) -> int:
        """By which `weighting = "batches"` rounds."""
        return self.descent.batch_size

    @property
    def group_by_length(self) -> bool:
        return self.descent.group_by_length

    @property
    def augments(self) -> tuple[Augment, ...]:
        return self.descent.augments

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there are no adapters to teach."""
        if not any(SHARED in name for name in params):
            raise PlanError(
                "mutual trains two adapters, of which one is shared, and there is none: set method "
                '= "dual_adapter", and leave its shared adapter out of `personal`'
            )

    def steps_for(self, size: int) -> int:
        return self.inner.steps_for(size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self.inner.batches(data, received, context)

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        first = self.inner.begin(_without(OWN, received), {}, context)
        second = self.inner.begin(_without(SHARED, received), {}, context)
        frozen = {name: x for name, x in received.items() if SHARED in name}
        return {**first, **_nested(second), FROZEN: frozen}

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        first, second = _parts(carry)
        taught, own = first["params"], second["params"]
        gates, both = _gates(carry[FROZEN], TAUGHT), _gates(carry[FROZEN], TEACHING)
        student = {**own, **taught, **gates}
        teacher = {**own, **taught, **carry[FROZEN], **both}
        to_student = Distilled(losses, student, teacher, self._term)
        first = {**self.inner.step(first, batch, to_student)}
        second = {**second, "params": {**own, **_common(first["params"])}}
        after = {**teacher, **second["params"]}
        to_own = Distilled(losses, after, student, self._term)
        second = {**self.inner.step(second, batch, to_own)}
        first["params"] = {**first["params"], **_common(second["params"])}
        return {**first, **_nested(second), FROZEN: carry[FROZEN]}

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        first, second = _parts(carry)
        delta, _, totals = self.inner.finish(first, _without(OWN, received), {})
        own, _, _ = self.inner.finish(second, _without(SHARED, received), {})
        return {**own, **delta}, {}, totals


@dataclass(frozen=True)
class Distilled:
    """Half of a loss and of a distance from a teacher, of some of a model's tensors.

    Attributes:
      view: all tensors with which the model is called; those that are trained take their place.
      teacher: the same of the model to be near to.
    """

    losses: LossFn
    view: Tensors
    teacher: Tensors
    term: Term

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return self.losses({**self.view, **params}, batch, self._added()) / 2

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        whole = {**self.view, **params}
        gradient, each, buffers = self.losses.gradient(whole, batch, self._added())
        halves = {name: g / 2 for name, g in gradient.items() if name in params}
        return halves, each / 2, {name: x for name, x in buffers.items() if name in params}

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        found = self.losses.gradients({**self.view, **params}, batch, self._added())
        return {name: g / 2 for name, g in found.items() if name in params}

    def _added(self) -> Added | None:
        """The term compares with a model of this name, whichever it is."""
        if not self.term.weight:
            return None
        return Added((self.term,), {self.term.compares[0]: self.teacher})


def _is_plain(inner: Descent) -> bool:
    corrected = describe("correction", inner.correction)["name"] != "none"
    return not (corrected or inner.terms or inner.remembers or inner.as_published)


def _gates(shared: Tensors, gate: tuple[float, float]) -> dict[str, Tensor]:
    """The same gate for every layer with adapters."""
    layers = {name.partition(SHARED)[0]: x for name, x in shared.items()}
    return {
        f"{layer}.gate": torch.tensor(gate, dtype=x.dtype, device=x.device)
        for layer, x in layers.items()
    }


def _without(some: str, tensors: Tensors) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if some not in name}


def _common(tensors: Tensors) -> dict[str, Tensor]:
    """What both steps move, e.g. the head."""
    return {name: x for name, x in tensors.items() if OWN not in name and SHARED not in name}


def _nested(carry: Carry) -> dict[str, Tensors]:
    return {f"{SECOND}/{group}": some for group, some in carry.items()}


def _parts(carry: Carry) -> tuple[dict[str, Tensors], dict[str, Tensors]]:
    """What the shared adapter's training carries, and the own one's."""
    mark = f"{SECOND}/"
    second = {group[len(mark) :]: x for group, x in carry.items() if group.startswith(mark)}
    first = {group: x for group, x in carry.items() if f"{mark}{group}" in carry}
    return first, second
