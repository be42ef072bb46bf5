"""Which inputs did a client train on? Gradient inversion (Zhu et al., 2019, arXiv:1906.08935;
Geiping et al., 2020, arXiv:2003.14053).

Labels come from the head's bias, whose update is η·Σ(1[y = k] − p_k) to first order (iDLG: Zhao et
al., 2020, arXiv:2001.02610; for batches Wainakh et al., 2022, arXiv:2105.09369). Inputs x̂ are then
sought for which

    Σ over messages  1 − cos(−∇ℓ(x̂, ŷ; w), Δ)  +  λ·TV(x̂)

is least, by Adam. Where a linear layer with a bias is trained on the input itself, no search is
needed: plain descent changes them by Σ over steps of −η·g·xᵀ and −η·g, whose ratio is x where there
is one example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import avg_pool2d

from fedpeft.audits.messages import Message
from fedpeft.compute.objective import Objective
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError

TV = 1e-3
"""λ, as a share of the cosine's weight; for pictures."""
RATE = 0.05
WINDOW = 7


def input_of(rows: Tensors) -> str:
    """The name of what is sought: the one column of rows that holds more than a number of each
    example.

    Raises:
      PlanError: there is not one, or it holds tokens.
    """
    found = [
        name
        for name, x in rows.items()
        if x.ndim > 1 and (x.is_floating_point() or x.dtype == torch.uint8)
    ]
    if len(found) != 1:
        raise PlanError(
            f"inversion looks for pictures or points; an example here has {', '.join(rows)}"
        )
    return found[0]


def labels_of(delta: Tensors, bias: str, examples: int) -> Tensor:
    """The labels (examples,) that the update of the head's bias tells: the class it raises most,
    again and again."""
    left = delta[bias].double()
    share = left.clamp_min(0).sum() / examples
    found = []
    for _ in range(examples):
        best = int(left.argmax())
        found.append(best)
        left = left - share * torch.nn.functional.one_hot(torch.tensor(best), len(left))
    return torch.tensor(sorted(found))


def solved(message: Message, x: Tensor, batch: Batch) -> Tensor | None:
    """The inputs (k, ...) that the rows of a linear layer on them give, the surest first; None
    without one.

    Args:
      x: any inputs (n, ...), and what the model is given for them.
    """
    for name in _first_layers(message, x, batch):
        weight, bias = (message.delta.get(f"{name}.{part}") for part in ("weight", "bias"))
        if weight is not None and bias is not None:
            order = bias.abs().argsort(descending=True)
            order = order[bias[order].abs() > 1e-3 * bias.abs().max()]
            return (
                (weight[order].double() / bias[order].double()[:, None])
                .to(x.dtype)
                .view(-1, *x.shape[1:])
            )
    return None


def _first_layers(message: Message, x: Tensor, batch: Batch) -> list[str]:
    """The linear layers whose input is x as it is."""
    x = x.flatten(1).to(batch["mask"].device)
    found: list[str] = []

    def watching(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs[0].shape == x.shape and torch.equal(inputs[0], x):
                found.append(name)

        return hook

    linear = [
        (name, one)
        for name, one in message.objective.model.named_modules()
        if isinstance(one, nn.Linear)
    ]
    handles = [one.register_forward_pre_hook(watching(name)) for name, one in linear]
    try:
        with torch.no_grad():
            message.objective(
                {name: one.to(x.device) for name, one in message.received.items()}, batch
            )
    finally:
        for handle in handles:
            handle.remove()
    return found


def sought(
    messages: Sequence[Message],
    begin: Tensor,
    batch: Callable[[Tensor], Batch],
    span: tuple[float, float],
    steps: int,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """The inputs that explain the messages best.

    Args:
      begin: the inputs (n, ...) that the search begins with.
      batch: what the model is given for inputs.
      span: the least and the greatest value that an input has.
    """
    (low, high), device = span, batch(begin)["mask"].device
    x = ((begin - low) / (high - low)).clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    heard = [(m.objective, _to(device, m.received), _to(device, m.delta)) for m in messages]
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        for _ in range(steps):
            given = batch(low + x * (high - low))
            far = torch.stack(
                [_unlike(loss, params, delta, given) for loss, params, delta in heard]
            ).sum()
            rough = TV * _variation(x) if x.ndim == 4 else torch.zeros(())
            (x.grad,) = torch.autograd.grad(far.cpu() + rough, [x])
            optimizer.step()
            rate.step()
            with torch.no_grad():
                x.clamp_(0, 1)
            tick()
    return low + x.detach() * (high - low)


def _to(device: torch.device, tensors: Tensors) -> Tensors:
    return {name: x.to(device) for name, x in tensors.items()}


def _unlike(objective: Objective, received: Tensors, delta: Tensors, batch: Batch) -> Tensor:
    """1 − cos(−gradient, update)."""
    leaves = {n: x.detach().requires_grad_() for n, x in received.items()}
    found = torch.autograd.grad(
        objective(leaves, batch).mean(), list(leaves.values()), create_graph=True, allow_unused=True
    )
    pairs = [(g, delta[n]) for n, g in zip(leaves, found, strict=True) if g is not None]
    dot = torch.stack([-(g * d).sum() for g, d in pairs]).sum()
    lengths = [torch.stack([side[i].square().sum() for side in pairs]).sum() for i in (0, 1)]
    return 1 - dot / (lengths[0] * lengths[1]).clamp_min(1e-30).sqrt()


def _variation(x: Tensor) -> Tensor:
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def psnr(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio in dB of pairs (n, ...), at most 100; `span` is the range of the
    values."""
    error = (a - b).flatten(1).square().mean(1).double()
    return (10 * torch.log10(span**2 / error.clamp_min(span**2 * 1e-10))).cpu()


def ssim(a: Tensor, b: Tensor, span: float) -> Tensor:
    """Structural similarity of pairs of pictures (n, c, h, w), mean over windows of 7 × 7 (Wang et
    al., 2004)."""
    side = min(WINDOW, *a.shape[-2:])

    def mean(x: Tensor) -> Tensor:
        return avg_pool2d(x.double(), side, 1)

    ma, mb = mean(a), mean(b)
    va, vb, both = (
        mean(a.double() ** 2) - ma**2,
        mean(b.double() ** 2) - mb**2,
        mean(a.double() * b) - ma * mb,
    )
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = (2 * ma * mb + one) * (2 * both + two) / ((ma**2 + mb**2 + one) * (va + vb + two))
    return found.flatten(1).mean(1).cpu()


def nearest(targets: Tensor, found: Tensor) -> Tensor:
    """For each target (n, ...) the place of the nearest of `found` (k, ...)."""
    apart = torch.cdist(targets.flatten(1), found.flatten(1))
    return apart.argmin(1)
