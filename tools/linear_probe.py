"""How far a plan's frozen features go without federation: logistic regression on all clients'
examples at once.

    python tools/linear_probe.py src/fedpeft/assets/plans/digits.toml

Prints the held-out accuracy for several strengths of regularisation; the feature is the head's
input.
"""

import argparse
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fedpeft import Site, open_site, read_plan
from fedpeft.compute.trainable import head_of
from fedpeft.core.types import Batch


def features(site: Site, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """What goes into the head, (n, width), and the labels (n,)."""
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    head = head_of(site.model)
    with torch.inference_mode():
        for batch in batches:
            seen.append(site.plan.task.forward(site.model, batch, head)["features"])
            labels.append(batch["label"])
    return torch.cat(seen), torch.cat(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    args = parser.parse_args()
    site = open_site(read_plan(args.plan, ["method=head"]))
    site.model.eval()
    x, y = features(
        site, chain.from_iterable(site.data.training(client) for client in site.data.clients)
    )
    test_x, test_y = features(site, site.data.held_out())
    for strength in (0.01, 0.1, 1.0, 10.0, 100.0):
        probe = LogisticRegression(C=strength, max_iter=5000).fit(x.numpy(), y.numpy())
        print(f"C = {strength:g}: {100 * probe.score(test_x.numpy(), test_y.numpy()):.1f} %")


if __name__ == "__main__":
    main()
