from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from marks import slow_but
from rounds import last, plan_of, run
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import linear

from fedpeft.compute import frozen_linear
from fedpeft.compute.frozen_linear import LEAST_WEIGHT, Forward, can_pack, prepare_frozen
from fedpeft.core.tensors import equal
from fedpeft.errors import PlanError
from fedpeft.rounds.site import open_site
from fedpeft.runs.environment import environment

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}
PREPARED = [("float32", True), ("bfloat16", True), ("bfloat16", False)]
WAYS = pytest.mark.parametrize(("dtype", "pack"), PREPARED)
kernels_only = pytest.mark.skipif(
    not can_pack("float32"), reason="this PyTorch has no kernels with laid out weights"
)


def layer(
    trained: tuple[str, ...] = (), dtype: str = "float32", pack: bool = True
) -> tuple[nn.Linear, nn.Linear]:
    """A frozen linear layer as it is, and the same prepared."""
    plain = nn.Linear(256, 192)
    with torch.no_grad():
        draws = torch.Generator().manual_seed(0)
        plain.weight.copy_(torch.randn(192, 256, generator=draws) / 16)
        plain.bias.copy_(torch.randn(192, generator=draws))
    plain.requires_grad_(False)
    prepared = deepcopy(plain)
    prepare_frozen(prepared, trained, dtype, pack)
    assert isinstance(prepared.forward, Forward)
    return plain, prepared


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, 256, generator=torch.Generator().manual_seed(1))


@WAYS
@pytest.mark.parametrize("shape", [(), (3,), (8, 50)])
def test_the_product_and_its_derivative_are_those_of_the_weight(
    dtype: str, pack: bool, shape: tuple[int, ...]
) -> None:
    plain, prepared = layer((), dtype, pack)
    x = rows(*shape).requires_grad_()
    before = x.detach().clone()
    y = prepared(x)
    g = torch.ones_like(y) / 16
    assert y.dtype == torch.float32
    assert torch.allclose(y, plain(x), rtol=0, atol=TOLERANCE[dtype])
    [got], [expected] = (torch.autograd.grad(out, x, g) for out in (y, plain(x)))
    assert torch.allclose(got, expected, rtol=0, atol=TOLERANCE[dtype])
    assert torch.equal(x, before)


@WAYS
def test_clients_and_single_examples_at_once_are_rows_like_others(dtype: str, pack: bool) -> None:
    plain, prepared = layer((), dtype, pack)
    x = rows(4, 50)

    def each(module: nn.Linear) -> Tensor:
        out: Tensor = vmap(grad(lambda one: module(one).square().mean()))(x)
        return out

    def close(got: Tensor, expected: Tensor) -> bool:
        return torch.allclose(got, expected, rtol=0, atol=TOLERANCE[dtype])

    assert close(each(prepared), each(plain))
    assert close(vmap(prepared, in_dims=1, out_dims=1)(x), plain(x))
    twice = vmap(grad(lambda one: grad(lambda z: prepared(z).square().mean())(one).square().sum()))(
        x
    )
    expected = vmap(grad(lambda one: grad(lambda z: plain(z).square().mean())(one).square().sum()))(
        x
    )
    assert close(twice, expected)


def test_a_trained_bias_gets_its_gradient_for_each_client_its_own() -> None:
    plain, prepared = layer(("bias",))
    x, biases = rows(3, 8, 20), torch.randn(3, 192, generator=torch.Generator().manual_seed(2))

    def loss(module: nn.Linear, bias: Tensor, one: Tensor) -> Tensor:
        out: Tensor = functional_call(module, {"bias": bias}, (one,)).square().mean()
        return out

    got, expected = (
        vmap(grad(lambda b, x, m=m: loss(m, b, x)))(biases, x) for m in (prepared, plain)
    )
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert float(expected.abs().max()) > 1e-4


def test_a_weight_swapped_in_or_written_to_is_the_one_that_counts() -> None:
    _, prepared = layer()
    x = rows(8, 50)
    prepared(x)
    other = torch.ones(192, 256)
    swapped = functional_call(prepared, {"weight": other}, (x,))
    assert torch.equal(swapped, linear(x, other, prepared.bias))
    functional_call(prepared, {"bias": prepared.bias + 1}, (x,))
    with torch.no_grad():
        prepared.weight.fill_(0.5)
    assert torch.allclose(
        prepared(x), linear(x, prepared.weight, prepared.bias), rtol=1e-5, atol=1e-4
    )
    copy = deepcopy(prepared)
    with torch.no_grad():
        copy.bias.zero_()
    assert torch.allclose(copy(x), linear(x, prepared.weight), rtol=1e-5, atol=1e-4)
    assert float(prepared(x).sub(copy(x)).abs().min()) > 0


def test_what_is_trained_tied_to_it_or_small_stays_as_it_was() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(192, 192), nn.Linear(192, 192)
            self.other.weight = self.one.weight
            self.frozen, self.small = nn.Linear(192, 192), nn.Linear(LEAST_WEIGHT // 64 - 1, 64)

    model = Tied().requires_grad_(False)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    prepare_frozen(model, {"one.weight"}, "bfloat16")
    prepared = [
        name for name, module in model.named_modules() if isinstance(module.forward, Forward)
    ]
    assert prepared == ["frozen"]
    model.frozen(torch.ones(50, 192))
    assert equal(model.state_dict(), before)
    assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == list(before)


def test_autocast_and_other_types_take_the_plain_product() -> None:
    plain, prepared = layer((), "float32")
    x = rows(8, 50)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(x), plain(x))
    assert isinstance(prepared.forward, Forward) and prepared.forward._packed is None
    half = x.half()
    with pytest.raises(RuntimeError, match="dtype"):
        prepared(half)


@pytest.mark.parametrize("trained", [(), ("bias",)])
def test_autocast_to_the_type_of_the_base_does_not_cast_the_weight_anew(
    trained: tuple[str, ...],
) -> None:
    plain, prepared = layer(trained, "bfloat16")
    for x in (rows(8, 50), rows(8, 50).bfloat16()):
        given = [x.detach().clone().requires_grad_() for _ in range(2)]
        with torch.autocast("cpu", torch.bfloat16):
            want, got = plain(given[0]), prepared(given[1])
        assert got.dtype == want.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), want.float(), rtol=2e-2, atol=2e-2)
        for y in (want, got):
            y.float().sum().backward()
        assert given[0].grad is not None and given[1].grad is not None
        torch.testing.assert_close(
            given[1].grad.float(), given[0].grad.float(), rtol=2e-2, atol=2e-2
        )
    assert isinstance(prepared.forward, Forward) and prepared.forward._packed is not None


@kernels_only
def test_only_bfloat16_needs_anything_where_nothing_is_packed() -> None:
    layers = [nn.Linear(256, 192).requires_grad_(False) for _ in range(2)]
    assert not prepare_frozen(layers[0], (), "float32", pack=False)
    assert not isinstance(layers[0].forward, Forward)
    assert not prepare_frozen(layers[1].to("meta"), ())
    assert not isinstance(layers[1].forward, Forward)


@pytest.mark.parametrize("method", slow_but(["lora"], ["lora", "bias", "adapter"]))
def test_a_round_with_prepared_weights_is_the_plain_round_but_for_rounding(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(frozen_linear, "is_intel", lambda: False)
    plan = plan_of(method=method, rounds=1)
    every = [("float32", False), *PREPARED]
    sites = {
        (dtype, pack): open_site(
            replace(plan, compute=replace(plan.compute, base_dtype=dtype, pack=pack))
        )
        for dtype, pack in every
    }
    ends = {way: last(run(site, site.plan)) for way, site in sites.items()}
    plain = ends["float32", False]
    moved = {n: x - sites["float32", False].params()[n] for n, x in plain.items()}
    length = torch.stack([d.norm() for d in moved.values()]).norm()
    for way, end in ends.items():
        apart = torch.stack([(end[n] - x).norm() for n, x in plain.items()]).norm() / length
        assert apart <= {"float32": 1e-3, "bfloat16": 0.1}[way[0]], way
        assert float(apart) > 0 or way == ("float32", False) or not can_pack("float32")
    assert (
        environment(plan, "cpu")["base"]
        == f"float32, {'packed' if can_pack('float32') else 'plain'}"
    )


def test_weights_are_laid_out_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With units of 256 bits a laid-out product is as slow as a plain one, and takes a copy."""
    plan = plan_of(method="lora", rounds=1)
    narrow = replace(plan, compute=replace(plan.compute, base_dtype="bfloat16"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert environment(plan, "cpu")["base"] == "float32, plain"
    assert not any(isinstance(x.forward, Forward) for x in open_site(plan).model.modules())
    assert not caplog.records
    open_site(narrow)
    assert "has no instructions for it" in caplog.text and 'for speed set "float32"' in caplog.text
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(frozen_linear, "is_intel", lambda: True)
    assert environment(plan, "cpu")["base"] == "float32, plain"
    assert environment(narrow, "cpu")["base"] == "bfloat16, packed"
    monkeypatch.setattr(frozen_linear, "is_intel", lambda: False)
    assert environment(plan, "cpu")["base"] == "float32, packed"
    assert any(isinstance(x.forward, Forward) for x in open_site(plan).model.modules())


def test_a_plan_names_a_precision_that_there_is() -> None:
    with pytest.raises(PlanError, match="bfloat16"):
        plan_of(base_dtype="bf16")
