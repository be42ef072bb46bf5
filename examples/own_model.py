"""Federate a torch module of your own on data of your own, in a dozen lines."""

import torch
from torch import nn

from fedpeft import InProcess, Plan, evaluate, federate, open_site
from fedpeft.data.in_memory import Memory
from fedpeft.local.descent import Descent
from fedpeft.methods.full import Full
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.tasks.module import ModuleTask


class Net(nn.Module):
    """Two layers; whatever maps (n, 20) to (n, 4) will do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(20, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x).relu())
        return logits


def main() -> None:
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(2000) % 4
    x = torch.randn(4, 20, generator=rng)[label] + torch.randn(2000, 20, generator=rng)

    plan = Plan(
        task=ModuleTask(module=Net),
        data=Memory(
            train={"x": x[:1600], "label": label[:1600]},
            test={"x": x[1600:], "label": label[1600:]},
            classes=tuple("abcd"),
        ),
        partition=Dirichlet(clients=20, alpha=0.5),
        method=Full(),
        local=Descent(lr=0.02, batch_size=16),
        rounds=10,
        cohort=5,
    )
    site = open_site(plan)
    for state, ledger in federate(plan, InProcess(site)):
        held_out = evaluate(plan.task, site.model, state.params, site.data.held_out())
        print(
            f"round {state.round}: accuracy {held_out['accuracy'].value:.3f}, {ledger.bytes_up:,} "
            "bytes up"
        )


if __name__ == "__main__":
    main()
