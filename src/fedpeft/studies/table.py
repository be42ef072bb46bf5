"""The table of a study: a row for every point, mean and 95 % interval over the seeds."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, pstdev
from typing import Any

from fedpeft.evaluation.statistics import Estimate, estimate
from fedpeft.storage.files import write_atomically
from fedpeft.studies.study import ROW, Study
from fedpeft.studies.sweep import CellOutcome

MEASURED: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "accuracy_last": lambda s: s.get("accuracy_last"),
    "accuracy_best": lambda s: s.get("accuracy_best"),
    "client_accuracy_mean": lambda s: (s.get("client_accuracy") or {}).get("mean"),
    "client_accuracy_worst_decile": lambda s: (s.get("client_accuracy") or {}).get("worst_decile"),
    "client_accuracy_std": lambda s: (s.get("client_accuracy") or {}).get("std"),
    "own_worst_tenth": lambda s: _own(s).get("worst_tenth"),
    "own_spread": lambda s: pstdev(_own(s)["each"].values()) if _own(s) else None,
    "loss_last": lambda s: (s.get("held_out_last") or {}).get("loss"),
    "bytes": lambda s: s["bytes_up"] + s["bytes_down"],
}
"""What a summary gives to the mean over seeds, by name."""


SHARES = (
    *("accuracy_last", "accuracy_best", "client_accuracy_mean", "client_accuracy_worst_decile"),
    "own_worst_tenth",
)
"""What is never below 0 nor above 1."""


def _own(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The accuracies of clients on held-out examples of their own, where they have some."""
    own = (summary.get("own_held_out") or {}).get("metrics", {}).get("accuracy", {})
    return own if own and None not in own["each"].values() else {}


def interval(values: Sequence[float], share: bool = False) -> dict[str, Any]:
    """The mean with the ends of its interval (see `evaluation.statistics`), and each value."""
    found = estimate(values)
    found = found.within(0, 1) if share else found
    return {"mean": found.mean, "low": found.low, "high": found.high, "each": list(values)}


def rows_of(study: Study, outcomes: Iterable[CellOutcome]) -> list[dict[str, Any]]:
    """Plain values, a row for every combination of labels, in the order of the study."""
    ended = {one.cell.name: one for one in outcomes}
    rows: dict[str, dict[str, Any]] = {}
    for cell in study.cells:
        if (one := ended.get(cell.name)) is None:
            continue
        fresh = {"labels": dict(cell.labels), "set": list(cell.settings), "done": [], "failed": {}}
        row = rows.setdefault(json.dumps(fresh["labels"]), fresh)
        if one.error:
            row["failed"][str(cell.seed)] = one.error
        else:
            row["done"].append(one)
    return [_row(row) for row in rows.values()]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    done: list[CellOutcome] = row.pop("done")
    row["seeds"] = [one.cell.seed for one in done]
    if not done:
        return row
    first = done[0].summary
    for name in (
        "method",
        "trainable_params",
        "bytes_up_per_client_round",
        "bytes_down_per_client_round",
    ):
        row[name] = first.get(name)
    for name, read in MEASURED.items():
        values = [value for one in done if (value := read(one.summary)) is not None]
        whole = len(values) == len(done)
        row[name] = interval(values, name in SHARES) if whole else None
    row["seconds"] = median([float(one.summary["seconds"]) for one in done])
    row["cells"] = [one.cell.name for one in done]
    return row


def write_tables(study: Study, rows: Sequence[Mapping[str, Any]], out: Path, command: str) -> None:
    """table.json and table.md in `out`."""
    whole = {"study": study.name, "command": command, "rows": list(rows), "note": study.note}
    write_atomically(
        out / "table.json", json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
    )
    write_atomically(out / "table.md", markdown(study, rows, command).encode())


ACCURACIES = {
    "last": "accuracy_last",
    "best": "accuracy_best",
    "clients": "client_accuracy_mean",
    "worst tenth": "client_accuracy_worst_decile",
    "spread": "client_accuracy_std",
}
"""What was measured, by its heading."""
OWN = {"own worst tenth": "own_worst_tenth", "own spread": "own_spread"}
"""The same on examples that clients hold out themselves."""
LOSS = {"loss": "loss_last"}
"""Of tasks that have no accuracy."""

SCORED = """\
Accuracy in percent on the common held-out set, mean ± half of the 95 % interval over the seeds
(Student's t); in brackets the range of two seeds, or an interval that ends at 0 or 100 %. Best is
the best of the evaluated rounds, chosen on that same set. A client's accuracy counts each class as
often as the client trains on it; clients is the mean over all of them, worst tenth over those that
do worst, spread the standard deviation over all; own is on examples that the clients hold out
themselves."""
UNSCORED = """\
Mean loss on the common held-out set after the last round, less is better, ± half of the 95 %
interval over the seeds (Student's t); in brackets the range of two seeds."""
SENT = """\
Bytes are measured on what was sent, headers included: up from one client in one round, and in
all, up and down."""


def select_measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the table of these rows shows between seeds and bytes: name by heading."""
    scored = any(row.get("accuracy_last") for row in rows)
    if not scored and any(row.get("loss_last") for row in rows):
        return LOSS
    return ACCURACIES | OWN if any(row.get("own_worst_tenth") for row in rows) else ACCURACIES


def columns(study: Study, shown: Mapping[str, str]) -> list[str]:
    """Headings: the axes, or what stands for one, and what was measured."""
    return [*(study.axes or (ROW,)), "seeds", *shown, "trained", "up", "in all"]


def texts(study: Study, row: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    """A row as people read it, under `columns`."""
    labels = row["labels"]
    rest = [""] * (len(study.axes) - 1)
    named = [labels[ROW], *rest] if ROW in labels else [labels[axis] for axis in study.axes]
    if not row["seeds"]:
        return [*named, "failed", *[""] * (len(columns(study, shown)) - len(named) - 1)]
    failed = f" ({len(row['failed'])} failed)" if row["failed"] else ""
    return [
        *named,
        f"{len(row['seeds'])}{failed}",
        *((_plain if name in LOSS.values() else _percent)(row[name]) for name in shown.values()),
        f"{row['trainable_params']:,}",
        _size(row["bytes_up_per_client_round"]),
        _size(row["bytes"]["mean"]),
    ]


def _percent(value: Mapping[str, Any] | None) -> str:
    percent = "{:.1f}".format
    return _text(value, lambda share: percent(100 * share))


def _plain(value: Mapping[str, Any] | None) -> str:
    return _text(value, "{:.3f}".format)


def _text(value: Mapping[str, Any] | None, shown: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    found = Estimate(value["mean"], value["low"], value["high"], len(value["each"]))
    return found.text(shown, shown)


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**20:,.2f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def markdown(study: Study, rows: Sequence[Mapping[str, Any]], command: str) -> str:
    shown = select_measures(rows)
    headings = columns(study, shown)
    lines = [
        f"# {study.name}",
        "",
        f"Made by `{command}`.",
        "",
        f"{UNSCORED if shown is LOSS else SCORED} {SENT}",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(_escape(text) for text in texts(study, row, shown))} |" for row in rows),
        *(
            f"\n{' '.join(row['labels'].values())}, seed {seed}, failed: {why}"
            for row, seed, why in _failures(rows)
        ),
        *(["", study.note] if study.note else []),
    ]
    return "\n".join(lines) + "\n"


def _failures(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    return ((row, seed, reason) for row in rows for seed, reason in row["failed"].items())


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
