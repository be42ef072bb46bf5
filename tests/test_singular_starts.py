"""Methods that begin with the singular vectors of frozen weights: LoRA-XS, and LoRA's PiSSA."""

from typing import Any

import pytest
import torch
from method_models import batch_of, injected, logits_of, model_of
from rounds import points_plan
from torch import nn

from fedpeft.compute.trainable import read, tensors_of, write
from fedpeft.errors import PlanError
from fedpeft.methods.lora import LoRA
from fedpeft.methods.lora_xs import LoRAXS
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.methods.singular import largest_directions
from fedpeft.registry import build, describe


def layer(weight: list[list[float]]) -> nn.Module:
    """A model of one linear layer without bias."""
    model = nn.Module()
    model.one = nn.Linear(len(weight[0]), len(weight), bias=False)
    model.one.weight.data = torch.tensor(weight, dtype=torch.float32)
    return model.requires_grad_(False)


def test_directions_by_hand() -> None:
    """W = diag(3, −2): the largest entry of a row of Vᵀ is positive, so that U takes the sign."""
    u, s, vt = largest_directions(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), 2, "one")
    torch.testing.assert_close(s, torch.tensor([3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(vt, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(u, torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_the_signs_do_not_depend_on_who_decomposes() -> None:
    draws = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 9, generator=draws)
    u, s, vt = largest_directions(weight, 4, "one")
    other, _, _ = largest_directions(weight.T.contiguous(), 4, "one")  # U and V change places
    torch.testing.assert_close(other.T * (other.T * vt).sum(1, keepdim=True).sign(), vt)
    assert bool((vt.gather(1, vt.abs().argmax(1, keepdim=True)) > 0).all())
    best = (weight.double() - u * s @ vt).norm() ** 2
    rest = torch.linalg.svdvals(weight.double())[4:]
    assert float(best) == pytest.approx(float((rest**2).sum()))


@pytest.mark.parametrize("method", [{"name": "lora_xs"}, {"name": "lora", "start": "pissa"}])
def test_more_directions_than_a_layer_has(method: dict[str, Any]) -> None:
    made = build("method", {**method, "rank": 33, "head": "", "target": ["q_proj"]})
    with pytest.raises(PlanError, match=r"q_proj' of shape \[32, 32\] has 32 singular values: set"):
        made.inject(model_of("vit"))


def test_an_inner_matrix_by_hand() -> None:
    """W = diag(3, 2), r = 1, α = 1: A = (3, 0), B = (1, 0)ᵀ, and R = ½ adds 1.5 to the first."""
    model: Any = LoRAXS(rank=1, alpha=1.0, target=("one",), head="").inject(layer([[3, 0], [0, 2]]))
    x = torch.tensor([[1.0, 1.0]])
    assert model.one(x).tolist() == [[3.0, 2.0]]
    write(model, {"one.core": torch.tensor([[0.5]])})
    assert model.one(x).tolist() == [[4.5, 2.0]]


def test_of_no_inner_matrix_the_base_is_left_to_the_bit() -> None:
    batch = batch_of("vit")
    base = logits_of(model_of("vit"), batch)
    model, names = injected({"name": "lora_xs", "head": ""}, "vit")
    assert torch.equal(logits_of(model, batch), base)
    assert {tuple(x.shape) for x in read(model, names).values()} == {(16, 16)}


def test_the_mean_of_inner_matrices_is_the_mean_of_products() -> None:
    model, names = injected({"name": "lora_xs", "rank": 4, "head": ""}, "vit")
    draws, every = torch.Generator().manual_seed(3), tensors_of(model)
    name = names[0]
    down, up = (every[name.replace(".core", end)] for end in (".down", ".up"))
    cores = [torch.randn(4, 4, generator=draws) for _ in range(3)]
    mean = sum(up @ core @ down for core in cores) / 3
    torch.testing.assert_close(up @ (sum(cores) / 3) @ down, mean)
    assert torch.linalg.matrix_rank(mean) == 4


def test_layers_that_are_not_linear_are_refused() -> None:
    with pytest.raises(PlanError, match="is a LayerNorm, and lora_xs takes linear layers"):
        injected({"name": "lora_xs", "target": ["layernorm_before"]}, "vit")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "lora_xs"}, "R of lora_xs has one size"),
        ({"name": "lora", "start": "pissa"}, "a client of a lower rank would lack a part"),
    ],
)
def test_ranks_do_not_go_with_what_is_taken_from_the_base(
    method: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(method=method, ranks=[2, 4], aggregator="fedit")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "lora_xs"}, "lora_xs reads the singular vectors"),
        ({"name": "lora", "start": "pissa"}, "takes its factors out of frozen weights"),
    ],
)
def test_codes_have_no_singular_vectors(method: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(method=method, task={"name": "causal-lm", "model": "x", "quantize": "nf4"})


def test_all_directions_leave_nothing_frozen() -> None:
    method = LoRA(rank=2, alpha=4.0, target=("one",), head="", start="pissa")
    model: Any = method.inject(layer([[3, 0], [0, 2]]))
    assert model.one.base_layer.weight.abs().max() < 1e-6
    # S' = S·r/α = (1.5, 1), of whose roots A and B are made
    wanted = torch.diag(torch.tensor([1.5**0.5, 1.0]))
    torch.testing.assert_close(model.one.lora_A.default.weight.data, wanted)
    torch.testing.assert_close(model.one.lora_B.default.weight.data, wanted)


def test_the_start_is_peft_s_up_to_signs() -> None:
    import peft

    ours, names = injected({"name": "lora", "rank": 3, "alpha": 6.0, "start": "pissa"}, "vit")
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa"
    )
    with known_warnings_ignored():
        theirs = dict(peft.get_peft_model(model_of("vit"), config).named_parameters())
    for name, x in tensors_of(ours).items():
        if ".lora_" in name or "base_layer.weight" in name:
            other = theirs[f"base_model.model.{name}"]
            by = (x * other).sum(1 if "lora_A" in name else 0, keepdim=True).sign()
            torch.testing.assert_close(x, other * (by if name in names else 1), atol=1e-5, rtol=0)


def test_orthogonal_factors_are_not_zero_and_their_product_is() -> None:
    model, names = injected({"name": "lora", "start": "orthogonal", "head": ""}, "vit")
    tensors = read(model, names)
    for a in (n for n in names if "lora_A" in n):
        b = tensors[a.replace("lora_A", "lora_B")]
        assert b.abs().max() > 0.01 and (b @ tensors[a]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": "svd"}, "start must be one of zero, pissa, orthogonal"),
        ({"start": "orthogonal", "rank": 3}, "needs an even rank"),
        ({"start": "pissa", "init": "somewhere"}, "are two ways to begin"),
    ],
)
def test_starts_that_are_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        build("method", {"name": "lora", **changes})


def test_a_plan_without_a_start_is_written_as_before() -> None:
    """So that a plan of LoRA keeps its name."""
    assert "start" not in describe("method", LoRA())
    assert describe("method", LoRA(start="pissa"))["start"] == "pissa"
