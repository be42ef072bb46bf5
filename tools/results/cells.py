"""Raw cells, which are the run folders of `fedpeft sweep`, as rows of results."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.runs.folder import RunFolder, read_json, read_rounds
from fedpeft.studies.cell_store import CellStore
from fedpeft.studies.study import Cell, Study
from tools.results.rows import Result

SUMMARY = (
    "method",
    "rounds",
    "clients",
    "cohort",
    "accuracy_last",
    "accuracy_best",
    "best_round",
    "held_out_last",
    "client_accuracy",
    "privacy",
    "trainable_params",
    "full_params",
    "asked",
    "failed",
    "rounds_without_change",
    "bytes_up",
    "bytes_down",
    "bytes_up_headers",
    "bytes_up_per_client_round",
    "bytes_down_per_client_round",
    "full_bytes_up_per_client_round",
    "full_bytes_down_per_client_round",
    "seconds",
    "peak_rss_bytes",
    "partition",
    "engine",
    "threads",
    "device",
    "cpu",
    "base",
    "versions",
)
"""What a row takes from summary.json. The numbers of a table have a column each, TABLE.NUMBER; what
each client comes to is left in the raw cells."""


def results_of(study: Study, folder: Path) -> list[Result]:
    """A row for every finished cell of the study among the run folders in `folder`.

    Raises:
      RunError: a file of a run is damaged.
    """
    finished = CellStore(study, folder).finished()
    return [
        _result(study, cell, RunFolder(finished[cell.plan.fingerprint]))
        for cell in study.cells
        if cell.plan.fingerprint in finished
    ]


def _result(study: Study, cell: Cell, folder: RunFolder) -> Result:
    summary, rounds = read_json(folder.summary) or {}, read_rounds(folder)
    # a plan without a version is of the first
    schema = int(tomllib.loads(folder.plan.read_text()).get("schema", 1))
    values = {**_flat({key: summary.get(key) for key in SUMMARY}), **_by_round(rounds)}
    values |= _own_held_out(summary)
    settings = "; ".join(cell.settings)
    return Result(schema, study.name, cell.name, cell.seed, settings, cell.labels, values)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Numbers and words by column; of a table in a table, its numbers and words alone."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _flat(value, f"{key}.")
        elif value is not None and not isinstance(value, (Mapping, list)):
            flat[prefix + key] = str(value)
    return flat


def _own_held_out(summary: Mapping[str, Any]) -> dict[str, str]:
    """How clients do on held-out examples of their own, over the clients: by metric the mean, that
    by examples, and the mean of the worst tenth."""
    metrics = (summary.get("own_held_out") or {}).get("metrics", {})
    return _flat({f"own_held_out.{name}": spread for name, spread in metrics.items()})


def _by_round(rounds: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the summary does not say: curves as lists of [round, value], and of the last round the
    error of an aggregator of low-rank factors and the vote."""
    curves: dict[str, list[list[float]]] = {}
    for one in rounds:
        for metric, value in (one["held_out"] or {}).items():
            curves.setdefault(f"by_round.{metric}", []).append([one["round"], value])
    last = rounds[-1] if rounds else {}
    flat = {"aggregation_error_last": last.get("aggregation_error")}
    lists = {**curves, "vote_last": last.get("vote")}
    compact = {
        column: json.dumps(value, separators=(",", ":"))
        for column, value in lists.items()
        if value is not None
    }
    return _flat(flat) | compact
