"""The table of docs/results/one-shot.md on pictures from captions."""

from keeping import difference, kept, lines, signed, spread

ROWS = {
    "rounds-epochs-3-1": "three rounds of one epoch",
    "rounds-epochs-1-3": "one round of three epochs",
    "centralised": "centralised, three epochs",
    "local-only": "local only, three epochs",
}


def emoji() -> str:
    rows = [kept("one-shot-emoji", name, label, "loss") for name, label in ROWS.items()]
    return lines(
        ["", "seeds", "held-out loss", "against three rounds", "MiB in all"],
        [
            [
                row.label,
                str(len(row.values)),
                spread(row.values, 4),
                "" if row is rows[0] else signed(difference(row, rows[0]), 4),
                f"{row.megabytes:,.2f}",
            ]
            for row in rows
        ],
    )


TABLES = {"emoji": emoji}
