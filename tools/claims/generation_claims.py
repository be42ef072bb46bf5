"""The tables of docs/results/one-shot.md whose measure is a loss: a language model, and pictures
from captions."""

from collections.abc import Mapping

from tools.claims.rows import difference, lines, read_row, signed, spread

EMOJI = {
    "rounds-epochs-3-1": "three rounds of one epoch",
    "rounds-epochs-1-3": "one round of three epochs",
    "centralised": "centralised, three epochs",
    "local-only": "local only, three epochs",
}
DOLLY = {
    method: {
        f"rounds-epochs-{k}-{name}": f"{method}, {words}"
        for k, words in (("3-1", "three rounds"), ("1-3", "one round"))
    }
    | {f"centralised-{name}": f"{method}, centralised"}
    for method, name in (("full", "full"), ("LoRA", "lora"))
}


def _losses(study: str, names: Mapping[str, str], digits: int) -> list[list[str]]:
    """Each with its difference to the first."""
    rows = [read_row(study, name, label, "loss") for name, label in names.items()]
    return [
        [
            row.label,
            str(len(row.values)),
            spread(row.values, digits),
            "" if row is rows[0] else signed(difference(row, rows[0]), digits),
            f"{row.megabytes:,.2f}",
        ]
        for row in rows
    ]


HEAD = ["", "seeds", "held-out loss", "against three rounds", "MiB in all"]


def emoji() -> str:
    return lines(HEAD, _losses("one-shot-emoji", EMOJI, 4))


def dolly() -> str:
    alone = {"local-only": "LoRA, local only"}
    both = [
        _losses("one-shot-dolly", {**names, **(alone if method == "LoRA" else {})}, 3)
        for method, names in DOLLY.items()
    ]
    return lines(HEAD, [row for rows in both for row in rows])


TABLES = {"emoji": emoji, "dolly": dolly}
