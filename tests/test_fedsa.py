"""FedSA-LoRA (Guo et al., 2024, arXiv:2410.01463): A is shared, and B and the head stay with each
client. It needs no part of its own: LoRA with personal tensors."""

from pathlib import Path
from typing import Any

import torch
from rounds import points_plan, run

from fedpeft.core.tensors import take_prefix
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

LORA: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden"},
    "method": {"name": "lora", "rank": 4, "target": ["first"], "head": "head"},
    "rounds": 2,
    "cohort": 24,
}
FEDSA: dict[str, Any] = {**LORA, "personal": ["*.lora_B.*", "head.*"]}
A, B = "first.lora_A.default.weight", "first.lora_B.default.weight"


def test_a_is_common_and_b_is_each_clients_own(tmp_path: Path) -> None:
    plan, store = points_plan(**FEDSA), Folder(tmp_path)
    site = open_site(plan)
    [*_, (state, ledger)] = run(site, plan, store)
    assert not ledger.failed
    assert list(state.params) == [A]
    assert not torch.equal(state.params[A], site.params()[A])
    own = [take_prefix("personal", store.load(c, 1)) for c in site.data.clients]
    assert all(set(one) == {B, "head.weight", "head.bias"} for one in own)
    assert all(bool(one[B].any()) for one in own)
    assert len({tuple(one[B].flatten().tolist()) for one in own}) == len(own)


def test_its_bytes_are_those_of_a(tmp_path: Path) -> None:
    plan, whole = points_plan(**FEDSA), points_plan(**LORA)
    site = open_site(plan)
    [(_, one), *_] = run(site, plan, Folder(tmp_path / "one"))
    [(_, other), *_] = run(site, whole, Folder(tmp_path / "other"))
    rest = sum(x.numel() for n, x in site.params().items() if n != A)
    numbers = (other.bytes_up - other.up_headers) - (one.bytes_up - one.up_headers)
    assert numbers == 24 * 4 * rest
