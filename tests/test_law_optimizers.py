"""Laws of every registered client optimizer: above all, that it is torch's."""

from collections.abc import Callable

import pytest
import torch

from fedpeft.core.interfaces import Optimizer
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Tensors
from fedpeft.registry import build, names

every = pytest.mark.parametrize("name", sorted(names("optimizer")))

PARAMS = {
    "a": torch.tensor([0.5, -1.0, 2.0]),
    "b.weight": torch.linspace(-1, 1, 6).view(2, 3),
    "s": torch.tensor(0.3),
}
Torch = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class Published(torch.optim.Optimizer):
    """ADOPT as its authors' Algorithm 1 and code have it, written anew: in place, leaf by leaf."""

    def __init__(
        self,
        leaves: list[torch.Tensor],
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        decay: float = 0.0,
        cut: bool = True,
    ) -> None:
        super().__init__(leaves, {"lr": 0.1})
        self.betas, self.eps, self.decay, self.cut, self.count = betas, eps, decay, cut, 0

    def step(self) -> None:  # type: ignore[override]
        for leaf in self.param_groups[0]["params"]:
            kept, g, lr = self.state[leaf], leaf.grad, self.param_groups[0]["lr"]
            if not self.count:
                kept["m"], kept["v"] = torch.zeros_like(leaf), g * g
                continue
            scaled = g / torch.maximum(kept["v"].sqrt(), torch.tensor(self.eps))
            if self.cut:
                scaled.clamp_(-(self.count**0.25), self.count**0.25)
            kept["m"] = self.betas[0] * kept["m"] + (1 - self.betas[0]) * scaled
            with torch.no_grad():
                leaf.mul_(1 - lr * self.decay).sub_(lr * kept["m"])
            kept["v"] = self.betas[1] * kept["v"] + (1 - self.betas[1]) * g * g
        self.count += 1


TWINS: dict[str, list[tuple[dict[str, object], Torch]]] = {
    "sgd": [
        ({}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
        ({"momentum": 0.0, "nesterov": False}, lambda p: torch.optim.SGD(p, 0.1)),
        ({"momentum": 0.5, "nesterov": False}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.5)),
        (
            {"weight_decay": 0.05},
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.05, nesterov=True),
        ),
        (
            {"momentum": 0.0, "nesterov": False, "weight_decay": 0.05},
            lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.05),
        ),
    ],
    "adopt": [
        ({}, Published),
        ({"clip": float("inf")}, lambda p: Published(p, cut=False)),
        (
            {"beta1": 0.5, "beta2": 0.9, "eps": 0.3, "weight_decay": 0.2},
            lambda p: Published(p, (0.5, 0.9), 0.3, 0.2),
        ),
    ],
    "adamw": [
        ({}, lambda p: torch.optim.AdamW(p, 0.1)),
        (
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.2},
            lambda p: torch.optim.AdamW(p, 0.1, (0.5, 0.9), 1e-3, 0.2),
        ),
        ({"weight_decay": 0.0}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.0)),
    ],
}


def gradient(seed: int, params: Tensors) -> Tensors:
    draws = torch.Generator().manual_seed(seed)
    return {n: torch.randn(x.shape, generator=draws) for n, x in params.items()}


def test_each_names_its_twin_in_torch() -> None:
    assert TWINS.keys() == names("optimizer").keys()


@pytest.mark.parametrize(
    ("name", "settings", "twin"), [(name, *case) for name, cases in TWINS.items() for case in cases]
)
def test_it_is_torchs(name: str, settings: dict[str, object], twin: Torch) -> None:
    optimizer: Optimizer = build("optimizer", {"name": name, **settings})
    params: Tensors = PARAMS
    memory = optimizer.init(params)
    leaves = {n: x.clone().requires_grad_() for n, x in PARAMS.items()}
    theirs = twin(list(leaves.values()))
    for step in range(8):
        rate = 0.1 / (1 + step)
        g = gradient(step, params)
        params, memory = optimizer.step(params, memory, g, torch.tensor(rate))
        for n, leaf in leaves.items():
            leaf.grad = g[n].clone()
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        for n, x in params.items():
            torch.testing.assert_close(x, leaves[n].detach(), rtol=1e-6, atol=1e-6)


@every
def test_arguments_are_not_touched_and_names_shapes_and_types_stay(name: str) -> None:
    optimizer: Optimizer = build("optimizer", name)
    params: Tensors = PARAMS
    memory = optimizer.init(params)
    for seed in range(3):
        g, lr = gradient(seed, params), torch.tensor(0.1)
        olds = [{n: x.clone() for n, x in group.items()} for group in (params, memory, g)]
        moved, kept = optimizer.step(params, memory, g, lr)
        assert (
            all(equal(x, old) for x, old in zip((params, memory, g), olds, strict=True))
            and lr == 0.1
        )
        assert layout(moved) == layout(params) and sorted(layout(kept)) == sorted(layout(memory))
        params, memory = moved, kept


@every
def test_the_first_step_goes_against_the_gradient(name: str) -> None:
    optimizer: Optimizer = build("optimizer", name)
    origin = {n: torch.zeros_like(x) for n, x in PARAMS.items()}  # where weight decay does nothing
    g, memory = gradient(1, origin), optimizer.init(origin)
    if name == "adopt":  # whose very first step only measures
        measured, memory = optimizer.step(origin, memory, g, torch.tensor(0.1))
        assert equal(measured, origin)
    moved, _ = optimizer.step(origin, memory, g, torch.tensor(0.1))
    assert all(torch.equal(x.sign(), -g[n].sign()) for n, x in moved.items())


@every
def test_a_rate_of_zero_moves_nothing(name: str) -> None:
    optimizer: Optimizer = build("optimizer", name)
    moved, _ = optimizer.step(
        PARAMS, optimizer.init(PARAMS), gradient(1, PARAMS), torch.tensor(0.0)
    )
    assert equal(moved, PARAMS)


@every
def test_buffers_have_a_memory_and_no_gradient(name: str) -> None:
    """A client's tensors include BatchNorm's statistics; only those with a gradient are stepped."""
    optimizer: Optimizer = build("optimizer", name)
    memory = optimizer.init(PARAMS)
    trained = {"a": PARAMS["a"]}
    for seed in range(2):
        trained_now, memory = optimizer.step(
            trained, memory, gradient(seed, trained), torch.tensor(0.1)
        )
        assert trained_now.keys() == {"a"}


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("sgd", {"momentum": 0.0}, "nesterov = true needs a momentum"),
        ("sgd", {"momentum": 1.0}, "momentum must be"),
        ("sgd", {"momentum": -0.1}, "momentum must be"),
        ("sgd", {"weight_decay": -1.0}, "weight_decay must be"),
        ("adopt", {"beta2": 1.0}, "beta2 must be"),
        ("adopt", {"eps": 0.0}, "eps must be"),
        ("adopt", {"clip": -0.1}, "clip must be"),
        ("adopt", {"weight_decay": -1.0}, "weight_decay must be"),
        ("adamw", {"beta1": 1.0}, "beta1 must be"),
        ("adamw", {"beta2": -0.1}, "beta2 must be"),
        ("adamw", {"eps": 0.0}, "eps must be"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay must be"),
    ],
)
def test_values_out_of_range(name: str, settings: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        type(build("optimizer", name))(**settings)
