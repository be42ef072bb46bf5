"""What was tried for medical vision transformers (arXiv:2407.11573): one block's attention a round,
and prompts of low rank."""

from typing import Any

import pytest
import torch
from method_models import batch_of, injected, logits_of
from rounds import Recording, last, on, points_plan, run
from test_cohort import read
from torch import Tensor, nn

from fedpeft import PlanError, open_site
from fedpeft.compute.trainable import read as values_of
from fedpeft.compute.trainable import write
from fedpeft.core.tensors import equal
from fedpeft.methods.prompt import Appended, AppendedProduct, Prompt
from fedpeft.rounds.loop import federate, start

BLOCKS = "*.layers.{}.attention.*"
VIT: dict[str, Any] = {
    "task": {"name": "test_cohort_methods:Tiny", "kind": "vit"},
    "data": {"name": "parts:Blobs", "features": 64, "examples": 120},
    "partition": {"name": "iid", "clients": 3},
    "method": {"name": "named", "trains": ["*.attention.*"]},
    "local": {"lr": 0.05, "batch_size": 8},
    "rounds": 3,
    "cohort": 2,
}
DRAWN: dict[str, Any] = {"name": "drawn", "pattern": BLOCKS, "groups": 3}


def test_names_are_those_that_match_and_the_heads() -> None:
    _, names = injected({"name": "named", "trains": ["*.1.attention.*", "*norm*.bias"]}, "vit")
    assert {name.partition(".")[0] for name in names} == {"vit", "classifier"}
    inside = [name for name in names if ".attention." in name]
    assert inside and all(".layers.1.attention." in name for name in inside)
    rest = {name for name in names if ".attention." not in name}
    assert {name.split(".")[-2] for name in rest} == {
        *("layernorm_before", "layernorm_after", "layernorm", "classifier")
    }


def test_a_pattern_may_stand_for_all_other_names() -> None:
    _, all_but = injected({"name": "named", "trains": ["!*.bias"], "head": ""}, "vit")
    assert all_but and not any(name.endswith(".bias") for name in all_but)


@pytest.mark.parametrize(
    ("trains", "words"),
    [(["*.attn.*"], r"no parameter with a name like '\*\.attn\.\*'; it has"), ([], "must name")],
)
def test_patterns_that_name_nothing(trains: list[str], words: str) -> None:
    with pytest.raises((PlanError, ValueError), match=words):
        injected({"name": "named", "trains": trains}, "vit")


def test_in_a_round_one_block_moves_and_travels_back() -> None:
    plan = points_plan(**VIT, routing=[DRAWN])
    site = open_site(plan)
    engine = Recording(on(site, plan))
    begun = start(plan, site.params())
    states = [begun, *(state for state, _ in federate(plan, engine, begun))]
    moved = []
    for k in range(3):
        before, after = states[k].params, states[k + 1].params
        some = {name for name, x in after.items() if not torch.equal(x, before[name])}
        blocks = {name.split(".layers.")[1][0] for name in some if ".layers." in name}
        assert len(blocks) == 1 and any(name.startswith("classifier.") for name in some)
        moved += sorted(blocks)
        sent = read(plan, engine.replies[2 * k]).delta
        assert some <= sent.keys() and len(sent) < len(after) / 2
    assert len(set(moved)) > 1, "no round of this seed has another block"


def test_of_all_blocks_it_is_no_routing_to_the_bit() -> None:
    plain, every = points_plan(**VIT), points_plan(**VIT, routing=[{**DRAWN, "counts": [3]}])
    site = open_site(plain)
    assert equal(last(run(site, plain)), last(run(site, every)))


class Same(nn.Module):
    """A block that gives what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_prompt_of_rank_one_by_hand() -> None:
    """u = (2, −1)ᵀ and v = (1, 0, 3): the tokens are (2, 0, 6) and (−1, 0, −3)."""
    left, right = torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0, 0.0, 3.0]])
    block = AppendedProduct(Same(), nn.Parameter(left), nn.Parameter(right), 0.0)
    out: Tensor = block(torch.zeros(2, 1, 3))
    assert out.tolist() == [[[0, 0, 0], [2, 0, 6], [-1, 0, -3]]] * 2


@pytest.mark.parametrize("deep", [True, False])
def test_it_is_the_prompt_that_its_factors_make(deep: bool) -> None:
    spec = {"name": "prompt", "tokens": 5, "rank": 2, "deep": deep, "dropout": 0.0}
    model, names = injected(spec, "vit")
    method, plain = Prompt(5, deep, 0.0, rank=2).as_exported(model, values_of(model, names))
    assert method == Prompt(5, deep, 0.0)
    other, whole = injected({**spec, "rank": 0}, "vit")
    assert set(plain) == set(whole)
    write(other, plain)
    batch = batch_of("vit")
    torch.testing.assert_close(logits_of(model, batch), logits_of(other, batch))
    blocks = 3 if deep else 1
    prompts = {name: x for name, x in values_of(model, names).items() if "prompt" in name}
    assert sum(x.numel() for x in prompts.values()) == blocks * 2 * (5 + 32)


def test_its_entries_begin_as_large_as_those_of_a_whole_prompt() -> None:
    """The mean square of an entry is v² / 3, for v² = 6 / (3·16 + 32)."""
    squares = []
    for rank in (0, 3):
        model, _ = injected({"name": "prompt", "tokens": 200, "rank": rank}, "vit")
        found = [m for m in model.modules() if isinstance(m, Appended | AppendedProduct)]
        each = [
            m.prompt if isinstance(m, Appended) else m.prompt_left @ m.prompt_right for m in found
        ]
        squares.append(float(torch.stack(each).detach().square().mean()))
    assert squares == pytest.approx([6 / 80 / 3] * 2, rel=0.1)


def test_without_rank_a_plan_has_the_name_that_it_had() -> None:
    method = {"name": "prompt", "tokens": 4}
    plan = points_plan(**{**VIT, "method": method})
    assert "rank" not in plan.toml()
    assert points_plan(**{**VIT, "method": {**method, "rank": 0}}).fingerprint == plan.fingerprint


def test_ranks_out_of_range() -> None:
    with pytest.raises(ValueError, match="rank must be from 1 to tokens = 4"):
        Prompt(4, rank=5)
    with pytest.raises(PlanError, match="prompts of this model are 32 wide"):
        injected({"name": "prompt", "tokens": 40, "rank": 33}, "vit")
