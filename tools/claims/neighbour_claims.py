"""The tables of docs/results/neighbours.md: what published systems claim, as keys of a plan."""

from collections.abc import Mapping

from tools.claims.rows import lines, read_row, results_of, spread

ROWS = {
    "head-mean": "the mean",
    "ditto-mu-0.1": "Ditto, μ = 0.1",
    "ditto-mu-1": "Ditto, μ = 1",
    "local-only": "local only",
    "centralised": "centralised",
    "mean-uniform": "the mean, all alike",
    "minimax-0.01": "minimax, rate 0.01",
    "minimax-0.1": "minimax, rate 0.1",
    "ten-steps-mean": "ten steps, the mean",
    "ten-steps-nesterov-0.7-0.5": "ten steps, Nesterov 0.7, 0.5",
    "ten-steps-nesterov-0.7-0.9": "ten steps, Nesterov 0.7, 0.9",
    "one-round-mean": "one round, the mean",
    "one-round-fisher": "one round, Fisher",
    "one-round-regmean": "one round, RegMean",
    "overlap-mean": "overlap, the mean",
    "overlap-compensated": "overlap, compensated",
}
PRIVATE = {"head": "the head", "lora": "LoRA", "head-then-lora": "the head, then LoRA"}


def neighbours() -> str:
    """Common accuracy, and what each client may expect on data like its own."""
    found = []
    for name, label in ROWS.items():
        row, cells = read_row("neighbours-small", name), results_of("neighbours-small", name)
        of_clients = [
            {seed: 100 * one.number(f"client_accuracy.{key}") for seed, one in cells.items()}
            for key in ("mean", "worst_decile")
        ]
        found.append([label, _seeds(row.values), *map(spread, [row.values, *of_clients])])
    return lines(["", "seeds", "accuracy", "clients", "worst tenth"], found)


def private() -> str:
    """Accuracy under noise for each client, by what is trained."""
    rows = ((label, read_row("head-first-small", name)) for name, label in PRIVATE.items())
    found = [
        [label, _seeds(row.values), spread(row.values), f"{row.megabytes:,.2f}"]
        for label, row in rows
    ]
    return lines(["", "seeds", "accuracy", "MiB in all"], found)


def _seeds(values: Mapping[int, float]) -> str:
    return ", ".join(map(str, values))


TABLES = {"neighbours": neighbours, "private": private}
