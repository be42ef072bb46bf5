"""Terms of the loss, with numbers computed by hand."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from fedpeft.errors import PlanError
from fedpeft.terms.distillation import Distillation
from fedpeft.terms.moon import Moon
from fedpeft.terms.not_true import NotTrueDistillation

LN = {k: log(k) for k in (2, 3, 4)}


def tensor(*values: float) -> Tensor:
    return torch.tensor([values])


def test_distillation_by_hand() -> None:
    """The received model says 3/4 and 1/4, the other one half and half: KL = 3/4 ln(3/2) + 1/4
    ln(1/2); at T = 2 the first says √3 : 1."""
    outputs, held = {"logits": tensor(0, 0)}, {"received/logits": tensor(LN[3], 0)}
    wanted = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert Distillation().loss(outputs, {}, held).item() == pytest.approx(wanted)
    q = 3**0.5 / (1 + 3**0.5)
    warm = 4 * (q * log(2 * q) + (1 - q) * log(2 * (1 - q)))
    assert Distillation(temperature=2.0).loss(outputs, {}, held).item() == pytest.approx(warm)
    assert Distillation().loss({"logits": tensor(LN[3], 0)}, {}, held).item() == pytest.approx(0)


def test_distillation_of_a_language_model_is_a_mean_over_counted_tokens() -> None:
    """Of three tokens the first two count, with a KL of 0 and of 3/4 ln(3/2) + 1/4 ln(1/2)."""
    outputs = {
        "logits": torch.zeros(2, 3, 2),
        "counted": torch.tensor([[True, True, False], [False] * 3]),
    }
    far = tensor(LN[3], 0)[None].expand(2, 3, 2).clone()
    far[0, 0] = 0
    one = 0.75 * log(1.5) + 0.25 * log(0.5)
    found = Distillation().loss(outputs, {}, {"received/logits": far})
    assert found.tolist() == pytest.approx([one / 2, 0.0])


def test_not_true_distillation_by_hand() -> None:
    """Without the true class 0, q is 2/3 and 1/3 and p is half and half, whatever is thought of the
    true one."""
    term, batch = NotTrueDistillation(), {"label": torch.tensor([0])}
    wanted = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    for mine, theirs in ((0.0, 0.0), (9.0, -3.0)):
        logits = tensor(mine, 0, 0).requires_grad_()
        held = {"received/logits": tensor(theirs, LN[2], 0)}
        loss = term.loss({"logits": logits}, batch, held)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == pytest.approx(wanted)
        assert gradient[0].tolist() == pytest.approx([0, 1 / 2 - 2 / 3, 1 / 2 - 1 / 3])
    with pytest.raises(PlanError, match='for texts take "distillation"'):
        term.loss({"logits": torch.zeros(1, 2, 3)}, {}, held)


def test_moon_by_hand() -> None:
    """z is like the received features, and at a right angle to the previous ones."""
    outputs = {"features": tensor(2, 0)}
    held = {"received/features": tensor(3, 0), "previous/features": tensor(0, 5)}
    assert Moon().loss(outputs, {}, held).item() == pytest.approx(log(1 + exp(-2)))
    swapped = dict(zip(held, reversed(held.values()), strict=True))
    assert Moon().loss(outputs, {}, swapped).item() == pytest.approx(log(1 + exp(2)))
    assert Moon().loss(outputs, {}, dict.fromkeys(held, tensor(1, 1))).item() == pytest.approx(
        LN[2]
    )
    with pytest.raises(PlanError, match="one row of features an example, got 2 dimensions"):
        Moon().loss({"features": torch.zeros(1, 2, 2)}, {}, held)
