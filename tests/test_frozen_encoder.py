"""A head on a frozen encoder: its features are the same in every step, and kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedpeft.compute.frozen_encoder import still_encoder
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.site import open_site
from tools.models.folders import save_family

DROPOUT: dict[str, dict[str, Any]] = {
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
    "roberta": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
    "distilbert": {"dropout": 0.3, "attention_dropout": 0.3, "seq_classif_dropout": 0.3},
}
TEXT = torch.tensor([[4, 5, 6, 2], [7, 8, 9, 2]])


def plan_of(folder: Path, family: str, method: str) -> Plan:
    base = save_family(folder / "base", family, **DROPOUT[family])
    rows = [f"one {word},{k % 2}" for k, word in enumerate(["two", "three", "four"] * 8)]
    (folder / "x.csv").write_text("\n".join(["text,label", *rows]))
    return read_plan(
        {
            "task": {"name": "text-classification", "model": str(base), "max_length": 8},
            "data": str(folder / "x.csv"),
            "method": method,
            "partition": {"name": "iid", "clients": 2},
            "cohort": 2,
        }
    )


def same_twice(model: nn.Module) -> bool:
    model.train()
    first, second = (model(input_ids=TEXT).logits for _ in range(2))
    return bool(torch.equal(first, second))


@pytest.mark.parametrize("family", DROPOUT)
def test_features_are_kept_though_the_configuration_has_dropout(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    site = open_site(plan_of(tmp_path, family, "head"))
    assert site.kept.cut is not None, site.kept.note
    assert same_twice(site.plan.model(site.classes))  # also where features are not kept
    assert not same_twice(plan_of(tmp_path / "lora", family, "lora").model(("a", "b")))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("trained", "still"),
    [
        (("head.0.weight", "head.2.weight"), True),
        (("head.2.bias",), True),
        (("first.weight", "head.2.weight"), False),
        ((), False),
    ],
)
def test_only_a_head_alone_makes_the_rest_still(trained: tuple[str, ...], still: bool) -> None:
    net: Any = Net()
    assert still_encoder(net, trained) == still
    net.train()
    assert [net.first.training, net.dropout.training, net.head[1].training] == [not still] * 3
    assert net.head.training and net.head[2].training
