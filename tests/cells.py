"""Kept cells, written by hand: what a finished run leaves, without weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

CLIENTS = ("a", "b")


def line(
    at: int, accuracy: float | None, up: int, failed: str | None, epsilon: float | None
) -> dict[str, Any]:
    """A line of rounds.jsonl: client a sends `up` bytes, client b the same or fails."""
    b = {"down": 10, "up": 0, "failed": failed} if failed else {"down": 10, "up": up, "weight": 1.0}
    told = {
        "round": at,
        "clients": {"a": {"down": 10, "up": up, "weight": 1.0}, "b": b},
        "bytes_down": 20,
        "bytes_up": up if failed else 2 * up,
        "up_headers": 1,
        "note": "",
        "metrics": {"loss": 1.0},
        "held_out": None if accuracy is None else {"accuracy": accuracy, "loss": 0.5},
        "seconds": 0.5,
    }
    return told | (
        {"privacy": {"epsilon": epsilon * at, "delta": 1e-5, "unit": "client"}} if epsilon else {}
    )


def write_cell(
    folder: Path,
    accuracies: Sequence[float | None],
    *,
    method: str | Mapping[str, Any] = "lora",
    seed: int = 1,
    planned: int | None = None,
    up: int = 1000,
    failed: str | None = None,
    epsilon: float | None = None,
    each: Mapping[str, float] | None = None,
    classes: Sequence[str] = ("x", "y"),
    plan: Mapping[str, Any] | None = None,
) -> Path:
    """A cell in `folder`; it is unfinished, and so without a summary, if fewer rounds are there
    than planned."""
    folder.mkdir(parents=True)
    planned = planned or len(accuracies)
    values = {
        "name": "study",
        "rounds": planned,
        "seed": seed,
        "task": {"name": "image-classification", "model": "small"},
        "data": {"name": "digits"},
        "method": {"name": method} if isinstance(method, str) else dict(method),
        **(plan or {}),
    }
    (folder / "plan.toml").write_text(tomli_w.dumps(values))
    lines = [
        line(at, value, up, failed if at == 1 else None, epsilon)
        for at, value in enumerate(accuracies, 1)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    division = {
        "fingerprint": f"f{seed}",
        "classes": list(classes),
        "histograms": {"a": [3, 1], "b": [0, 4]},
    }
    (folder / "partition.json").write_text(json.dumps(division))
    if planned == len(accuracies):
        (folder / "summary.json").write_text(json.dumps(summary(up, each)))
    return folder


def summary(up: int, each: Mapping[str, float] | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "clients": len(CLIENTS),
        "trainable_params": up // 4,
        "full_params": 1000,
        "bytes_up_per_client_round": float(up),
        "bytes_down_per_client_round": 10.0,
        "seconds": 1.5,
        "versions": {"python": "3.11.7", "fedpeft": "0.1.0"},
        "device": "cpu",
        "cpu": "a processor",
    }
    if each:
        values = sorted(each.values())
        spread = {
            "mean": sum(values) / len(values),
            "worst_decile": values[0],
            "best_decile": values[-1],
            "std": 0.1,
        }
        told["client_accuracy"] = {**spread, "each": dict(each)}
    return told


def write_study(root: Path) -> Path:
    """Three methods: bias costs less and is better than lora, head is worst and cheapest."""
    for method, up, gain in (("bias", 500, 0.1), ("lora", 2000, 0.0), ("head", 100, -0.2)):
        for seed in (1, 2, 3):
            accuracies = [0.3 + gain, 0.5 + gain, 0.6 + gain + 0.01 * seed]
            each = {"a": 0.6 + gain, "b": 0.7 + gain}
            write_cell(
                root / f"{method}-{seed}",
                accuracies,
                method=method,
                seed=seed,
                up=up,
                each=each,
                epsilon=0.5,
            )
    return root
