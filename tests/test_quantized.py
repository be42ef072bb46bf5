"""A base in four bits: what it computes and takes, what it is trained with, and what is said where
it cannot be."""

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import changes
from exporting import Done, done, loaded_elsewhere
from running import fedpeft
from running import run as run_all
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import linear

from fedpeft import (
    Cohort,
    InProcess,
    PlanError,
    Processes,
    Site,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.compute.frozen_linear import Quantized, QuantizedForward, plain, prepare_frozen
from fedpeft.core.tensors import equal
from fedpeft.evaluation.measure import full_payloads
from fedpeft.export.export import export_run
from fedpeft.oneshot.diagnose import Budget, diagnose
from fedpeft.oneshot.invitation import base_fingerprint
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.environment import environment
from fedpeft.runs.folder import create

needed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: fedpeft[4bit]"
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
SLOW = [
    pytest.param(m, marks=pytest.mark.slow)
    for m in ("rslora", "vera", "ffa", "ia3", "layernorm", "prefix", "dora")
]


def settings(llama: Path, texts: Path, **other: Any) -> dict[str, Any]:
    made = changes(
        llama, texts, **{"method": {"name": "lora", "target": PROJECTIONS}, "rounds": 2, **other}
    )
    return {**made, "task": {**made["task"], "quantize": "nf4"}}


def codes(model: nn.Module) -> dict[str, Tensor]:
    """All that is saved of a model's weights in four bits."""
    held = [name for name, x in model.named_parameters() if not x.is_floating_point()]
    return {
        n: x.clone()
        for n, x in model.state_dict().items()
        if any(n.startswith(one) for one in held)
    }


def resident(model: nn.Module) -> int:
    """Bytes of a model's tensors, with what its codes stand for."""
    states = [x.quant_state for x in model.parameters() if hasattr(x, "quant_state")]
    return sum(
        [
            *(x.nbytes for x in model.parameters()),
            *(int(s.absmax.nbytes + s.code.nbytes) for s in states),
        ]
    )


@pytest.fixture(scope="module")
def site(llama: Path, texts: Path) -> Site:
    return open_site(read_plan(settings(llama, texts)))


@pytest.fixture(scope="module")
def run(llama: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("nf4") / "run", **settings(llama, texts))


def test_without_the_package_one_line_says_what_to_install(llama: Path, texts: Path) -> None:
    if find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(PlanError, match=r"needs bitsandbytes: pip install 'fedpeft\[4bit\]'"):
        open_site(read_plan(settings(llama, texts)))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"method": "scratch"}, "trained whole"),
        ({"aggregator": "flora"}, "FLoRA adds to frozen weights"),
        ({"aggregator": "fedex"}, "FedEx adds to frozen weights"),
    ],
)
def test_what_needs_numbers_for_weights_is_refused(
    other: Mapping[str, Any], words: str, llama: Path, texts: Path
) -> None:
    with pytest.raises(PlanError, match=words):
        open_site(read_plan(settings(llama, texts, **other)))


def test_other_codes_and_other_tasks_are_refused(llama: Path, texts: Path) -> None:
    asked = settings(llama, texts)
    with pytest.raises(PlanError, match=r"no quantize called 'int4'.*nf4"):
        read_plan({**asked, "task": {**asked["task"], "quantize": "int4"}})
    with pytest.raises(PlanError, match="quantize"):
        read_plan({"task": {"name": "text-classification", "quantize": "nf4"}})


def test_a_model_that_is_saved_quantized_is_refused(
    llama: Path, texts: Path, tmp_path: Path
) -> None:
    config = json.loads((llama / "config.json").read_text())
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(PlanError, match="is saved quantized"):
        open_site(read_plan(settings(tmp_path, texts)))


def test_a_plan_without_it_is_the_plan_that_it_was(llama: Path, texts: Path) -> None:
    plan = read_plan(changes(llama, texts))
    assert "quantize" not in plan.toml()
    assert plan.unquantized is plan
    asked = read_plan(settings(llama, texts, method="lora", rounds=plan.rounds))
    assert asked.fingerprint != plan.fingerprint
    assert asked.unquantized == plan


@needed
@pytest.mark.parametrize("method", ["full", {"name": "lora", "head": "model.layers.0.mlp"}])
def test_a_method_that_trains_codes_is_refused(method: Any, llama: Path, texts: Path) -> None:
    with pytest.raises(PlanError, match="cannot train what is quantized"):
        open_site(read_plan(settings(llama, texts, method=method)))


@needed
def test_four_bits_and_a_scale_for_64_weights_are_the_nearest_codes(
    site: Site, llama: Path
) -> None:
    """NF4's sixteen numbers (arXiv:2305.14314, appendix E), times the largest of each 64."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(llama)
    weight = base.model.layers[0].mlp.up_proj.weight.detach()
    held: Any = site.model.get_submodule("model.layers.0.mlp.up_proj").weight
    table = held.quant_state.code
    assert len(table) == 16
    assert table[[0, 7, 8, 15]].tolist() == pytest.approx([-1.0, 0.0, 0.0795803, 1.0])
    scaled = weight.reshape(-1, 64) / (most := weight.reshape(-1, 64).abs().amax(1, keepdim=True))
    nearest = table[(scaled[..., None] - table).abs().argmin(-1)] * most
    torch.testing.assert_close(plain(held), nearest.reshape(weight.shape), rtol=1e-6, atol=0)
    assert (held.nbytes, held.quant_state.absmax.nbytes) == (
        weight.numel() // 2,
        weight.numel() // 64 * 4,
    )
    assert type(site.model.get_submodule("lm_head")) is nn.Linear


@needed
def test_the_product_is_that_of_the_matrix_and_so_are_its_derivatives(site: Site) -> None:
    layer: Any = deepcopy(site.model.get_submodule("model.layers.1.mlp.down_proj"))
    matrix, x = (
        plain(layer.weight),
        torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(0)),
    )
    assert isinstance(layer.forward, QuantizedForward)
    assert torch.equal(layer(x), linear(x, matrix))
    layer.bias = nn.Parameter(torch.ones(layer.out_features), requires_grad=False)
    assert torch.equal(deepcopy(layer)(x), linear(x, matrix) + 1)
    each = vmap(grad(lambda one: layer(one).square().sum()))(x)
    torch.testing.assert_close(
        each, vmap(grad(lambda one: (linear(one, matrix) + 1).square().sum()))(x)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.bias = None
    prepare_frozen(layer, (), "bfloat16")
    half = linear(x.bfloat16(), matrix.bfloat16()).float()
    assert torch.equal(layer(x), half)
    assert torch.equal(Quantized(layer.weight, torch.bfloat16)(x), half)


@needed
@pytest.mark.parametrize("method", ["lora", "adapter", *SLOW])
def test_every_method_that_leaves_the_weights_alone_learns_to_count(
    method: str, llama: Path, texts: Path
) -> None:
    plan = read_plan(settings(llama, texts, method=method))
    site = open_site(plan)
    before, losses = codes(site.model), []
    assert len(before) > 2 * 7
    for state, ledger in federate(plan, InProcess(site), start(plan, site.params())):
        assert ledger.failed == {}
        losses.append(
            evaluate(plan.task, site.model, state.params, site.data.held_out())["loss"].value
        )
    assert losses[1] < losses[0]
    assert equal(codes(site.model), before)


@needed
def test_clients_in_one_stack_learn_the_same(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    begun = start(site.plan, site.params())
    with caplog.at_level(logging.WARNING, "fedpeft"):
        together, _ = next(federate(site.plan, Cohort(site), begun))
    alone, _ = next(federate(site.plan, InProcess(site), begun))
    for name, x in alone.params.items():
        torch.testing.assert_close(together.params[name], x, rtol=1e-3, atol=1e-5)
    assert "one after another" not in caplog.text


@needed
@pytest.mark.slow
def test_worker_processes_learn_the_same_to_the_bit(site: Site) -> None:
    begun = start(site.plan, site.params())
    engine = Processes(site, workers=2)
    try:
        apart, _ = list(federate(site.plan, engine, begun))[-1]
    finally:
        engine.close()
    alone, _ = list(federate(site.plan, InProcess(site), begun))[-1]
    assert equal(apart.params, alone.params)


@needed
def test_a_resume_is_not_noticed(site: Site, tmp_path: Path) -> None:
    whole, stopped = (create(site.plan, tmp_path / name) for name in ("whole", "stopped"))
    run_all(whole, site)
    run_all(stopped, site, rounds=1)
    run_all(stopped, open_site(site.plan))
    ends = [load_checkpoint(folder.checkpoint, site.plan) for folder in (whole, stopped)]
    assert ends[0] is not None and ends[1] is not None
    assert ends[1].state.round == 2
    assert equal(ends[0].state.params, ends[1].state.params)
    assert ends[0].environment["versions"]["bitsandbytes"] == version("bitsandbytes")
    assert "bitsandbytes" not in environment(site.plan.unquantized, "cpu")["versions"]


@needed
def test_the_name_of_a_base_knows_codes_and_scales(site: Site) -> None:
    plan, again = site.plan, site.plan.model(site.classes)
    named = base_fingerprint(plan, again)
    assert named == base_fingerprint(plan, site.model)  # trained with, in the tests before
    assert named != base_fingerprint(plan.unquantized)
    weight: Any = again.get_submodule("model.layers.0.mlp.up_proj").weight
    weight.quant_state.absmax *= 2
    scaled = base_fingerprint(plan, again)
    weight.quant_state.absmax /= 2
    weight.data ^= 1
    assert len({named, scaled, base_fingerprint(plan, again)}) == 3


@needed
def test_full_fine_tuning_and_merged_weights_are_those_of_the_base_as_saved(site: Site) -> None:
    assert full_payloads(site.plan, ()) == full_payloads(site.plan.unquantized, ())
    found = diagnose(site, Budget(rounds=2))
    assert 0 < found["update"]["one"]["whole"] < 1


@needed
@pytest.mark.slow
def test_an_adapter_is_loaded_elsewhere_on_the_base_as_it_is_saved(
    run: Done, tmp_path: Path
) -> None:
    for name, merge in (("adapter", False), ("merged", True)):
        export_run(run.folder.path, tmp_path / name, merge)
    loaded_elsewhere({tmp_path / name: run for name in ("adapter", "merged")}, tmp_path / "cache")
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("adapter", "merged")}
    logits = {name: load_file(tmp_path / f"{name}.out")["logits"] for name in cards}
    for name, card in cards.items():
        assert "| in training | the base's linear layers in four bits, `nf4` |" in card
        assert 'quantize = "nf4"' in card
        assert ('bnb_4bit_quant_type="nf4"' in card) == (name == "adapter")
        assert 1e-4 < float((logits[name] - run.logits).abs().max() / run.logits.abs().max()) < 0.3
    torch.testing.assert_close(logits["merged"], logits["adapter"], rtol=0, atol=1e-5)


@needed
def test_the_commands_run_and_evaluate(llama: Path, texts: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(read_plan(settings(llama, texts)).toml())
    ended = fedpeft("run", plan, "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    told = fedpeft("evaluate", tmp_path / "run", "--sample", 2, "--json")
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["samples"]) == 2
    refused = fedpeft("run", plan, "--set", "method=full", "--out", tmp_path / "other")
    assert refused.exit_code == 2
    assert "cannot train what is quantized" in refused.output.replace("\n", " ")


@needed
@pytest.mark.slow
def test_a_pretrained_llama_learns_instructions_in_a_quarter_of_the_bytes(real_data: Path) -> None:
    root = Path(__file__).parents[1]
    small = ["data.subset=300", "rounds=1", "local.lr=0.01", f"model={real_data / 'stories260k'}"]
    plan = read_plan(root / "plans" / "dolly-stories260k.toml", [*small, "task.quantize=nf4"])
    site = open_site(plan)
    plain_bytes, bytes_ = (resident(one.task.build(())) for one in (plan.unquantized, plan))
    # 35 layers of 226,560 weights in all: half a byte each, 4 for every 64, and the 16 numbers that
    # codes stand for
    assert (plain_bytes, bytes_) == (
        4 * 260_032,
        4 * (260_032 - 226_560) + 226_560 // 2 + 226_560 // 16 + 35 * 64,
    )
    begun = start(plan, site.params())
    (state, ledger) = next(federate(plan, InProcess(site), begun))
    losses = [
        evaluate(plan.task, site.model, s.params, site.data.held_out())["loss"].value
        for s in (begun, state)
    ]
    assert ledger.failed == {}
    assert losses[1] < losses[0] - 0.2
